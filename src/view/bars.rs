//! Which of a few named values is larger? Bar charts.

use super::axis::{Axis, Plot, TICK, TITLE, widest};
use super::canvas::{Canvas, Lettering};
use super::display::Svg;
use super::palette::{INK, PAPER, SOFT, series};
use super::text::{label, number, shorten, width};
use crate::error::{Error, Result};

/// Which of a few named things is larger, and by more than its error?
///
/// Bars are horizontal, the first at the top, and start at 0. A missing value (NaN) keeps its row and is marked as missing.
///
/// ```
/// # fn main() -> headscope::Result<()> {
/// use headscope::view::Bars;
/// let picture = Bars::new()
///     .title("loss without each kind of head")
///     .bar_between("induction", 0.42, 0.35, 0.5)
///     .bar_between("previous token", 0.11, 0.08, 0.15)
///     .reference(0.02, "random heads")
///     .x_label("added loss (nats)")
///     .svg()?;
/// assert!(picture.as_str().contains("previous token"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Bars {
    title: String,
    x_label: String,
    bars: Vec<Bar>,
    references: Vec<(f64, String)>,
    annotate: bool,
}

#[derive(Clone, Debug)]
struct Bar {
    label: String,
    value: f64,
    error: Option<(f64, f64)>,
}

const WIDTH: f64 = 700.0;
const ROW: f64 = 22.0;

impl Bars {
    /// A chart without bars.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a bar from 0 to `value`.
    #[must_use]
    pub fn bar(mut self, label: impl Into<String>, value: f64) -> Self {
        self.bars.push(Bar { label: label.into(), value, error: None });
        self
    }

    /// Adds a bar from 0 to `value` with an error bar from `low` to `high`.
    #[must_use]
    pub fn bar_between(mut self, label: impl Into<String>, value: f64, low: f64, high: f64) -> Self {
        self.bars.push(Bar { label: label.into(), value, error: Some((low, high)) });
        self
    }

    /// Adds a vertical line at `value` with its name, such as the value expected by chance.
    #[must_use]
    pub fn reference(mut self, value: f64, name: impl Into<String>) -> Self {
        self.references.push((value, name.into()));
        self
    }

    /// Sets whether each bar's value is written to its right.
    #[must_use]
    pub fn annotate(self, annotate: bool) -> Self {
        Self { annotate, ..self }
    }

    /// Sets the title.
    #[must_use]
    pub fn title(self, title: impl Into<String>) -> Self {
        Self { title: title.into(), ..self }
    }

