//! How does a picture become SVG? Shapes are collected in pixels and rendered by plotters at a tenth of a pixel.
//!
//! Text and axes have no colour of their own but that of the page around the picture (`currentColor`), and the paper is
//! transparent, so that pictures suit light and dark themes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};
use plotters::backend::{DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, FontStyle, FontTransform, IntoFont as _, RGBAColor, TextStyle};

use super::display::Svg;
use super::palette::{GRID, INK, PAPER, Rgb, SOFT};
use crate::error::{Error, Result};

/// plotters works in whole units, so a unit is a tenth of a pixel.
const UNITS: u32 = 10;

/// The colour of a cell whose value is none, not that of the paper.
const WHITE: Rgb = [0xff, 0xff, 0xff];

/// A point on the page, in pixels from the top left.
pub(super) type Point = (f64, f64);

/// Which part of a text is at its point, along it.
#[derive(Clone, Copy)]
pub(super) enum Across {
    Start,
    Middle,
    End,
}

/// Which part of a text is at its point, across it.
#[derive(Clone, Copy)]
pub(super) enum Down {
    Center,
    Top,
}

/// The style of a text.
#[derive(Clone, Copy)]
pub(super) struct Lettering {
    pub(super) size: f64,
    pub(super) color: Rgb,
    pub(super) bold: bool,
    pub(super) turned: bool,
    pub(super) across: Across,
    pub(super) down: Down,
}

impl Lettering {
    /// Horizontal text of `size` pixels that starts at its point, vertically centred.
    pub(super) fn new(size: f64) -> Self {
        Self { size, color: INK, bold: false, turned: false, across: Across::Start, down: Down::Center }
    }

    pub(super) fn color(self, color: Rgb) -> Self {
        Self { color, ..self }
    }

    pub(super) fn soft(self) -> Self {
        self.color(SOFT)
    }

    pub(super) fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    /// Rotated, to be read from bottom to top.
    pub(super) fn turned(self) -> Self {
        Self { turned: true, ..self }
    }

    pub(super) fn middle(self) -> Self {
        Self { across: Across::Middle, ..self }
    }

    pub(super) fn end(self) -> Self {
        Self { across: Across::End, ..self }
    }

    pub(super) fn below(self) -> Self {
        Self { down: Down::Top, ..self }
    }

    fn pos(self) -> Pos {
        let across = match self.across {
            Across::Start => HPos::Left,
            Across::Middle => HPos::Center,
            Across::End => HPos::Right,
        };
        let down = match self.down {
            Down::Center => VPos::Center,
            Down::Top => VPos::Top,
        };
        Pos::new(across, down)
    }
}

pub(super) enum Shape {
    Path { points: Vec<Point>, color: Rgb, width: f64 },
    Area { points: Vec<Point>, color: Rgb, opacity: f64 },
    Disc { center: Point, radius: f64, color: Rgb },
    Text { at: Point, text: String, lettering: Lettering },
}

/// A matrix of coloured cells: where its first is, the size of each, and the colours.
pub(super) struct Cells {
    pub(super) at: Point,
    pub(super) size: (f64, f64),
    pub(super) colors: Array2<Rgb>,
}

/// What is on a page. Cells are at the back; other shapes are drawn in the order in which they were added.
#[derive(Default)]
pub(super) struct Drawing {
    pub(super) cells: Vec<Cells>,
    pub(super) shapes: Vec<Shape>,
}

/// A page of fixed size.
pub(super) struct Canvas {
    width: f64,
    height: f64,
    name: String,
    drawing: Drawing,
}

impl Canvas {
    /// An empty page; `name` is its text for screen readers.
    pub(super) fn new(width: f64, height: f64, name: &str) -> Self {
        Self { width, height, name: super::text::label(name), drawing: Drawing::default() }
    }

    pub(super) fn line(&mut self, from: Point, to: Point, color: Rgb, width: f64) {
        self.path(vec![from, to], color, width);
    }

    pub(super) fn path(&mut self, points: Vec<Point>, color: Rgb, width: f64) {
        self.drawing.shapes.push(Shape::Path { points, color, width });
    }

    pub(super) fn area(&mut self, points: Vec<Point>, color: Rgb, opacity: f64) {
        self.drawing.shapes.push(Shape::Area { points, color, opacity });
    }

    pub(super) fn rectangle(&mut self, (left, top): Point, (right, bottom): Point, color: Rgb) {
        self.area(vec![(left, top), (right, top), (right, bottom), (left, bottom)], color, 1.0);
    }

