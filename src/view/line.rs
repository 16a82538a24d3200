//! How does a value change along another? Line plots.

use super::axis::{Axis, Plot, TICK, TITLE, widest};
use super::canvas::{Canvas, Lettering, Point};
use super::display::Svg;
use super::palette::{INK, Rgb, SOFT, series};
use super::text::{label, shorten};
use crate::error::{Error, Result};

/// How does a value change with training, depth or size, and how sure is it?
///
/// A series and a band of the same name share a colour. A missing y (NaN) interrupts the line. Names are to the right, at the
/// height where each line ends.
///
/// ```
/// # fn main() -> headscope::Result<()> {
/// use headscope::view::Lines;
/// let picture = Lines::new()
///     .series("induction", &[(1.0, 0.02), (10.0, 0.05), (100.0, 0.81)])
///     .band("induction", &[(1.0, 0.01, 0.03), (10.0, 0.02, 0.09), (100.0, 0.7, 0.9)])
///     .x_label("step")
///     .y_label("score")
///     .log_x()
///     .svg()?;
/// assert!(picture.as_str().contains("induction"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Lines {
    title: String,
    x_label: String,
    y_label: String,
    log_x: bool,
    log_y: bool,
    y_limits: Option<(f64, f64)>,
    series: Vec<(String, Vec<Point>)>,
    bands: Vec<(String, Vec<Range>)>,
    references: Vec<(f64, String)>,
}

/// x with its low and high value.
type Range = (f64, f64, f64);

const WIDTH: f64 = 700.0;
const HEIGHT: f64 = 360.0;
/// The smallest vertical distance between names.
const LEADING: f64 = 15.0;
/// Up to this many points, each is marked.
const MARKED: usize = 24;

impl Lines {
    /// A plot without lines.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line through `(x, y)` in the order given.
    #[must_use]
    pub fn series(mut self, name: impl Into<String>, points: &[(f64, f64)]) -> Self {
        self.series.push((name.into(), points.to_vec()));
        self
    }

    /// Adds a shaded range of `(x, low, high)`, such as a confidence interval.
    #[must_use]
    pub fn band(mut self, name: impl Into<String>, ranges: &[(f64, f64, f64)]) -> Self {
        self.bands.push((name.into(), ranges.to_vec()));
        self
    }

    /// Adds a horizontal line at `y` with its name, such as the value expected by chance.
    #[must_use]
    pub fn reference(mut self, y: f64, name: impl Into<String>) -> Self {
        self.references.push((y, name.into()));
        self
    }

    /// Sets the title.
    #[must_use]
    pub fn title(self, title: impl Into<String>) -> Self {
        Self { title: title.into(), ..self }
    }

    /// Sets what the x axis shows, with its unit.
    #[must_use]
    pub fn x_label(self, label: impl Into<String>) -> Self {
        Self { x_label: label.into(), ..self }
    }

    /// Sets what the y axis shows, with its unit.
    #[must_use]
    pub fn y_label(self, label: impl Into<String>) -> Self {
        Self { y_label: label.into(), ..self }
    }

    /// Makes the x axis logarithmic.
    #[must_use]
    pub fn log_x(self) -> Self {
        Self { log_x: true, ..self }
    }

    /// Makes the y axis logarithmic.
    #[must_use]
    pub fn log_y(self) -> Self {
        Self { log_y: true, ..self }
    }