    /// Sets what the bars measure, with its unit.
    #[must_use]
    pub fn x_label(self, label: impl Into<String>) -> Self {
        Self { x_label: label.into(), ..self }
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Draw`] if there is no bar, a value is infinite, or an error bar is not finite or has its low above its high.
    pub fn svg(&self) -> Result<Svg> {
        let range = self.range()?;
        let labels: Vec<String> = self.bars.iter().map(|bar| shorten(&label(&bar.label), 36)).collect();
        let values: Vec<String> = self.bars.iter().map(|bar| shown(bar.value, range)).collect();
        let above = if self.references.is_empty() { 0.0 } else { 18.0 };
        let top = above + if self.title.is_empty() { 12.0 } else { 34.0 };
        let plot = Plot {
            left: 20.0 + widest(&labels, TICK),
            top,
            right: WIDTH - 20.0 - if self.annotate { widest(&values, TICK) + 8.0 } else { 0.0 },
            bottom: top + ROW * self.bars.len() as f64 + 4.0,
        };
        let axis = Axis::new(range, false, plot.left, plot.right);
        let name = if self.title.is_empty() { "bars" } else { &self.title };
        let mut page = Canvas::new(WIDTH, plot.bottom + if self.x_label.is_empty() { 26.0 } else { 46.0 }, name);
        page.text((12.0, 16.0), shorten(&label(&self.title), 90), Lettering::new(TITLE).bold());
        plot.x_axis(&mut page, &axis, 6, &label(&self.x_label), true);
        for (row, bar) in self.bars.iter().enumerate() {
            let down = plot.top + 2.0 + ROW * (row as f64 + 0.5);
            page.text((plot.left - 8.0, down), labels[row].as_str(), Lettering::new(TICK).end());
            bar.draw(&mut page, &axis, down);
            if self.annotate {
                page.text((plot.right + 8.0, down), values[row].as_str(), Lettering::new(TICK).soft());
            }
        }
        let zero = axis.at(0.0);
        page.line((zero, plot.top), (zero, plot.bottom), INK, 0.8);
        self.draw_references(&mut page, &plot, &axis);
        for (row, _) in self.bars.iter().enumerate().filter(|(_, bar)| bar.value.is_nan()) {
            let (left, down) = (zero + 5.0, plot.top + 2.0 + ROW * (row as f64 + 0.5));
            page.rectangle((left, down - 7.0), (left + width("missing", TICK), down + 7.0), PAPER);
            page.text((left + 1.0, down), "missing", Lettering::new(TICK).soft());
        }
        page.finish()
    }

    /// The range from the smallest to the largest of 0, values, errors and references.
    fn range(&self) -> Result<(f64, f64)> {
        let draw = |reason: String| Error::Draw { what: "bars", reason };
        if self.bars.is_empty() {
            return Err(draw("there is no bar to draw".to_owned()));
        }
        let (mut low, mut high) = (0f64, 0f64);
        for bar in &self.bars {
            let (from, to) = bar.error.unwrap_or((0.0, 0.0));
            if bar.value.is_infinite() || !from.is_finite() || !to.is_finite() || from > to {
                return Err(draw(format!("bar `{}` has value {}, error {from} to {to}", bar.label, bar.value)));
            }
            // `f64::min` ignores a missing value.
            (low, high) = (low.min(bar.value).min(from), high.max(bar.value).max(to));
        }
        for (value, name) in &self.references {
            if !value.is_finite() {
                return Err(draw(format!("reference `{name}` is {value}")));
            }
            (low, high) = (low.min(*value), high.max(*value));
        }
        let margin = 0.04 * (high - low);
        Ok((if low < 0.0 { low - margin } else { 0.0 }, if high > 0.0 || low == 0.0 { high + margin } else { 0.0 }))
    }

    /// Draws dashed lines, with their names above the plot.
    fn draw_references(&self, page: &mut Canvas, plot: &Plot, axis: &Axis) {
        for (value, name) in &self.references {
            let across = axis.at(*value);
            let mut top = plot.top;
            while top < plot.bottom {
                page.line((across, top), (across, (top + 5.0).min(plot.bottom)), SOFT, 1.0);
                top += 9.0;
            }
            let name = label(name);
            let half = width(&name, TICK) / 2.0;
            let middle = across.clamp(half.min(WIDTH / 2.0), (WIDTH - half).max(WIDTH / 2.0));
            page.text((middle, plot.top - 9.0), name, Lettering::new(TICK).soft().middle());
        }
    }
}

impl Bar {
    fn draw(&self, page: &mut Canvas, axis: &Axis, down: f64) {
        if self.value.is_nan() {
            return;
        }
        let (from, to) = (axis.at(self.value.min(0.0)), axis.at(self.value.max(0.0)));
        page.rectangle((from, down - 7.0), (to, down + 7.0), series(0));
        if let Some((low, high)) = self.error {
            let (low, high) = (axis.at(low), axis.at(high));
            page.line((low, down), (high, down), INK, 1.1);
            for end in [low, high] {
                page.line((end, down - 3.5), (end, down + 3.5), INK, 1.1);
            }
        }
    }
}

/// A value with two significant digits of the range that it is in.
fn shown(value: f64, (low, high): (f64, f64)) -> String {
    let reach = low.abs().max(high.abs()).max(f64::MIN_POSITIVE);
    let decimals = (1.0 - reach.log10().floor()).clamp(0.0, 6.0) as usize;
    if value.is_nan() { "–".to_owned() } else { number(value, decimals) }
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::assert_well_formed;
    use super::*;

    #[test]
    fn labels_are_escaped_and_missing_is_said() -> Result<()> {
        let picture = Bars::new().bar("</svg>", -1.0).bar("b", f64::NAN).annotate(true).reference(0.5, "<&>").svg()?;
        assert_well_formed(picture.as_str());
        for text in ["&lt;/svg&gt;", "&lt;&amp;&gt;", ">missing<", ">−1.0<"] {
            assert!(picture.as_str().contains(text), "{text} is not in {}", picture.as_str());
        }
        Ok(())
    }

    #[test]
    fn values_of_nought_are_drawn() -> Result<()> {
        assert_well_formed(Bars::new().bar("a", 0.0).svg()?.as_str());
        Ok(())
    }

    #[test]
    fn what_cannot_be_drawn_says_why() {
        assert!(matches!(Bars::new().svg(), Err(Error::Draw { reason, .. }) if reason.contains("no bar")));
        for bars in [
            Bars::new().bar("a", f64::INFINITY),
            Bars::new().bar_between("a", 1.0, 2.0, 1.5),
            Bars::new().bar_between("a", 1.0, f64::NAN, 1.5),
        ] {
            assert!(matches!(bars.svg(), Err(Error::Draw { reason, .. }) if reason.contains("bar `a`")));
        }
        assert!(Bars::new().bar("a", 1.0).reference(f64::NAN, "r").svg().is_err());
    }
}
