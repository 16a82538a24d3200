//! Where in a grid is a value large? Heat maps.

mod colors;
mod layout;

use ndarray::Array2;

use self::colors::Colors;
use self::layout::Layout;
use super::axis::{LABEL, TICK, TITLE, widest};
use super::canvas::{Canvas, Lettering};
use super::display::Svg;
use super::palette::{ColorMap, INK, PAPER, ink_on};
use super::text::{label, number, shorten};
use crate::error::{Error, Result};

/// Where in a grid is a value large: in which layer and head, at which site and position?
///
/// Missing values (NaN) are grey, and their number is written beside the picture. By default the colours follow the data:
/// diverging around 0 if both signs occur, otherwise sequential. [`diverging`](Self::diverging) and
/// [`sequential`](Self::sequential) choose.
///
/// # Shapes
/// Values are `[row, column]`. Row 0 is at the top, as in a printed table, unless [`bottom_up`](Self::bottom_up) is called.
///
/// ```
/// # fn main() -> headscope::Result<()> {
/// use headscope::view::Heatmap;
/// use ndarray::array;
/// let picture = Heatmap::new(array![[0.1, -0.4], [f64::NAN, 0.9]])
///     .title("effect of each head")
///     .x_label("head")
///     .y_label("layer")
///     .unit("nats")
///     .svg()?;
/// assert!(picture.as_str().contains("missing (1)"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Heatmap {
    values: Array2<f64>,
    title: String,
    x_label: String,
    y_label: String,
    x_ticks: Option<Vec<String>>,
    y_ticks: Option<Vec<String>>,
    unit: String,
    map: Option<ColorMap>,
    limits: Option<(f64, f64)>,
    annotate: bool,
    bottom_up: bool,
}

impl Heatmap {
    /// A heat map of `[row, column]` values.
    #[must_use]
    pub fn new(values: Array2<f64>) -> Self {
        Self {
            values,
            title: String::new(),
            x_label: String::new(),
            y_label: String::new(),
            x_ticks: None,
            y_ticks: None,
            unit: String::new(),
            map: None,
            limits: None,
            annotate: false,
            bottom_up: false,
        }
    }

    /// Sets the title.
    #[must_use]
    pub fn title(self, title: impl Into<String>) -> Self {
        Self { title: title.into(), ..self }
    }

    /// Sets what the columns are.
    #[must_use]
    pub fn x_label(self, label: impl Into<String>) -> Self {
        Self { x_label: label.into(), ..self }
    }

    /// Sets what the rows are.
    #[must_use]
    pub fn y_label(self, label: impl Into<String>) -> Self {
        Self { y_label: label.into(), ..self }
    }

    /// Sets a label for every column; by default their indices from 0.
    #[must_use]
    pub fn x_ticks(self, ticks: Vec<String>) -> Self {
        Self { x_ticks: Some(ticks), ..self }
    }

    /// Sets a label for every row; by default their indices from 0.
    #[must_use]
    pub fn y_ticks(self, ticks: Vec<String>) -> Self {
        Self { y_ticks: Some(ticks), ..self }
    }

    /// Uses blue below 0, white at 0, red above, with the same range on both sides.
    #[must_use]
    pub fn diverging(self) -> Self {
        Self { map: Some(ColorMap::Diverging), ..self }
    }

    /// Uses perceptually even steps from the smallest to the largest value.
    #[must_use]
    pub fn sequential(self) -> Self {
        Self { map: Some(ColorMap::Sequential), ..self }
    }

    /// Sets the values at the ends of the colour scale, so that pictures can be compared. Values outside get the colour of the
    /// nearer end, and their number is written beside the picture. With diverging colours the larger limit applies to both
    /// sides.
    #[must_use]
    pub fn limits(self, low: f64, high: f64) -> Self {
        Self { limits: Some((low, high)), ..self }
    }

    /// Sets whether each cell shows its value; cells are widened to fit.
    #[must_use]
    pub fn annotate(self, annotate: bool) -> Self {
        Self { annotate, ..self }
    }

    /// Puts row 0 at the bottom, like layer 0 in a drawing of a model.
    #[must_use]
    pub fn bottom_up(self) -> Self {
        Self { bottom_up: true, ..self }
    }

    /// Sets the unit of the values, shown above the colour bar.
    #[must_use]
    pub fn unit(self, unit: impl Into<String>) -> Self {
        Self { unit: unit.into(), ..self }
    }

