//! Which token attends to which, head by head? The attention view.

mod grid;

use ndarray::{Array3, ArrayView2, Axis};
use serde::Serialize;

use super::axis::{TICK, TITLE, widest};
use super::canvas::{Canvas, Lettering, Point};
use super::display::{Html, Svg};
use super::palette::{ColorMap, INK, SOFT};
use super::text::{escape, label, shorten, token};
use crate::error::{Error, Result};

/// What does each head attend to?
///
/// [`html`](Self::html) gives an interactive view: thumbnails of all heads, the selected one enlarged, and the tokens shaded by
/// what the token under the pointer attends to and by what attends to it. It works offline, several views fit on a page, and it
/// follows the page's light or dark theme. Without scripts, the thumbnails are a still picture. [`svg`](Self::svg) gives the
/// thumbnails alone, for print.
///
/// # Shapes
/// Patterns are `[head, query, key]` with values from 0 to 1 and one token per key. If there are fewer queries than keys, as in
/// generation with a cache, the queries are the last tokens.
///
/// ```
/// # fn main() -> headscope::Result<()> {
/// use headscope::view::Attention;
/// use ndarray::array;
/// let tokens = vec!["The".to_owned(), " cat".to_owned()];
/// let view = Attention::new(tokens, array![[[1.0, 0.0], [0.25, 0.75]]]).title("a small head").layer(3);
/// assert!(view.html()?.as_str().contains("·cat"));
/// assert!(view.svg()?.as_str().contains("head 3.0"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Attention {
    tokens: Vec<String>,
    patterns: Array3<f64>,
    title: String,
    layer: Option<usize>,
    head_names: Option<Vec<String>>,
}

/// The data for the page's script.
#[derive(Serialize)]
struct Data<'a> {
    title: &'a str,
    tokens: Vec<String>,
    names: &'a [String],
    /// The position of the first query.
    first: usize,
    /// Thousandths, row by row.
    heads: Vec<Vec<u16>>,
}

/// The number of shades in the picture for print; more of them for small values.
const SHADES: f64 = 40.0;
/// The same for the still picture inside a page, where size matters.
const STILL_SHADES: f64 = 16.0;
/// How far rounding may take values above 1.
const SLACK: f64 = 1e-3;

impl Attention {
    /// A view of `[head, query, key]` patterns over `tokens`.
    #[must_use]
    pub fn new(tokens: Vec<String>, patterns: Array3<f64>) -> Self {
        Self { tokens, patterns, title: String::new(), layer: None, head_names: None }
    }

    /// Sets the title.
    #[must_use]
    pub fn title(self, title: impl Into<String>) -> Self {
        Self { title: title.into(), ..self }
    }

    /// Sets the layer of the heads, which are then named `layer.head`.
    #[must_use]
    pub fn layer(self, layer: usize) -> Self {
        Self { layer: Some(layer), ..self }
    }

    /// Sets a name for each head; by default they are the heads of a layer, in order.
    #[must_use]
    pub fn head_names(self, names: Vec<String>) -> Self {
        Self { head_names: Some(names), ..self }
    }

    /// Makes the interactive view.
    ///
    /// # Errors
    /// [`Error::Shape`] if tokens or names do not match the patterns; [`Error::Draw`] if there is no head or query, or a value
    /// is not from 0 to 1.
    pub fn html(&self) -> Result<Html> {
        let names = self.check()?;
        let title = self.full_title();
        let data = Data {
            title: &title,
            tokens: self.tokens.iter().map(|text| token(text)).collect(),
            names: &names,
            first: self.tokens.len() - self.patterns.len_of(Axis(1)),
            heads: self.patterns.outer_iter().map(thousandths).collect(),
        };
        let json = serde_json::to_string(&data)
            .map_err(|failed| Error::Draw { what: "an attention view", reason: failed.to_string() })?;
        let still = data_address(self.thumbnails(STILL_SHADES)?.as_str());
        Ok(Html::new(format!(
            "<div class=\"hs-attention\"><style>{}</style><img class=\"hs-still\" alt=\"{}\" src=\"{still}\">\
             <script type=\"application/json\" class=\"hs-data\">{}</script></div><script>{}</script>",
            include_str!("attention.css"),
            escape(&title),
            inert(&json),
            include_str!("attention.js"),
        )))
    }

