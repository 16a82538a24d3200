//! Where on the page does a value go? Axes with round ticks, and the plot box shared by line plots and bars.

use super::canvas::{Canvas, Lettering, Point};
use super::palette::{GRID, INK};
use super::text::{number, scientific, superscript, width};

/// Font size of tick labels, in pixels.
pub(super) const TICK: f64 = 11.0;
/// Font size of axis labels, in pixels.
pub(super) const LABEL: f64 = 12.0;
/// Font size of titles, in pixels.
pub(super) const TITLE: f64 = 14.0;

/// A scale from values to pixels.
#[derive(Clone, Copy)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    start: f64,
    end: f64,
}

impl Axis {
    /// An axis for `low..=high` between the pixels `start` and `end`. A single value gets space on both sides.
    pub(super) fn new((low, high): (f64, f64), log: bool, start: f64, end: f64) -> Self {
        let (low, high) = match (low < high, log) {
            (true, _) => (low, high),
            (false, true) => (low / 2.0, high * 2.0),
            (false, false) => (low - 0.5 * low.abs().max(1.0), high + 0.5 * high.abs().max(1.0)),
        };
        Self { low, high, log, start, end }
    }

    /// Adds a margin of `part` of the length at both ends.
    pub(super) fn padded(self, part: f64) -> Self {
        let (low, high) = (self.forward(self.low), self.forward(self.high));
        let margin = part * (high - low);
        let back = |value: f64| if self.log { 10f64.powf(value) } else { value };
        Self { low: back(low - margin), high: back(high + margin), ..self }
    }

    pub(super) fn between(self, start: f64, end: f64) -> Self {
        Self { start, end, ..self }
    }

    /// The pixel of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        let (low, high) = (self.forward(self.low), self.forward(self.high));
        self.start + (self.forward(value) - low) / (high - low) * (self.end - self.start)
    }

    /// Round values with their labels, about `count` of them.
    pub(super) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        if self.log { self.log_ticks(count) } else { self.even_ticks(count) }
    }

    fn forward(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    fn even_ticks(&self, count: usize) -> Vec<(f64, String)> {
        let step = round_step((self.high - self.low) / count.max(1) as f64);
        let slack = 1e-9 * step;
        let (first, last) = (((self.low - slack) / step).ceil() as i64, ((self.high + slack) / step).floor() as i64);
        let largest = self.low.abs().max(self.high.abs());
        let plain = (1e-4..1e6).contains(&step) && largest < 1e6;
        let decimals = (-(step * 1.000_001).log10().floor()).max(0.0) as usize;
        let digits = ((largest / step).log10().floor()).max(0.0) as usize;
        let label = |value: f64| match plain || value == 0.0 {
            true => number(value, if plain { decimals } else { 0 }),
            false => scientific(value, digits),
        };
        (first..=last).map(|index| index as f64 * step).map(|value| (value, label(value))).collect()
    }

    fn log_ticks(&self, count: usize) -> Vec<(f64, String)> {
        let (low, high) = (self.low.log10(), self.high.log10());
        let decades = high - low;
        if decades < 0.7 {
            return self.even_ticks(count);
        }
        let factors: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = (decades / count.max(1) as f64).ceil().max(1.0) as i32;
        let mut ticks = Vec::new();
        for power in (low.floor() as i32..=high.ceil() as i32).filter(|power| power.rem_euclid(every) == 0) {
            for factor in factors {
                let value = factor * 10f64.powi(power);
                let exact = 1e-9 * value;
                if value >= self.low - exact && value <= self.high + exact {
                    ticks.push((value, power_label(*factor, power)));
                }
            }
        }
        ticks
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is not far below `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= 0.7 * rough).unwrap_or(10.0);
    factor * power
}

fn power_label(factor: f64, power: i32) -> String {
    match power {
        0..=3 => number(factor * 10f64.powi(power), 0),
        -2..0 => number(factor * 10f64.powi(power), power.unsigned_abs() as usize),
        _ if factor == 1.0 => format!("10{}", superscript(&power.to_string())),
        _ => format!("{factor}×10{}", superscript(&power.to_string())),
    }
}

/// The width of the widest label.
pub(super) fn widest<'a>(labels: impl IntoIterator<Item = &'a String>, size: f64) -> f64 {
    labels.into_iter().map(|label| width(label, size)).fold(0.0, f64::max)
}

/// The box that data is drawn in.
#[derive(Clone, Copy)]
pub(super) struct Plot {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Plot {
    /// Draws the axis along the bottom with ticks and a label, and grid lines if `grid`.
    pub(super) fn x_axis(&self, page: &mut Canvas, axis: &Axis, count: usize, label: &str, grid: bool) {
        for (value, text) in axis.ticks(count) {
            let across = axis.at(value);
            if grid {
                page.line((across, self.top), (across, self.bottom), GRID, 0.8);
            }
            page.line((across, self.bottom), (across, self.bottom + 4.0), INK, 0.8);
            page.text((across, self.bottom + 7.0), text, Lettering::new(TICK).soft().middle().below());
        }
        page.line((self.left, self.bottom), (self.right, self.bottom), INK, 0.8);
        let middle = (self.left + self.right) / 2.0;
        page.text((middle, self.bottom + 25.0), label, Lettering::new(LABEL).middle().below());
    }

    /// Draws the axis along the left with ticks, a label `away` pixels to its left, and faint grid lines.
    pub(super) fn y_axis(&self, page: &mut Canvas, axis: &Axis, count: usize, label: &str, away: f64) {
        for (value, text) in axis.ticks(count) {
            let down = axis.at(value);
            page.line((self.left, down), (self.right, down), GRID, 0.8);
            page.line((self.left - 4.0, down), (self.left, down), INK, 0.8);
            page.text((self.left - 7.0, down), text, Lettering::new(TICK).soft().end());
        }
        page.line((self.left, self.top), (self.left, self.bottom), INK, 0.8);
        let at: Point = (self.left - away, (self.top + self.bottom) / 2.0);
        page.text(at, label, Lettering::new(LABEL).middle().turned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, log: bool) -> Vec<String> {
        Axis::new((low, high), log, 0.0, 100.0).ticks(5).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 1.0, false), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(-0.013, 0.02, false), ["−0.010", "−0.005", "0.000", "0.005", "0.010", "0.015", "0.020"]);
        assert_eq!(labels(0.0, 50_000.0, false), ["0", "10000", "20000", "30000", "40000", "50000"]);
        assert_eq!(labels(0.0, 4e-6, false), ["0", "1×10⁻⁶", "2×10⁻⁶", "3×10⁻⁶", "4×10⁻⁶"]);
        assert_eq!(labels(1.0, 1e4, true), ["1", "10", "100", "1000", "10⁴"]);
        assert_eq!(labels(0.1, 1.0, true), ["0.1", "0.2", "0.5", "1"]);
        assert_eq!(labels(1.0, 1e9, true), ["1", "100", "10⁴", "10⁶", "10⁸"]);
    }

    #[test]
    fn ends_map_to_ends_and_one_value_to_the_middle() {
        let axis = Axis::new((1.0, 100.0), true, 10.0, 30.0);
        assert_eq!((axis.at(1.0), axis.at(10.0), axis.at(100.0)), (10.0, 20.0, 30.0));
        assert_eq!(Axis::new((3.0, 3.0), false, 0.0, 10.0).at(3.0), 5.0);
        assert_eq!(Axis::new((0.0, 10.0), false, 0.0, 100.0).padded(0.25).at(5.0), 50.0);
    }
}