    /// Adds the outline of a box.
    pub(super) fn frame(&mut self, (left, top): Point, (right, bottom): Point, color: Rgb, width: f64) {
        self.path(vec![(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], color, width);
    }

    pub(super) fn disc(&mut self, center: Point, radius: f64, color: Rgb) {
        self.drawing.shapes.push(Shape::Disc { center, radius, color });
    }

    pub(super) fn text(&mut self, at: Point, text: impl Into<String>, lettering: Lettering) {
        let text = text.into();
        if !text.is_empty() {
            self.drawing.shapes.push(Shape::Text { at, text, lettering });
        }
    }

    /// Adds a matrix of coloured cells, row 0 at the top.
    pub(super) fn cells(&mut self, at: Point, size: (f64, f64), colors: ArrayView2<'_, Rgb>) {
        self.drawing.cells.push(Cells { at, size, colors: colors.to_owned() });
    }

    /// Renders the page.
    pub(super) fn finish(self) -> Result<Svg> {
        let (width, height) = (self.width.ceil() as u32, self.height.ceil() as u32);
        let mut drawn = String::new();
        let mut backend = SVGBackend::with_string(&mut drawn, (width * UNITS, height * UNITS));
        self.drawing.shapes.iter().try_for_each(|shape| shape.draw(&mut backend))?;
        backend.present().map_err(refused)?;
        drop(backend);
        let inner = drawn.split_once('>').map_or("", |(_, rest)| rest).trim_end();
        let inner = themed(&inner.strip_suffix("</svg>").unwrap_or(inner).replace('\n', ""));
        let cells: String = self.drawing.cells.iter().map(Cells::svg).collect();
        Ok(Svg::wrap(
            &format!("{cells}{inner}"),
            (width, height),
            UNITS,
            &self.name,
            vec![((0, 0), Arc::new(self.drawing))],
        ))
    }
}

/// Gives text and axes the colour of the page around the picture, and lets the page show through paper: areas are not drawn,
/// and lines between cells are faint.
fn themed(drawn: &str) -> String {
    let mut themed = drawn.replace(" opacity=\"1\"", "");
    for (attribute, paper) in [("fill", "none\""), ("stroke", "#fff\" stroke-opacity=\".6\"")] {
        let plain = |[red, green, blue]: Rgb| format!("{attribute}=\"#{red:02X}{green:02X}{blue:02X}\"");
        let ink = format!("{attribute}=\"currentColor\"");
        themed = themed
            .replace(&plain(INK), &ink)
            .replace(&plain(SOFT), &ink)
            .replace(&plain(GRID), &format!("{ink} {attribute}-opacity=\".14\""))
            .replace(&plain(PAPER), &format!("{attribute}=\"{paper}"));
    }
    themed
}

impl Cells {
    /// A white ground, over it a stroke for each run of one colour, and none for white, which keeps twelve heads of 32 x 32
    /// small.
    fn svg(&self) -> String {
        // For each colour: the path so far, and the row and column where it ends.
        let mut strokes: BTreeMap<Rgb, (String, (usize, usize))> = BTreeMap::new();
        for (row, line) in self.colors.rows().into_iter().enumerate() {
            let mut start = 0;
            for (column, color) in line.iter().enumerate() {
                if line.get(column + 1) != Some(color) {
                    let (path, pen) = strokes.entry(*color).or_default();
                    // Writing to a string cannot fail.
                    let _ = match pen {
                        (at, end) if *at == row && !path.is_empty() => write!(path, "m{},0", start - *end),
                        _ => write!(path, "M{start},{row}"),
                    };
                    let _ = write!(path, "h{}", column + 1 - start);
                    *pen = (row, column + 1);
                    start = column + 1;
                }
            }
        }
        let (rows, columns) = self.colors.dim();
        let ((left, top), (wide, high)) = (self.at, self.size);
        let (across, down) = place((left, top + high / 2.0));
        let (wide, high) = (wide * f64::from(UNITS), high * f64::from(UNITS));
        let mut group = format!(
            "<g fill=\"none\" shape-rendering=\"crispEdges\" transform=\"translate({across} {down}) scale({wide:.4} {high:.4})\">"
        );
        if strokes.remove(&WHITE).is_some() {
            let _ = write!(group, "<path fill=\"#fff\" d=\"M0,-.5h{columns}v{rows}h-{columns}z\"/>");
        }
        for ([red, green, blue], (path, _)) in strokes {
            let _ = write!(group, "<path stroke=\"#{red:02x}{green:02x}{blue:02x}\" d=\"{path}\"/>");
        }
        group + "</g>"
    }
}

impl Shape {
    fn draw<B: DrawingBackend>(&self, backend: &mut B) -> Result<()> {
        let outcome = match self {
            Self::Path { points, color, width } => {
                let style = ink(*color, 1.0).stroke_width(tenths(*width).unsigned_abs());
                backend.draw_path(points.iter().map(|point| place(*point)), &style)
            }
            Self::Area { points, color, opacity } => {
                backend.fill_polygon(points.iter().map(|point| place(*point)), &ink(*color, *opacity))
            }
            Self::Disc { center, radius, color } => {
                backend.draw_circle(place(*center), tenths(*radius).unsigned_abs(), &ink(*color, 1.0), true)
            }
            Self::Text { at, text, lettering } => {
                let weight = if lettering.bold { FontStyle::Bold } else { FontStyle::Normal };
                // The backend divides by 1.24 to turn a line height into a font size.
                let size = lettering.size * f64::from(UNITS) * 1.24;
                let color = ink(lettering.color, 1.0);
                let turn = if lettering.turned { FontTransform::Rotate270 } else { FontTransform::None };
                let style = TextStyle::from(("sans-serif", size, weight).into_font())
                    .color(&color)
                    .transform(turn)
                    .pos(lettering.pos());
                backend.draw_text(text, &style, place(*at))
            }
        };
        outcome.map_err(refused)
    }
}

fn refused(reason: impl std::fmt::Display) -> Error {
    Error::Draw { what: "a picture", reason: reason.to_string() }
}

fn ink([red, green, blue]: Rgb, opacity: f64) -> RGBAColor {
    RGBAColor(red, green, blue, opacity)
}

fn place((across, down): Point) -> (i32, i32) {
    (tenths(across), tenths(down))
}

fn tenths(pixels: f64) -> i32 {
    (pixels * f64::from(UNITS)).round() as i32
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::palette::ink_on;
    use super::*;
    use ndarray::array;

    /// Checks that `source` is well-formed: tags nest, attributes are quoted, text has no bare markup or control characters.
    pub(crate) fn assert_well_formed(source: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = source;
        while let Some(start) = rest.find('<') {
            assert_text(&rest[..start]);
            let length = rest[start..].find('>');
            assert!(length.is_some(), "unclosed tag in {rest}");
            let end = start + length.unwrap_or(0);
            let tag = &rest[start + 1..end];
            assert!(!tag.contains('<'), "markup inside <{tag}>");
            assert_eq!(tag.matches('"').count() % 2, 0, "unquoted attribute in <{tag}>");
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or("");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "wrong closing tag");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            rest = &rest[end + 1..];
        }
        assert_text(rest);
        assert!(open.is_empty(), "left open: {open:?}");
    }

