//! What would the model answer at each depth, and what does each head write? The picture of a lens: a token in each cell.

use std::collections::BTreeMap;

use ndarray::Array2;

use super::axis::{LABEL, TICK, TITLE, widest};
use super::canvas::{Canvas, Lettering, Point};
use super::display::Svg;
use super::palette::{ColorMap, INK, PAPER, SOFT, ink_on};
use super::results::token_ticks;
use super::text::{number, shorten, token, width};
use crate::error::{Error, Result};
use crate::site::Site;
use crate::table::{Observation, Table};

/// Draws a table of [`Lens::top`](crate::intervene::Lens::top) or [`Lens::heads`](crate::intervene::Lens::heads): the token
/// of rank 0 in each cell, positions to the right, depth downwards, heads below each other. Colours show the value: the
/// probability from 0 to 1, or what a head adds to the logit.
///
/// The first prompt of the table is drawn; [`Table::filtered`] chooses another, or some of the layers, heads or positions.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat", "a dog ran"])?;
/// let table = Lens::logit(&model).top(&tokens, 1)?;
/// let second = view::lens(&table.filtered(|row| row.keys.prompt == Some(1))?)?;
/// assert!(second.as_str().contains("resid_pre.1"));
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// [`Error::Draw`] if the table has no tokens by position, or more than 200 rows or 400 columns of cells.
pub fn lens(table: &Table) -> Result<Svg> {
    Grid::new(table)?.svg()
}

/// What a row of cells is about: layer, site and head, in the order of the forward pass.
type Row = (Option<u32>, Option<Site>, Option<u32>);

/// The cells of the picture.
struct Grid {
    title: String,
    /// The metric, for the colour scale.
    metric: String,
    rows: Vec<String>,
    columns: Vec<String>,
    tokens: Array2<String>,
    values: Array2<f64>,
}

/// The most rows and columns of cells.
const MOST: (usize, usize) = (200, 400);
/// The height of a cell, and the size of its letters.
const HIGH: f64 = 19.0;
const LETTERS: f64 = 10.5;

fn wrong(reason: impl Into<String>) -> Error {
    Error::Draw { what: "a lens", reason: reason.into() }
}

impl Grid {
    fn new(table: &Table) -> Result<Self> {
        let mut rows = table.rows()?;
        let complete = |row: &Observation| row.keys.token.is_some() && row.keys.position.is_some();
        rows.retain(|row| complete(row) && row.keys.rank.unwrap_or(0) == 0 && !row.value.is_nan());
        let first = rows.first().ok_or_else(|| wrong("the table has no rows with a token and a position"))?;
        let (prompt, metric) = (first.keys.prompt, first.metric.clone());
        rows.retain(|row| row.keys.prompt == prompt);
        let of = |row: &Observation| -> Row {
            (row.keys.layer, row.keys.site.as_deref().and_then(Site::of_kind), row.keys.head)
        };
        let mut depths: Vec<Row> = rows.iter().map(of).collect();
        depths.sort_unstable();
        depths.dedup();
        let mut positions: Vec<u32> = rows.iter().filter_map(|row| row.keys.position).collect();
        positions.sort_unstable();
        positions.dedup();
        if depths.len() > MOST.0 || positions.len() > MOST.1 {
            let found = format!("{} rows and {} columns of cells", depths.len(), positions.len());
            return Err(wrong(format!("expected at most {} rows and {} columns, found {found}", MOST.0, MOST.1)));
        }
        let ticks = token_ticks(table, "position", prompt);
        let column = |position: &u32| {
            let known = ticks.as_ref().and_then(|ticks| ticks.get(*position as usize).cloned());
            known.unwrap_or_else(|| position.to_string())
        };
        let at: BTreeMap<(Row, Option<u32>), &Observation> =
            rows.iter().map(|row| ((of(row), row.keys.position), row)).collect();
        let cell = |(row, column): (usize, usize)| at.get(&(depths[row], Some(positions[column])));
        let size = (depths.len(), positions.len());
        let text = |place| cell(place).and_then(|row| row.keys.token.clone()).unwrap_or_default();
        let title = match prompt {
            Some(prompt) => format!("{} (prompt {prompt})", what(table)),
            None => what(table),
        };
        Ok(Self {
            title,
            metric,
            rows: depths.iter().map(row_name).collect(),
            columns: positions.iter().map(column).collect(),
            tokens: Array2::from_shape_fn(size, text),
            values: Array2::from_shape_fn(size, |place| cell(place).map_or(f64::NAN, |row| row.value)),
        })
    }