    /// Shows at least the range `low..=high` on y, such as 0 to 1 for a score; values beyond it extend the axis.
    #[must_use]
    pub fn y_limits(self, low: f64, high: f64) -> Self {
        Self { y_limits: Some((low, high)), ..self }
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Draw`] if there is no point at all, an x is not finite, a y is infinite, a band has its low above its high, or
    /// a value on a logarithmic axis is not above 0.
    pub fn svg(&self) -> Result<Svg> {
        let (x_range, y_range) = (self.range("x", self.log_x, self.xs())?, self.range("y", self.log_y, self.ys())?);
        self.check_bands()?;
        let names = self.names();
        let legend = widest(names.iter().chain(self.references.iter().map(|(_, name)| name)), TICK);
        let y_axis = Axis::new(y_range, self.log_y, 0.0, 1.0).padded(0.04);
        let ticks: Vec<String> = y_axis.ticks(6).into_iter().map(|(_, text)| text).collect();
        let away = widest(&ticks, TICK) + 20.0;
        let plot = Plot {
            left: 14.0 + away,
            top: if self.title.is_empty() { 14.0 } else { 36.0 },
            right: WIDTH - if legend > 0.0 { legend.min(220.0) + 34.0 } else { 14.0 },
            bottom: HEIGHT - 46.0,
        };
        let x_axis = Axis::new(x_range, self.log_x, plot.left, plot.right).padded(0.02);
        let y_axis = y_axis.between(plot.bottom, plot.top);
        let mut page = Canvas::new(WIDTH, HEIGHT, if self.title.is_empty() { "line plot" } else { &self.title });
        page.text((plot.left, 16.0), shorten(&label(&self.title), 90), Lettering::new(TITLE).bold());
        plot.y_axis(&mut page, &y_axis, 6, &label(&self.y_label), away);
        plot.x_axis(&mut page, &x_axis, 7, &label(&self.x_label), false);
        self.draw_data(&mut page, &names, &x_axis, &y_axis);
        self.draw_references(&mut page, &plot, &y_axis);
        self.draw_names(&mut page, &names, &plot, &y_axis);
        page.finish()
    }

    fn xs(&self) -> Vec<f64> {
        let lines = self.series.iter().flat_map(|(_, points)| points.iter().map(|point| point.0));
        let bands = self.bands.iter().flat_map(|(_, ranges)| ranges.iter().map(|range| range.0));
        lines.chain(bands).map(placed).collect()
    }

    fn ys(&self) -> Vec<f64> {
        let lines = self.series.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
        let bands = self.bands.iter().flat_map(|(_, ranges)| ranges.iter().flat_map(|range| [range.1, range.2]));
        let levels = self.references.iter().map(|(y, _)| *y);
        let limits = self.y_limits.iter().flat_map(|(low, high)| [*low, *high]);
        lines.chain(bands).chain(levels.chain(limits).map(placed)).collect()
    }

    fn range(&self, axis: &str, log: bool, values: Vec<f64>) -> Result<(f64, f64)> {
        let draw = |reason: String| Error::Draw { what: "a line plot", reason };
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(|value| !value.is_nan()) {
            if value.is_infinite() {
                return Err(draw(format!("an {axis} is not finite")));
            }
            if log && value <= 0.0 {
                return Err(draw(format!("{axis} is {value}, which a logarithmic axis has no place for")));
            }
            (low, high) = (low.min(value), high.max(value));
        }
        if low <= high { Ok((low, high)) } else { Err(draw("there is no point to draw".to_owned())) }
    }

    fn check_bands(&self) -> Result<()> {
        for (name, ranges) in &self.bands {
            if let Some((x, low, high)) = ranges.iter().find(|(_, low, high)| low > high) {
                let reason = format!("band `{name}` has its low {low} above its high {high} at x = {x}");
                return Err(Error::Draw { what: "a line plot", reason });
            }
        }
        Ok(())
    }

    /// Every name once, as shown, in order of appearance.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in self.series.iter().map(|(name, _)| name).chain(self.bands.iter().map(|(name, _)| name)) {
            let name = shown(name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn draw_data(&self, page: &mut Canvas, names: &[String], x: &Axis, y: &Axis) {
        for (name, ranges) in &self.bands {
            for run in ranges.split(|(_, low, high)| low.is_nan() || high.is_nan()).filter(|run| run.len() > 1) {
                let upper = run.iter().map(|(at, _, high)| (x.at(*at), y.at(*high)));
                let lower = run.iter().rev().map(|(at, low, _)| (x.at(*at), y.at(*low)));
                page.area(upper.chain(lower).collect(), color_of(name, names), 0.18);
            }
        }
        for (name, points) in &self.series {
            let color = color_of(name, names);
            for run in points.split(|point| point.1.is_nan()).filter(|run| !run.is_empty()) {
                let run: Vec<Point> = run.iter().map(|point| (x.at(point.0), y.at(point.1))).collect();
                if points.len() <= MARKED || run.len() == 1 {
                    run.iter().for_each(|point| page.disc(*point, 2.6, color));
                }
                page.path(run, color, 1.6);
            }
        }
    }

    fn draw_references(&self, page: &mut Canvas, plot: &Plot, y: &Axis) {
        for (level, _) in &self.references {
            let down = y.at(*level);
            let mut left = plot.left;
            while left < plot.right {
                page.line((left, down), ((left + 5.0).min(plot.right), down), SOFT, 1.0);
                left += 9.0;
            }
        }
    }

    /// Draws names to the right of the plot, at the heights where their lines end, far enough apart to read.
    fn draw_names(&self, page: &mut Canvas, names: &[String], plot: &Plot, y: &Axis) {
        let mut entries: Vec<(f64, String, Rgb)> = names
            .iter()
            .enumerate()
            .filter(|(_, name)| !name.is_empty())
            .map(|(index, name)| (self.last(name).map_or(plot.top, |last| y.at(last)), name.clone(), series(index)))
            .collect();
        entries.extend(self.references.iter().map(|(level, name)| (y.at(*level), shown(name), SOFT)));
        entries.sort_by(|one, other| one.0.total_cmp(&other.0));
        let leading = LEADING.min((plot.bottom - plot.top) / entries.len().max(1) as f64);
        let wanted: Vec<f64> = entries.iter().map(|entry| entry.0).collect();
        let placed = apart(&wanted, leading, plot.top, plot.bottom);
        for ((_, name, color), down) in entries.into_iter().zip(placed) {
            if color == SOFT {
                page.line((plot.right + 8.0, down), (plot.right + 12.0, down), SOFT, 1.0);
                page.line((plot.right + 16.0, down), (plot.right + 20.0, down), SOFT, 1.0);
            } else {
                page.line((plot.right + 8.0, down), (plot.right + 20.0, down), color, 2.0);
            }
            page.text((plot.right + 25.0, down), name, Lettering::new(TICK).color(INK));
        }
    }

    /// The last finite y of a name.
    fn last(&self, name: &str) -> Option<f64> {
        let lines = self.series.iter().filter(|(own, _)| shown(own) == name).flat_map(|(_, points)| points);
        let bands = self.bands.iter().filter(|(own, _)| shown(own) == name).flat_map(|(_, ranges)| ranges);
        let middle = bands.map(|(_, low, high)| (low + high) / 2.0).rfind(|y| !y.is_nan());
        lines.map(|point| point.1).rfind(|y| !y.is_nan()).or(middle)
    }
}

/// A value that must have a position: a missing one becomes infinite, which is refused.
fn placed(value: f64) -> f64 {
    if value.is_nan() { f64::INFINITY } else { value }
}

fn shown(name: &str) -> String {
    shorten(&label(name), 34)
}

fn color_of(name: &str, names: &[String]) -> Rgb {
    let name = shown(name);
    series(names.iter().position(|own| *own == name).unwrap_or(0))
}

/// Moves ascending heights as little as possible so that they are `leading` apart and within `top..=bottom`.
fn apart(wanted: &[f64], leading: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut placed = wanted.to_vec();
    let mut least = top;
    for height in &mut placed {
        *height = height.max(least);
        least = *height + leading;
    }
    let mut most = bottom;
    for height in placed.iter_mut().rev() {
        *height = height.min(most);
        most = *height - leading;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::assert_well_formed;
    use super::*;

    #[test]
    fn a_missing_value_breaks_the_line() -> Result<()> {
        let picture = Lines::new().series("<s>", &[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 4.0)]).svg()?;
        assert_well_formed(picture.as_str());
        assert!(picture.as_str().contains("&lt;s&gt;"));
        assert_eq!(picture.as_str().matches("<circle").count(), 3);
        Ok(())
    }

    #[test]
    fn a_band_shares_its_series_colour() -> Result<()> {
        let plot = Lines::new().series("a", &[(1.0, 1.0), (2.0, 2.0)]).series("b", &[(1.0, 2.0), (2.0, 1.0)]);
        let picture = plot.band("b", &[(1.0, 1.5, 2.5), (2.0, 0.5, 1.5)]).reference(0.0, "chance").svg()?;
        assert!(picture.as_str().contains("<polygon opacity=\"0.18\" fill=\"#D55E00\""), "{}", picture.as_str());
        assert_eq!(picture.as_str().matches(">b</text>").count(), 1);
        Ok(())
    }

    #[test]
    fn one_point_is_drawn() -> Result<()> {
        assert_well_formed(Lines::new().series("a", &[(5.0, 5.0)]).log_x().log_y().svg()?.as_str());
        Ok(())
    }

    #[test]
    fn what_cannot_be_drawn_says_why() {
        let fails = |plot: Lines, part: &str| {
            let said = plot.svg().map_or_else(|failed| failed.to_string(), |_| String::new());
            assert!(said.contains(part), "{said}");
        };
        fails(Lines::new(), "no point");
        fails(Lines::new().series("a", &[(0.0, f64::NAN)]), "no point");
        fails(Lines::new().series("a", &[(0.0, 1.0)]).log_x(), "x is 0");
        fails(Lines::new().series("a", &[(1.0, f64::INFINITY)]), "y is not finite");
        fails(Lines::new().series("a", &[(f64::NAN, 1.0)]), "x is not finite");
        fails(Lines::new().series("a", &[(1.0, 1.0)]).reference(f64::NAN, "r"), "y is not finite");
        fails(Lines::new().band("a", &[(1.0, 2.0, 1.0)]), "low 2 above its high 1");
    }

    #[test]
    fn names_move_apart_and_stay_inside() {
        assert_eq!(apart(&[10.0, 11.0, 50.0], 15.0, 0.0, 100.0), [10.0, 25.0, 50.0]);
        assert_eq!(apart(&[99.0, 99.0], 15.0, 0.0, 100.0), [85.0, 100.0]);
    }
}