    /// Draws the picture.
    ///
    /// # Errors
    /// [`Error::Draw`] if there are no values, one is infinite, all are missing, or the limits are not finite and ascending;
    /// [`Error::Shape`] if the number of ticks is not that of the rows or columns.
    pub fn svg(&self) -> Result<Svg> {
        let colors = Colors::new(self)?;
        let (rows, columns) = self.values.dim();
        let x_ticks = labels("x_ticks", self.x_ticks.as_deref(), columns, "column")?;
        let y_ticks = labels("y_ticks", self.y_ticks.as_deref(), rows, "row")?;
        let layout = Layout::new(self, &colors, &x_ticks, &y_ticks);
        let name = if self.title.is_empty() { "heat map" } else { &self.title };
        let mut page = Canvas::new(layout.width, layout.height, name);
        let title = shorten(&label(&self.title), 100);
        page.text((layout.left, 16.0), title, Lettering::new(TITLE).bold());
        self.draw_cells(&mut page, &layout, &colors);
        self.draw_ticks(&mut page, &layout, &x_ticks, &y_ticks);
        colors.draw_bar(&mut page, &layout, &self.unit);
        page.finish()
    }

    /// The value of a cell as text, with enough decimals to tell the cells apart.
    fn shown(&self, value: f64) -> String {
        let largest = self.values.iter().filter(|v| !v.is_nan()).fold(0.0, |largest: f64, v| largest.max(v.abs()));
        let whole = self.values.iter().all(|v| v.is_nan() || v.fract() == 0.0);
        let decimals = if whole || largest >= 100.0 {
            0
        } else if largest >= 10.0 {
            1
        } else if largest >= 0.1 || largest == 0.0 {
            2
        } else {
            ((-largest.log10()).ceil() as usize + 1).min(6)
        };
        if value.is_nan() { "–".to_owned() } else { number(value, decimals) }
    }

    fn draw_cells(&self, page: &mut Canvas, layout: &Layout, colors: &Colors) {
        let mut grid = self.values.mapv(|value| colors.color(value));
        if self.bottom_up {
            grid.invert_axis(ndarray::Axis(0));
        }
        let (rows, columns) = grid.dim();
        let (wide, high) = layout.cell;
        page.cells((layout.left, layout.top), layout.cell, grid.view());
        if wide.min(high) >= 14.0 {
            for row in 1..rows {
                let down = layout.top + row as f64 * high;
                page.line((layout.left, down), (layout.right(), down), PAPER, 1.0);
            }
            for column in 1..columns {
                let across = layout.left + column as f64 * wide;
                page.line((across, layout.top), (across, layout.bottom()), PAPER, 1.0);
            }
        }
        page.frame((layout.left, layout.top), (layout.right(), layout.bottom()), INK, 0.8);
        if self.annotate {
            for ((row, column), value) in self.values.indexed_iter() {
                let at = (layout.left + (column as f64 + 0.5) * wide, layout.top + (self.place(row) + 0.5) * high);
                let ink = ink_on(colors.color(*value));
                page.text(at, self.shown(*value), Lettering::new(layout.letters).color(ink).middle());
            }
        }
    }

    fn draw_ticks(&self, page: &mut Canvas, layout: &Layout, x_ticks: &[String], y_ticks: &[String]) {
        let (wide, high) = layout.cell;
        let text = Lettering::new(TICK).soft();
        let lines =
            |labels: &[String], cell: f64| ((TICK + 2.0) / cell).ceil().max(1.0).min(labels.len() as f64) as usize;
        let every = if layout.turned {
            lines(x_ticks, wide)
        } else {
            ((widest(x_ticks, TICK) + 5.0) / wide).ceil().max(1.0) as usize
        };
        for (column, label) in x_ticks.iter().enumerate().step_by(round_up(every)) {
            let at = (layout.left + (column as f64 + 0.5) * wide, layout.bottom() + 6.0);
            page.text(at, label, if layout.turned { text.end().turned() } else { text.middle().below() });
        }
        for (row, label) in y_ticks.iter().enumerate().step_by(round_up(lines(y_ticks, high))) {
            let at = (layout.left - 6.0, layout.top + (self.place(row) + 0.5) * high);
            page.text(at, label, text.end());
        }
        let (middle, center) = ((layout.left + layout.right()) / 2.0, (layout.top + layout.bottom()) / 2.0);
        let below = layout.bottom() + layout.tick_height + 10.0;
        page.text((middle, below), label(&self.x_label), Lettering::new(LABEL).middle().below());
        page.text((12.0, center), label(&self.y_label), Lettering::new(LABEL).middle().turned());
    }

