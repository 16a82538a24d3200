#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::*;

/// The rows of the whole pass, and those that a call holds.
const ROWS: usize = 12;

/// An edit of the whole batch or of some of its rows, and which of two actions that do not commute.
fn edits() -> impl Strategy<Value = Vec<(Option<(usize, usize)>, bool)>> {
    let rows = (0..ROWS, 1..=ROWS).prop_map(|(first, n)| (first, n.min(ROWS - first)));
    prop::collection::vec((prop::option::weighted(0.75, rows), any::<bool>()), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Each edit changes its own rows, in the order given, however edits of the whole batch and of rows are mixed, overlap
    /// and are sorted; no row is lost or doubled.
    #[test]
    fn edits_of_rows_and_of_the_whole_batch_mix(edits in edits(), start in 0..ROWS) {
        let config = ModelConfig { n_layers: 1, ..ModelConfig::default() };
        let site = Site::ResidPre(0);
        let mut program = Program::taps([]);
        // An edit whose rows begin before those of the call belongs to an earlier one.
        let edits: Vec<_> =
            edits.into_iter().filter(|(rows, _)| rows.is_none_or(|(first, n)| first >= start || first + n <= start)).collect();
        for (rows, scales) in &edits {
            let action = if *scales { Action::Scale { factor: 3.0 } } else { Action::Normalise };
            let tokens = Tokens::new(&vec![vec![1, 2]; rows.map_or(ROWS, |(_, n)| n)]).unwrap();
            let window = Window { rows: *rows, ..Window::default() };
            program.push(Edit::new(site, action), None, &window, &config, &tokens).unwrap();
        }
        let shape = [(ROWS - start) as i64, 2, config.d_model as i64];
        let x = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)).view(shape) - 40.0;
        let expected = x.copy();
        for (rows, scales) in &edits {
            let (first, n) = rows.unwrap_or((start, ROWS - start));
            let Some(first) = first.checked_sub(start) else { continue };
            let mut rows = expected.narrow(0, first as i64, n as i64);
            let square = rows.square().mean_dim([-1i64].as_slice(), true, None::<Kind>);
            let new = if *scales { &rows * 3.0 } else { &rows / (square + SMALL).sqrt() };
            rows.copy_(&new);
        }
        let found = program.apply(site, x, start as i64).unwrap();
        prop_assert_eq!(found.size(), expected.size());
        prop_assert_eq!((found - expected).abs().max().double_value(&[]), 0.0);
    }
}