    /// The values at the ends of the colour scale.
    fn ends(&self) -> (f64, f64) {
        if self.metric == "probability" {
            return (0.0, 1.0);
        }
        let known = self.values.iter().copied().filter(|value| !value.is_nan());
        let (low, high) = known.fold((0.0, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
        if high > low { (low, high) } else { (0.0, 1.0) }
    }

    fn svg(&self) -> Result<Svg> {
        let shown = self.tokens.map(|text| shorten(&token(text), 12));
        let widest_token = shown.iter().map(|text| width(text, LETTERS)).fold(0.0, f64::max);
        let wide = (widest_token + 8.0).clamp(30.0, 110.0);
        let columns: Vec<String> = self.columns.iter().map(|name| shorten(name, 16)).collect();
        let turned = widest(&columns, TICK) + 4.0 > wide;
        let left = 30.0 + widest(&self.rows, TICK);
        let (size, top) = ((wide * self.columns.len() as f64, HIGH * self.rows.len() as f64), 46.0);
        let below = if turned { widest(&columns, TICK) + 12.0 } else { 22.0 };
        let page_width = (left + size.0 + 16.0).max(420.0);
        let mut page = Canvas::new(page_width, top + size.1 + below + 24.0, &self.title);
        page.text((8.0, 16.0), shorten(&self.title, 60), Lettering::new(TITLE).bold());
        let (low, high) = self.ends();
        let color = |value: f64| ColorMap::Attention.color((value - low) / (high - low));
        let grid = self.values.mapv(color);
        page.cells((left, top), (wide, HIGH), grid.view());
        for row in 1..self.rows.len() {
            let down = top + row as f64 * HIGH;
            page.line((left, down), (left + size.0, down), PAPER, 1.0);
        }
        for column in 1..self.columns.len() {
            let across = left + column as f64 * wide;
            page.line((across, top), (across, top + size.1), PAPER, 1.0);
        }
        page.frame((left, top), (left + size.0, top + size.1), INK, 0.8);
        for ((row, column), text) in shown.indexed_iter().filter(|(place, _)| !self.values[*place].is_nan()) {
            let at = (left + (column as f64 + 0.5) * wide, top + (row as f64 + 0.5) * HIGH);
            page.text(at, text, Lettering::new(LETTERS).color(ink_on(grid[(row, column)])).middle());
        }
        let text = Lettering::new(TICK).soft();
        for (row, name) in self.rows.iter().enumerate() {
            page.text((left - 6.0, top + (row as f64 + 0.5) * HIGH), name, text.end());
        }
        for (column, name) in columns.iter().enumerate() {
            let at = (left + (column as f64 + 0.5) * wide, top + size.1 + 6.0);
            page.text(at, name, if turned { text.end().turned() } else { text.middle().below() });
        }
        let middle = (left + size.0 / 2.0, top + size.1 + below + 2.0);
        page.text(middle, "position", Lettering::new(LABEL).middle().below());
        self.draw_scale(&mut page, (page_width - 150.0, 32.0), (low, high));
        page.finish()
    }

    /// Draws the colour scale with its ends at the top right.
    fn draw_scale(&self, page: &mut Canvas, (left, top): Point, (low, high): (f64, f64)) {
        let (wide, steps) = (90.0, 45);
        let strip = Array2::from_shape_fn((1, steps), |(_, step)| {
            ColorMap::Attention.color((step as f64 + 0.5) / steps as f64)
        });
        let text = Lettering::new(TICK).soft();
        page.cells((left, top), (wide / steps as f64, 9.0), strip.view());
        page.frame((left, top), (left + wide, top + 9.0), SOFT, 0.6);
        let end = |value: f64| number(value, if value.fract() == 0.0 { 0 } else { 1 });
        page.text((left - 6.0, top + 4.5), format!("{}  {}", self.metric, end(low)), text.end());
        page.text((left + wide + 6.0, top + 4.5), end(high), text);
    }
}

/// `resid_pre.3`, or `3.5` for a head.
fn row_name((layer, site, head): &Row) -> String {
    match (layer, site, head) {
        (Some(layer), _, Some(head)) => format!("{layer}.{head}"),
        (Some(layer), Some(site), None) => site.at_layer(*layer as usize).to_string(),
        (layer, site, _) => {
            site.map_or_else(|| layer.map(|layer| layer.to_string()).unwrap_or_default(), |site| site.kind().to_owned())
        }
    }
}

/// What the table says it is.
fn what(table: &Table) -> String {
    let options = &table.provenance().options["what"];
    match (options["what"].as_str(), options["lens"].as_str()) {
        (Some("what heads write"), _) => "What heads write".to_owned(),
        (_, Some("tuned_lens")) => "Tuned lens".to_owned(),
        _ => "Logit lens".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::assert_well_formed;
    use super::*;
    use crate::table::{Keys, Provenance};

    fn row(layer: u32, site: &str, position: u32, token: &str, value: f64) -> Observation {
        let keys = Keys {
            prompt: Some(2),
            layer: Some(layer),
            site: Some(site.to_owned()),
            position: Some(position),
            rank: Some(0),
            token: Some(token.to_owned()),
            ..Keys::default()
        };
        Observation { keys, metric: "probability".to_owned(), value, ..Observation::default() }
    }

    #[test]
    fn each_cell_has_its_token_in_the_order_of_the_pass() -> Result<()> {
        let mut rows = vec![
            row(0, "resid_pre", 0, " cat", 0.1),
            row(0, "resid_pre", 1, "<b>&", 0.2),
            row(0, "resid_mid", 1, "\n", 0.9),
            row(0, "resid_post", 1, "end", 1.0),
        ];
        let mut second = row(0, "resid_pre", 0, "hidden", 0.0);
        second.keys.rank = Some(1);
        rows.push(second);
        let table = Table::new(rows, Provenance::default())?;
        let grid = Grid::new(&table)?;
        assert_eq!(grid.rows, ["resid_pre.0", "resid_mid.0", "resid_post.0"]);
        assert!(grid.values[(1, 0)].is_nan() && grid.values[(2, 1)] == 1.0);
        let picture = lens(&table)?;
        assert_well_formed(picture.as_str());
        for text in ["·cat", "&lt;b&gt;&amp;", "↵", "end", "prompt 2"] {
            assert!(picture.as_str().contains(text), "{text} is not in {}", picture.as_str());
        }
        assert!(!picture.as_str().contains("hidden"));
        Ok(())
    }

    #[test]
    fn heads_have_rows_of_their_own() -> Result<()> {
        let of = |head: u32, value: f64| {
            let mut row = row(1, "result", 0, "x", value);
            (row.keys.head, row.metric) = (Some(head), "logit".to_owned());
            row
        };
        let grid = Grid::new(&Table::new(vec![of(1, 2.5), of(0, -1.0)], Provenance::default())?)?;
        assert_eq!((grid.rows.clone(), grid.ends()), (vec!["1.0".to_owned(), "1.1".to_owned()], (-1.0, 2.5)));
        assert!(grid.svg()?.as_str().contains("2.5"));
        Ok(())
    }

    #[test]
    fn a_table_without_tokens_says_so() -> Result<()> {
        let mut bare = row(0, "resid_pre", 0, "x", 0.5);
        bare.keys.token = None;
        let failed = lens(&Table::new(vec![bare], Provenance::default())?);
        assert!(matches!(failed, Err(Error::Draw { reason, .. }) if reason.contains("no rows with a token")));
        Ok(())
    }
}
