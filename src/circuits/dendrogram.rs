//! Which members belong together? Hierarchical clustering.

use kodama::Method;
use ndarray::{Array2, ArrayView2};

use super::factored::{check_finite, shape};
use crate::error::{Error, Result};

/// The distance of two clusters, from the distances of their members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Linkage {
    /// The smallest distance.
    Single,
    /// The largest distance.
    Complete,
    /// The mean distance.
    #[default]
    Average,
}

/// A merge of two clusters. The members are clusters 0 to n - 1; merge i creates cluster n + i.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Merge {
    /// The two clusters.
    pub clusters: [usize; 2],
    /// Their distance.
    pub height: f64,
    /// The number of members of the new cluster.
    pub size: usize,
}

/// Which members are alike? The tree that merges n members, nearest first.
///
/// ```
/// use headscope::circuits::{Dendrogram, Linkage};
/// use ndarray::array;
/// let distances = array![[0.0, 0.1, 0.9], [0.1, 0.0, 0.8], [0.9, 0.8, 0.0]];
/// let tree = Dendrogram::new(&distances.view(), Linkage::Average)?;
/// assert_eq!(tree.cut(0.5), [0, 0, 1]);
/// assert_eq!(tree.newick(&["a", "b", "c"])?, "(c:0.850000,(a:0.100000,b:0.100000):0.750000);");
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Dendrogram {
    members: usize,
    merges: Vec<Merge>,
}

impl Dendrogram {
    /// Builds the tree from `distances`, `[n, n]`; only the upper triangle is read.
    ///
    /// # Errors
    /// If the matrix is empty, not square, not finite, or has a negative distance.
    pub fn new(distances: &ArrayView2<'_, f64>, linkage: Linkage) -> Result<Self> {
        let n = distances.nrows();
        if n == 0 || distances.ncols() != n {
            return Err(shape("distances", "[n, n], at least one".to_owned(), distances));
        }
        check_finite("distances", distances)?;
        let mut condensed: Vec<f64> =
            (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).map(|pair| distances[pair]).collect();
        if let Some(found) = condensed.iter().find(|&&distance| distance < 0.0) {
            return Err(Error::argument("distances", "none below 0", found));
        }
        let method = match linkage {
            Linkage::Single => Method::Single,
            Linkage::Complete => Method::Complete,
            Linkage::Average => Method::Average,
        };
        let tree = kodama::linkage(&mut condensed, n, method);
        let merge = |step: &kodama::Step<f64>| Merge {
            clusters: [step.cluster1, step.cluster2],
            height: step.dissimilarity,
            size: step.size,
        };
        Ok(Self { members: n, merges: tree.steps().iter().map(merge).collect() })
    }

    /// The n - 1 merges, nearest first.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// The cluster of each member if only merges below `height` are made, numbered in order of their first members.
    pub fn cut(&self, height: f64) -> Vec<usize> {
        let mut of: Vec<usize> = (0..self.members).collect();
        for (i, merge) in self.merges.iter().enumerate().filter(|(_, merge)| merge.height < height) {
            of.iter_mut().filter(|c| merge.clusters.contains(c)).for_each(|c| *c = self.members + i);
        }
        let mut seen: Vec<usize> = vec![];
        let number = |cluster: usize| {
            seen.iter().position(|&known| known == cluster).unwrap_or_else(|| {
                seen.push(cluster);
                seen.len() - 1
            })
        };
        of.into_iter().map(number).collect()
    }

    /// The members from left to right, as the tree is drawn: similar ones are neighbours.
    pub fn order(&self) -> Vec<usize> {
        let mut open = vec![self.root()];
        let mut order = vec![];
        while let Some(cluster) = open.pop() {
            match self.parts(cluster) {
                Some(merge) => open.extend(merge.clusters.iter().rev()),
                None => order.push(cluster),
            }
        }
        order
    }

    /// The cophenetic distances, `[n, n]`: the height of the merge that joins two members.
    pub fn cophenetic(&self) -> Array2<f64> {
        let mut members: Vec<Vec<usize>> = (0..self.members).map(|member| vec![member]).collect();
        let mut distances = Array2::zeros((self.members, self.members));
        for merge in &self.merges {
            let [a, b] = merge.clusters;
            for (&i, &j) in members[a].iter().flat_map(|i| members[b].iter().map(move |j| (i, j))) {
                distances[[i, j]] = merge.height;
                distances[[j, i]] = merge.height;
            }
            members.push([members[a].as_slice(), &members[b]].concat());
        }
        distances
    }

    /// The tree in Newick format, for tree viewers. The branch lengths are the differences in height.
    ///
    /// # Errors
    /// If the number of names is not that of the members.
    pub fn newick(&self, names: &[impl AsRef<str>]) -> Result<String> {
        if names.len() != self.members {
            return Err(Error::argument("names", self.members.to_string(), names.len()));
        }
        let mut texts: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        let mut heights = vec![0.0; self.members];
        for merge in &self.merges {
            let [a, b] = merge.clusters.map(|c| format!("{}:{:.6}", texts[c], merge.height - heights[c]));

            texts.push(format!("({a},{b})"));
            heights.push(merge.height);
        }
        Ok(texts.pop().map(|text| text + ";").unwrap_or_default())
    }

    fn root(&self) -> usize {
        self.members + self.merges.len() - 1
    }

    fn parts(&self, cluster: usize) -> Option<&Merge> {
        self.merges.get(cluster.checked_sub(self.members)?)
    }
}
