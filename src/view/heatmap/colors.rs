//! The colours of a heat map, and the bar that explains them.

use ndarray::Array2;

use super::super::axis::{Axis, TICK};
use super::super::canvas::{Canvas, Lettering};
use super::super::palette::{ColorMap, INK, MISSING, Rgb};
use super::super::text::label;
use super::Heatmap;
use super::layout::{BAR_WIDTH, Layout};
use crate::error::{Error, Result};

/// The scale from values to colours.
pub(super) struct Colors {
    map: ColorMap,
    pub(super) axis: Axis,
    missing: usize,
    clipped: usize,
}

impl Colors {
    /// Checks the values and fixes the scale.
    pub(super) fn new(of: &Heatmap) -> Result<Self> {
        let draw = |reason: &str| Error::Draw { what: "a heat map", reason: reason.to_owned() };
        if of.values.is_empty() {
            return Err(draw(&format!("its values are empty, {:?}", of.values.shape())));
        }
        if let Some(((row, column), value)) = of.values.indexed_iter().find(|(_, value)| value.is_infinite()) {
            return Err(draw(&format!("the value at row {row}, column {column} is {value}")));
        }
        let known = of.values.iter().copied().filter(|value| !value.is_nan());
        let (low, high) = known.clone().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if low > high {
            return Err(draw("every value is missing"));
        }
        let map = of.map.unwrap_or(if low < 0.0 && high > 0.0 { ColorMap::Diverging } else { ColorMap::Sequential });
        let (from, to) = of.limits.unwrap_or((low, high));
        if !from.is_finite() || !to.is_finite() || from > to || (of.limits.is_some() && from == to) {
            return Err(draw(&format!("limits must be finite and ascending, found {from} to {to}")));
        }
        let reach = from.abs().max(to.abs());
        let (from, to) = if map == ColorMap::Diverging { (-reach, reach) } else { (from, to) };
        let clipped = if of.limits.is_some() { known.filter(|value| *value < from || *value > to).count() } else { 0 };
        let missing = of.values.iter().filter(|value| value.is_nan()).count();
        Ok(Self { map, axis: Axis::new((from, to), false, 0.0, 1.0), missing, clipped })
    }

    pub(super) fn color(&self, value: f64) -> Rgb {
        self.map.color(self.axis.at(value))
    }

    /// What the bar alone does not tell, and whether it has a grey square.
    pub(super) fn notes(&self) -> Vec<(String, bool)> {
        let missing = (self.missing > 0).then(|| (format!("missing ({})", self.missing), true));
        let clipped = (self.clipped > 0).then(|| (format!("beyond ends ({})", self.clipped), false));
        missing.into_iter().chain(clipped).collect()
    }

    /// The bar to the right of the cells, with ticks, unit and notes.
    pub(super) fn draw_bar(&self, page: &mut Canvas, layout: &Layout, unit: &str) {
        let left = layout.right() + 18.0;
        let (top, bottom) = (layout.top + layout.unit_height, layout.top + layout.unit_height + layout.bar_height);
        let steps = 96;
        let strip =
            Array2::from_shape_fn((steps, 1), |(step, _)| self.map.color(1.0 - (step as f64 + 0.5) / steps as f64));
        page.cells((left, top), (BAR_WIDTH, (bottom - top) / steps as f64), strip.view());
        page.frame((left, top), (left + BAR_WIDTH, bottom), INK, 0.8);
        page.text((left, layout.top + 5.0), label(unit), Lettering::new(TICK));
        let axis = self.axis.between(bottom, top);
        for (value, text) in axis.ticks(if bottom - top < 100.0 { 3 } else { 5 }) {
            let down = axis.at(value);
            page.line((left + BAR_WIDTH, down), (left + BAR_WIDTH + 3.0, down), INK, 0.8);
            page.text((left + BAR_WIDTH + 7.0, down), text, Lettering::new(TICK).soft());
        }
        for (index, (text, square)) in self.notes().into_iter().enumerate() {
            let down = bottom + 18.0 + 16.0 * index as f64;
            if square {
                page.rectangle((left, down - 5.0), (left + BAR_WIDTH, down + 5.0), MISSING);
            }
            page.text((left + BAR_WIDTH + 7.0, down), text, Lettering::new(TICK).soft());
        }
    }
}