    fn assert_text(text: &str) {
        assert!(!text.contains('>'), "bare > in {text}");
        let control = |c: char| c.is_control() && c != '\n';
        assert!(!text.chars().any(control), "control character in {text:?}");
        for part in text.split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;", "quot;", "apos;", "#39;"];
            assert!(known.iter().any(|entity| part.starts_with(entity)), "bare & in {text}");
        }
    }

    #[test]
    fn every_shape_is_well_formed() -> Result<()> {
        let mut page = Canvas::new(50.0, 20.5, "a <b> & \"c\"");
        page.line((0.0, 0.0), (9.0, 9.0), INK, 0.5);
        page.rectangle((1.0, 1.0), (2.0, 2.0), INK);
        page.disc((3.0, 3.0), 1.0, INK);
        page.text((1.0, 1.0), "<s> & ]]> 'x'", Lettering::new(9.0).bold().turned());
        page.cells((0.0, 0.0), (5.0, 5.0), array![[INK, INK], [PAPER, INK]].view());
        let picture = page.finish()?;
        assert_eq!(picture.size(), (50, 21));
        assert_well_formed(picture.as_str());
        assert!(!picture.as_str().contains('\n'));
        Ok(())
    }

    #[test]
    fn runs_of_one_colour_are_one_stroke_and_white_is_none() -> Result<()> {
        let mut page = Canvas::new(9.0, 9.0, "");
        page.cells((0.0, 0.0), (3.0, 3.0), array![[INK, INK, WHITE], [INK, WHITE, INK]].view());
        let picture = page.finish()?;
        assert!(picture.as_str().contains("d=\"M0,0h2M0,1h1m1,0h1\""), "{}", picture.as_str());
        assert!(
            picture.as_str().contains("fill=\"#fff\" d=\"M0,-.5h3v2h-3z\"") && !picture.as_str().contains("#ffffff")
        );
        Ok(())
    }

    #[test]
    fn ink_follows_the_theme_and_cells_keep_their_colours() -> Result<()> {
        let mut page = Canvas::new(50.0, 20.0, "");
        page.line((0.0, 0.0), (9.0, 9.0), INK, 0.5);
        page.line((0.0, 0.0), (9.0, 9.0), GRID, 0.5);
        page.text((1.0, 1.0), "soft", Lettering::new(9.0).soft());
        page.text((1.0, 1.0), "on a light cell", Lettering::new(9.0).color(ink_on(WHITE)));
        page.rectangle((1.0, 1.0), (2.0, 2.0), PAPER);
        page.cells((0.0, 0.0), (5.0, 5.0), array![[INK]].view());
        let source = page.finish()?.as_str().to_owned();
        for part in ["stroke=\"currentColor\" stroke-opacity=\".14\"", "fill=\"currentColor\"", "fill=\"none\""] {
            assert!(source.contains(part), "{part} is not in {source}");
        }
        assert_eq!(source.matches("#262626").count(), 1, "the cell: {source}");
        assert!(source.contains("fill=\"#1F1F1F\""), "{source}");
        Ok(())
    }
}