    /// Places views side by side, as many as the page is wide: heads of several prompts, runs or models. Each keeps its own
    /// tokens, and is used by itself. Still pictures stand side by side by [`Svg::beside`].
    ///
    /// ```
    /// # fn main() -> headscope::Result<()> {
    /// use headscope::view::Attention;
    /// use ndarray::array;
    /// let one = Attention::new(vec!["a".to_owned(), " b".to_owned()], array![[[1.0, 0.0], [0.5, 0.5]]]);
    /// let other = Attention::new(vec!["The".to_owned()], array![[[1.0]]]).title("another prompt");
    /// assert!(Attention::beside(&[one, other])?.as_str().contains("another prompt"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`html`](Self::html); [`Error::Draw`] if there is no view.
    pub fn beside(views: &[Self]) -> Result<Html> {
        if views.is_empty() {
            return Err(Error::Draw { what: "attention views", reason: "there is none".to_owned() });
        }
        let views = views
            .iter()
            .map(|view| Ok(format!("<div style=\"flex:1 1 420px;min-width:0\">{}</div>", view.html()?.as_str())));
        let views = views.collect::<Result<String>>()?;
        Ok(Html::new(format!(
            "<div style=\"display:flex;flex-wrap:wrap;gap:16px 28px;align-items:flex-start\">{views}</div>"
        )))
    }

    /// Draws all heads as thumbnails: queries downwards, keys to the right, from white for 0 to dark blue for 1.
    ///
    /// # Errors
    /// As [`html`](Self::html).
    pub fn svg(&self) -> Result<Svg> {
        self.thumbnails(SHADES)
    }

    fn thumbnails(&self, shades: f64) -> Result<Svg> {
        let names = self.check()?;
        let layout = Layout::new(self);
        let title = self.full_title();
        let mut page = Canvas::new(layout.width, layout.height, &title);
        page.text((8.0, 16.0), shorten(&title, 70), Lettering::new(TITLE).bold());
        layout.draw_scale(&mut page);
        for (index, (pattern, name)) in self.patterns.outer_iter().zip(&names).enumerate() {
            let (left, top) = layout.place(index);
            let colors = pattern.mapv(|value| ColorMap::Attention.color(shade(value, shades)));
            page.text((left, top - 9.0), shorten(name, 24), Lettering::new(TICK).color(INK));
            page.cells((left, top), layout.cell, colors.view());
            page.frame((left, top), (left + layout.size.0, top + layout.size.1), SOFT, 0.6);
            layout.draw_tokens(&mut page, index, names.len(), self.patterns.len_of(Axis(1)));
        }
        page.finish()
    }

    /// Checks that shapes match, and names the heads.
    fn check(&self) -> Result<Vec<String>> {
        let (heads, queries, keys) = self.patterns.dim();
        let draw = |reason: String| Error::Draw { what: "an attention view", reason };
        if self.patterns.is_empty() {
            return Err(draw(format!("its patterns are empty, {:?}", self.patterns.shape())));
        }
        if keys != self.tokens.len() || queries > keys {
            return Err(Error::Shape {
                at: "patterns".to_owned(),
                expected: format!("[head, query, key] with key = {} tokens and query <= key", self.tokens.len()),
                found: vec![heads as i64, queries as i64, keys as i64],
            });
        }
        if let Some((place, value)) = self.patterns.indexed_iter().find(|(_, v)| !(-SLACK..=1.0 + SLACK).contains(*v)) {
            let (head, query, key) = place;
            return Err(draw(format!(
                "the value at head {head}, query {query}, key {key} is {value}, not from 0 to 1"
            )));
        }
        match &self.head_names {
            Some(names) if names.len() == heads => Ok(names.iter().map(|name| label(name)).collect()),
            Some(names) => Err(Error::Shape {
                at: "head_names".to_owned(),
                expected: format!("[head] = [{heads}]"),
                found: vec![names.len() as i64],
            }),
            None => Ok((0..heads)
                .map(|head| self.layer.map_or_else(|| format!("head {head}"), |layer| format!("head {layer}.{head}")))
                .collect()),
        }
    }

    fn full_title(&self) -> String {
        match (self.title.as_str(), self.layer) {
            ("", None) => "Attention".to_owned(),
            ("", Some(layer)) => format!("Attention in layer {layer}"),
            (title, _) => label(title),
        }
    }
}

/// A pattern in whole thousandths, row by row.
fn thousandths(pattern: ArrayView2<'_, f64>) -> Vec<u16> {
    pattern.iter().map(|value| (value.clamp(0.0, 1.0) * 1000.0).round() as u16).collect()
}

/// The value whose colour represents `value`, with this many shades.
fn shade(value: f64, shades: f64) -> f64 {
    ((value.clamp(0.0, 1.0).sqrt() * shades).round() / shades).powi(2)
}

