//! Singular values and vectors, and blocks of values too near each other to be told apart.

use std::ops::Range;

use ndarray::{Array1, Array2, s};

use super::factored::Factored;
use super::subspace::Subspace;
use crate::error::{Error, Result};

/// `U diag(sigma) V^T`.
///
/// Signs of singular vectors are arbitrary, and where singular values are nearly equal so are the vectors within their
/// block: compare [blocks](Svd::blocks) as subspaces (Millidge & Black 2022).
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// Left singular vectors in columns, `[m, r]`.
    pub u: Array2<f64>,
    /// Singular values, descending, `[r]`.
    pub sigma: Array1<f64>,
    /// Right singular vectors in columns, `[n, r]`.
    pub v: Array2<f64>,
}

/// A block of nearly equal singular values in two decompositions, compared as subspaces.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockOverlap {
    /// The components of the block, by the first decomposition's values.
    pub components: Range<usize>,
    /// Overlap of the left singular subspaces, from 0 to 1.
    pub left: f64,
    /// Overlap of the right singular subspaces, from 0 to 1.
    pub right: f64,
}

impl Svd {
    /// The first `rank` components as a product.
    ///
    /// # Errors
    /// Where `rank` is 0.
    pub fn truncated(&self, rank: usize) -> Result<Factored> {
        if rank == 0 {
            return Err(Error::argument("rank", "at least 1", rank));
        }
        let kept = rank.min(self.sigma.len());
        let root = self.sigma.slice(s![..kept]).mapv(f64::sqrt);
        let (u, v) = (self.u.slice(s![.., ..kept]), self.v.slice(s![.., ..kept]));
        Factored::new(&u * &root, (&v * &root).reversed_axes())
    }

    /// Runs of components whose neighbours differ by less than `gap` of the larger value: within a run single singular
    /// vectors mean nothing. The runs cover all components.
    ///
    /// # Errors
    /// Where `gap` is not between 0 and 1.
    pub fn blocks(&self, gap: f64) -> Result<Vec<Range<usize>>> {
        if !(0.0..1.0).contains(&gap) {
            return Err(Error::argument("gap", "a number from 0 up to 1", gap));
        }
        let mut blocks: Vec<Range<usize>> = vec![];
        for i in 0..self.sigma.len() {
            let near = i > 0 && self.sigma[i - 1] - self.sigma[i] <= gap * self.sigma[i - 1];
            match blocks.last_mut().filter(|_| near) {
                Some(block) => block.end = i + 1,
                None => blocks.push(i..i + 1),
            }
        }
        Ok(blocks)
    }

    /// The span of some left singular vectors.
    ///
    /// # Errors
    /// Where there are no such components.
    pub fn left_block(&self, components: Range<usize>) -> Result<Subspace> {
        self.block(&self.u, components)
    }

    /// The span of some right singular vectors.
    ///
    /// # Errors
    /// Where there are no such components.
    pub fn right_block(&self, components: Range<usize>) -> Result<Subspace> {
        self.block(&self.v, components)
    }

    /// How alike are two decompositions, block by block of this one's nearly equal singular values?
    ///
    /// # Errors
    /// Where `gap` is not between 0 and 1, or the shapes differ.
    pub fn compare(&self, other: &Self, gap: f64) -> Result<Vec<BlockOverlap>> {
        let blocks = self.blocks(gap)?;
        let overlap = |components: Range<usize>| {
            let left = self.left_block(components.clone())?.overlap(&other.left_block(components.clone())?)?;
            let right = self.right_block(components.clone())?.overlap(&other.right_block(components.clone())?)?;
            Ok(BlockOverlap { components, left, right })
        };
        blocks.into_iter().map(overlap).collect()
    }

    fn block(&self, vectors: &Array2<f64>, components: Range<usize>) -> Result<Subspace> {
        let limit = vectors.ncols();
        if components.is_empty() || components.end > limit {
            let (at, found) = ("components".to_owned(), components.end as i64 - 1);
            return Err(Error::OutOfRange { at, axis: "component", found, limit: limit as i64 });
        }
        Ok(Subspace::orthonormal(vectors.slice(s![.., components]).to_owned()))
    }
}