    /// How many rows are above this one.
    fn place(&self, row: usize) -> f64 {
        (if self.bottom_up { self.values.nrows() - 1 - row } else { row }) as f64
    }
}

/// The given labels, shortened, or the indices from 0.
fn labels(at: &str, given: Option<&[String]>, count: usize, axis: &str) -> Result<Vec<String>> {
    match given {
        None => Ok((0..count).map(|index| index.to_string()).collect()),
        Some(ticks) if ticks.len() == count => Ok(ticks.iter().map(|tick| shorten(&label(tick), 24)).collect()),
        Some(ticks) => Err(Error::Shape {
            at: at.to_owned(),
            expected: format!("[{axis}] = [{count}]"),
            found: vec![ticks.len() as i64],
        }),
    }
}

/// The next number that is easy to count by.
fn round_up(every: usize) -> usize {
    [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100].into_iter().find(|round| *round >= every).unwrap_or(every)
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::assert_well_formed;
    use super::*;
    use ndarray::array;

    #[test]
    fn markup_in_labels_stays_text() -> Result<()> {
        let ticks = vec!["<s>".to_owned(), " & \n".to_owned()];
        let map = Heatmap::new(array![[0.0, 1.0]]).title("a < b").x_ticks(ticks).unit("nats").annotate(true);
        let picture = map.svg()?;
        assert_well_formed(picture.as_str());
        for text in ["&lt;s&gt;", "&amp; ↵", "a &lt; b", "nats", ">1<"] {
            assert!(picture.as_str().contains(text), "{text} is not in {}", picture.as_str());
        }
        Ok(())
    }

    #[test]
    fn missing_values_are_grey_and_counted() -> Result<()> {
        let picture = Heatmap::new(array![[f64::NAN, 1.0], [f64::NAN, -1.0]]).svg()?;
        assert!(picture.as_str().contains("missing (2)") && picture.as_str().contains("#b8b8b8"));
        Ok(())
    }

    #[test]
    fn row_nought_is_where_it_was_asked_for() -> Result<()> {
        let map = Heatmap::new(array![[0.0], [1.0]]).sequential();
        let (top, bottom) = (map.svg()?, map.bottom_up().svg()?);
        assert!(top.as_str().contains("stroke=\"#440154\" d=\"M0,0h1\""));
        assert!(bottom.as_str().contains("stroke=\"#440154\" d=\"M0,1h1\""));
        Ok(())
    }

    #[test]
    fn sizes_from_one_cell_to_many_fit_a_page() -> Result<()> {
        for (rows, columns) in [(1, 1), (6, 12), (64, 64), (1, 100), (48, 25)] {
            let values = Array2::from_shape_fn((rows, columns), |(row, column)| (row * column) as f64);
            let picture = Heatmap::new(values).title("t").x_label("x").y_label("y").svg()?;
            assert!(picture.size().0 <= 700 && picture.size().1 <= 720, "{rows} x {columns}: {picture:?}");
            assert!(picture.as_str().len() < 120_000, "{picture:?}");
        }
        Ok(())
    }

    #[test]
    fn limits_hold_the_colours_and_count_what_lies_beyond() -> Result<()> {
        let picture = Heatmap::new(array![[0.0, 0.5, 9.0]]).limits(0.0, 1.0).svg()?;
        assert!(picture.as_str().contains("beyond ends (1)"));
        assert!(Heatmap::new(array![[0.0]]).limits(1.0, 1.0).svg().is_err());
        Ok(())
    }

    #[test]
    fn what_cannot_be_drawn_says_why() {
        let reason = |values: Array2<f64>| match Heatmap::new(values).svg() {
            Err(Error::Draw { reason, .. }) => reason,
            other => format!("{other:?}"),
        };
        assert_eq!(reason(Array2::zeros((0, 3))), "its values are empty, [0, 3]");
        assert_eq!(reason(array![[0.0, f64::INFINITY]]), "the value at row 0, column 1 is inf");
        assert_eq!(reason(array![[f64::NAN]]), "every value is missing");
        let ticks = Heatmap::new(array![[1.0, 2.0]]).x_ticks(vec!["a".to_owned()]).svg();
        assert!(matches!(ticks, Err(Error::Shape { found, .. }) if found == [1]));
    }
}
