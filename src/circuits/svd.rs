//! In which directions does a matrix act, and which of them can be told apart? Singular values and vectors, in blocks.

use std::ops::Range;

use ndarray::{Array1, Array2, s};

use super::factored::Factored;
use super::subspace::Subspace;
use crate::error::{Error, Result};

/// `U diag(sigma) V^T`.
///
/// The signs of singular vectors are arbitrary, and so are the vectors within a block of nearly equal singular values: compare
/// [blocks](Svd::blocks) as subspaces (Millidge & Black 2022).
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// Left singular vectors, in columns, `[m, r]`.
    pub u: Array2<f64>,
    /// Singular values, in descending order, `[r]`.
    pub sigma: Array1<f64>,
    /// Right singular vectors, in columns, `[n, r]`.
    pub v: Array2<f64>,
}

/// A block of nearly equal singular values, compared between two decompositions as a subspace.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockOverlap {
    /// The components of the block, by the values of the first decomposition.
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
    /// If `rank` is 0.
    pub fn truncated(&self, rank: usize) -> Result<Factored> {
        if rank == 0 {
            return Err(Error::argument("rank", "at least 1", rank));
        }
        let kept = rank.min(self.sigma.len());
        let root = self.sigma.slice(s![..kept]).mapv(f64::sqrt);
        let (u, v) = (self.u.slice(s![.., ..kept]), self.v.slice(s![.., ..kept]));
        Factored::new(&u * &root, (&v * &root).reversed_axes())
    }

    /// Which singular vectors can be told apart? Runs of components whose neighbours differ by less than `gap` of the larger
    /// value; single vectors within a run mean nothing. The runs cover all components.
    ///
    /// # Errors
    /// If `gap` is not between 0 and 1.
    pub fn blocks(&self, gap: f64) -> Result<Vec<Range<usize>>> {
        if !(0.0..1.0).contains(&gap) {
            return Err(Error::argument("gap", "a number from 0 to less than 1", gap));
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

    /// The span of a range of left singular vectors.
    ///
    /// # Errors
    /// If a component does not exist.
    pub fn left_block(&self, components: Range<usize>) -> Result<Subspace> {
        self.block(&self.u, components)
    }

    /// The span of a range of right singular vectors.
    ///
    /// # Errors
    /// If a component does not exist.
    pub fn right_block(&self, components: Range<usize>) -> Result<Subspace> {
        self.block(&self.v, components)
    }

    /// How alike are two decompositions? The overlap of each block of nearly equal singular values of this one with the other.
    ///
    /// # Errors
    /// If `gap` is not between 0 and 1, or the shapes differ.
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
