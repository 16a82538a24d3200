//! How far behind is what a prediction depends on, and how far does one fixed distance get?

use std::collections::BTreeMap;

use super::Batch;

/// A fixed distance from the query, and how often it finds a source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FixedOffset {
    /// The number of tokens before the query; 0 is the query itself.
    pub offset: usize,
    /// The share of the queries that have a source there.
    pub share: f64,
}

impl Batch {
    /// How often a fixed offset finds a source, for queries of one kind of dependency: the share of the queries with a
    /// source this many tokens before them, by offset. Offsets at which no query has a source are left out.
    ///
    /// Whatever depends on the distance alone finds no more than the best of these offsets does: attention that is spread
    /// over offsets gets an average of their shares.
    pub fn offsets(&self, kind: &str) -> BTreeMap<usize, f64> {
        let (mut counts, mut queries) = (BTreeMap::new(), 0.0);
        for sample in &self.samples {
            let own = || sample.dependencies.iter().filter(|one| one.kind == kind);
            let mut places: Vec<usize> = own().map(|one| one.query).collect();
            places.sort_unstable();
            places.dedup();
            queries += places.len() as f64;
            own().for_each(|one| *counts.entry(one.query.abs_diff(one.source)).or_insert(0.0) += 1.0);
        }
        counts.values_mut().for_each(|count| *count /= queries);
        counts
    }

    /// The offset that finds a source most often; `None` if there is no such dependency.
    ///
    /// ```
    /// use headscope::lab::{Language, language::English};
    /// let stories = Language::English(English::default()).batch(200, 0, 0)?;
    /// let best = stories.best_offset("agreement").unwrap();
    /// assert!(best.share < 0.6); // the verb stands at no fixed distance from its subject
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn best_offset(&self, kind: &str) -> Option<FixedOffset> {
        let best = self.offsets(kind).into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|(offset, share)| FixedOffset { offset, share })
    }
}
