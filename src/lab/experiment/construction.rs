//! E14: which patterns can a head of width d give n keys? Why 64 of 1024 may be enough, or not.

use super::grid::{above, numbered, sub_claim};
use super::work::{Attainable, Construction, PatternKind, PatternSet};
use super::{Cell, Experiment, Grid, Work};
use crate::lab::verdict::{Contrast, Endpoint, Gate, Limit, Reading, SubClaim};

/// Kinds of patterns: every weight alike, few keys with most of the weight, one key.
const KINDS: [(&str, PatternKind); 3] = [
    ("dense", PatternKind::Dirichlet(1.0)),
    ("sparse", PatternKind::Dirichlet(0.1)),
    ("single", PatternKind::OneTarget),
];
/// The error at which a pattern counts as produced: this share of attention goes to the wrong keys.
const TOLERANCE: f64 = 0.01;
/// The smallest effect of interest: as much again.
const DELTA: (f64, &str) = (0.01, "one percent of attention, beyond the one percent that is allowed");

/// E14: what does the width of a head limit?
pub(super) fn construction(grid: Grid) -> Experiment {
    let keys: &[usize] = grid.pick(&[8, 16, 32][..], &[4, 8, 16, 32, 64, 128]);
    let mut cells = vec![];
    for (name, kind) in KINDS {
        for &keys in keys {
            // Widths up to the number of keys, where every pattern can be produced.
            let widths = (1..8).map(|power| 1 << power).filter(|&width| width <= keys);
            cells.extend(widths.map(|width| fixed(name, kind, keys, width)));
        }
        if kind != PatternKind::OneTarget {
            let widths: &[usize] = grid.pick(&[2, 4, 8][..], &[2, 4, 8, 16, 32, 64]);
            cells.extend(widths.iter().map(|&width| largest(name, kind, width)));
        }
    }
    Experiment {
        sub_claims: claims(keys.iter().copied().filter(|&keys| keys > 4)),
        cells,
        ..numbered(
            14,
            "Why 64 of 1024?",
            "Which attention patterns can a head of a given width produce, over how many keys?",
        )
    }
}

fn fixed_name(kind: &str, keys: usize, width: usize) -> String {
    format!("{kind}-keys{keys}-width{width}")
}

fn fixed(name: &str, kind: PatternKind, keys: usize, width: usize) -> Cell {
    let construction = Construction { keys, width, set: set(kind) };
    Cell { name: fixed_name(name, keys, width), work: Work::Construction(construction) }
}

fn largest(name: &str, kind: PatternKind, width: usize) -> Cell {
    let attainable = Attainable { width, set: set(kind), tolerance: TOLERANCE, most: 4 * width + 8 };
    Cell { name: format!("{name}-largest-width{width}"), work: Work::Attainable(attainable) }
}

fn set(kind: PatternKind) -> PatternSet {
    PatternSet { kind, size: 4, steps: 300 }
}

/// What E14 decides.
fn claims(keys: impl Iterator<Item = usize> + Clone) -> Vec<SubClaim> {
    let (least, most) = (Some(0.0), Some(1.0));
    let error = Endpoint { least, most, given_learning: false, ..above("best_error", DELTA) };
    let at = |keys: usize, width: usize| Contrast::of(format!("{keys} keys"), fixed_name("dense", keys, width));
    let half = keys.clone().map(|keys| at(keys, keys / 2).minus(TOLERANCE)).collect();
    let exact = Gate {
        text: "a theorem: a head as wide as there are keys produces every pattern".to_owned(),
        metric: "error".to_owned(),
        task: None,
        reading: Reading::End,
        limit: Limit::Below(1e-6),
        cases: keys.map(|keys| at(keys, keys)).collect(),
    };
    vec![SubClaim {
        gates: vec![exact],
        ..sub_claim("C4a", "A head half as wide as there are keys cannot produce every pattern over them", error, half)
    }]
}