/// JSON that is safe inside a script element: nothing in it ends the element or a line.
fn inert(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// A picture as a data URL.
fn data_address(source: &str) -> String {
    let mut out = "data:image/svg+xml,".to_owned();
    for byte in source.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'.' | b',' | b'/' | b':' | b'=' | b';' | b'(' | b')' | b'_' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// The positions of the thumbnails, in pixels.
struct Layout {
    columns: usize,
    left: f64,
    top: f64,
    cell: (f64, f64),
    size: (f64, f64),
    letters: f64,
    labels: Vec<String>,
    width: f64,
    height: f64,
}

const WIDTH: f64 = 700.0;
/// The space between thumbnails, across and down.
const GAPS: (f64, f64) = (14.0, 26.0);

impl Layout {
    fn new(view: &Attention) -> Self {
        let (heads, queries, keys) = view.patterns.dim();
        let columns = match heads {
            0..=4 => heads,
            5..=8 => heads.div_ceil(2),
            9..=12 => 4,
            13..=20 => 5,
            _ => 8,
        };
        let labels: Vec<String> = view.tokens.iter().map(|text| shorten(&token(text), 10)).collect();
        let room = (WIDTH - 90.0 - GAPS.0 * (columns - 1) as f64) / columns as f64;
        let edge = room.min(260.0);
        let cell = if edge / keys as f64 > 4.0 { (edge / keys as f64).floor().min(40.0) } else { edge / keys as f64 };
        let size = (cell * keys as f64, cell * queries as f64);
        let letters = (cell - 1.0).clamp(7.5, TICK);
        let margin = widest(&labels, letters) + 10.0;
        let (left, top) = (16.0 + margin, 54.0);
        let rows = heads.div_ceil(columns);
        let width = left + columns as f64 * (size.0 + GAPS.0);
        let height = top + rows as f64 * (size.1 + GAPS.1) - GAPS.1 + margin + 18.0;
        Self { columns, left, top, cell: (cell, cell), size, letters, labels, width: width.max(420.0), height }
    }

    fn place(&self, head: usize) -> Point {
        let (row, column) = (head / self.columns, head % self.columns);
        (self.left + column as f64 * (self.size.0 + GAPS.0), self.top + row as f64 * (self.size.1 + GAPS.1))
    }

    /// Draws the tokens to the left of the first column and below the last head of each column.
    fn draw_tokens(&self, page: &mut Canvas, head: usize, heads: usize, queries: usize) {
        let ((left, top), cell) = (self.place(head), self.cell.0);
        let text = Lettering::new(self.letters).soft();
        let every = ((self.letters + 1.0) / cell).ceil() as usize;
        let keys = self.labels.len();
        if head.is_multiple_of(self.columns) {
            for query in (0..queries).step_by(every) {
                let at = (left - 4.0, top + (query as f64 + 0.5) * cell);
                page.text(at, self.labels[keys - queries + query].as_str(), text.end());
            }
            page.text((9.0, top + self.size.1 / 2.0), "query", Lettering::new(TICK).middle().turned());
        }
        if head + self.columns >= heads {
            for key in (0..keys).step_by(every) {
                let at = (left + (key as f64 + 0.5) * cell, top + self.size.1 + 4.0);
                page.text(at, self.labels[key].as_str(), text.end().turned());
            }
            let below = top + self.size.1 + widest(&self.labels, self.letters) + 10.0;
            page.text((left + self.size.0 / 2.0, below), "key", Lettering::new(TICK).middle().below());
        }
    }

    /// Draws the scale from 0 to 1 at the top right.
    fn draw_scale(&self, page: &mut Canvas) {
        let (wide, steps) = (100.0, 50);
        let (left, top) = (self.width - wide - 26.0, 12.0);
        let strip = ndarray::Array2::from_shape_fn((1, steps), |(_, step)| {
            ColorMap::Attention.color((step as f64 + 0.5) / steps as f64)
        });
        page.cells((left, top), (wide / steps as f64, 9.0), strip.view());
        page.frame((left, top), (left + wide, top + 9.0), SOFT, 0.6);
        page.text((left - 6.0, top + 4.5), "0", Lettering::new(TICK).soft().end());
        page.text((left + wide + 6.0, top + 4.5), "1", Lettering::new(TICK).soft());
    }
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::assert_well_formed;
    use super::*;

    fn causal(heads: usize, tokens: usize) -> Array3<f64> {
        Array3::from_shape_fn((heads, tokens, tokens), |(head, query, key)| {
            let weight = |key: usize| ((head * 7 + query * 3 + key * 5) % 11) as f64 + 0.31;
            if key > query { 0.0 } else { weight(key) / (0..=query).map(weight).sum::<f64>() }
        })
    }

    fn words(count: usize) -> Vec<String> {
        (0..count).map(|index| format!(" word{index}")).collect()
    }

    #[test]
    fn tokens_cannot_leave_their_place() -> Result<()> {
        let tokens = vec!["<script>alert(1)</script>".to_owned(), "</script><!--\u{2028}&\n\"'".to_owned()];
        let view = Attention::new(tokens, causal(1, 2)).title("</style><img src=x onerror=alert(1)>");
        let page = view.html()?;
        let source = page.as_str();
        assert_eq!((source.matches("<script").count(), source.matches("</script").count()), (2, 2));
        assert_eq!((source.matches("<img").count(), source.matches("<!--").count()), (1, 0));
        assert!(!source.contains('\u{2028}'));
        assert!(!inert("\"\u{2028}</script>\"").contains(['<', '>', '\u{2028}']));
        let picture = view.svg()?;
        assert_well_formed(picture.as_str());
        assert!(!picture.as_str().contains("<script"));
        Ok(())
    }

    #[test]
    fn nothing_is_fetched_and_no_id_can_clash() -> Result<()> {
        let page = Attention::new(words(3), causal(2, 3)).html()?;
        let bare = page.as_str().replace("http%3A//www.w3.org", "").replace("http://www.w3.org/2000/svg", "");
        for part in ["http:", "https:", "//cdn", "@import", " id=", "url("] {
            assert!(!bare.contains(part), "{part}");
        }
        Ok(())
    }

    #[test]
    fn twelve_heads_of_thirty_two_tokens_stay_small() -> Result<()> {
        let both_ways = Attention::new(words(32), causal(12, 32).mapv(|value| (value + 0.037) / 2.184));
        assert!(both_ways.html()?.as_str().len() < 120_000, "{:?}", both_ways.html()?);
        let view = Attention::new(words(32), causal(12, 32)).layer(9);
        let (page, picture) = (view.html()?, view.svg()?);
        assert!(page.as_str().len() < 120_000, "{page:?}");
        assert!(picture.size().0 <= 720, "{picture:?}");
        assert_well_formed(picture.as_str());
        Ok(())
    }

    #[test]
    fn views_of_several_prompts_stand_side_by_side() -> Result<()> {
        let views = [Attention::new(words(3), causal(2, 3)), Attention::new(words(5), causal(1, 5)).title("longer")];
        let page = Attention::beside(&views)?;
        let source = page.as_str();
        assert_eq!((source.matches("class=\"hs-attention\"").count(), source.matches("hs-data\">{").count()), (2, 2));
        assert!(source.contains("word4") && source.contains("longer"));
        let opened = source.matches("<div").count();
        assert_eq!(opened, source.matches("</div>").count());
        assert!(Attention::beside(&[]).is_err());
        Ok(())
    }

    #[test]
    fn fewer_queries_than_keys_are_the_last_tokens() -> Result<()> {
        let patterns = Array3::from_elem((1, 1, 3), 1.0 / 3.0);
        let page = Attention::new(words(3), patterns).html()?;
        assert!(page.as_str().contains("\"first\":2,\"heads\":[[333,333,333]]"), "{}", page.as_str());
        Ok(())
    }

    #[test]
    fn sizes_from_one_head_to_many_are_drawn() -> Result<()> {
        for (heads, tokens) in [(1, 1), (2, 5), (7, 3), (16, 20), (32, 64)] {
            let picture = Attention::new(words(tokens), causal(heads, tokens)).svg()?;
            assert_well_formed(picture.as_str());
            assert!(picture.size().0 <= 720, "{heads} heads, {tokens} tokens: {picture:?}");
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_drawn_says_why() {
        let fails = |view: Attention, part: &str| {
            let said = view.html().map_or_else(|failed| failed.to_string(), |_| String::new());
            assert!(said.contains(part), "{said}");
        };
        fails(Attention::new(vec![], Array3::zeros((0, 0, 0))), "empty");
        fails(Attention::new(words(2), causal(1, 3)), "key = 2 tokens");
        fails(Attention::new(words(2), Array3::zeros((1, 3, 2))), "query <= key");
        fails(Attention::new(words(1), Array3::from_elem((1, 1, 1), f64::NAN)), "head 0, query 0, key 0 is NaN");
        fails(Attention::new(words(1), Array3::from_elem((1, 1, 1), 1.5)), "not from 0 to 1");
        fails(Attention::new(words(1), causal(1, 1)).head_names(words(2)), "[head] = [1]");
    }
}
