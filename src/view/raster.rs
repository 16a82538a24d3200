//! How does a picture become pixels? The shapes of its pages, drawn a second time for viewers that show no SVG.
//!
//! A JupyterLab that does not trust a notebook shows none, and neither do many web pages. The text is set in a subset of
//! DejaVu Sans Condensed, so that it does not depend on the fonts of the machine; characters that it has not (Chinese, emoji, the
//! pictures of control characters) become boxes.

mod png;

use ab_glyph_rasterizer::{Rasterizer, point};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use super::canvas::{Across, Cells, Down, Drawing, Lettering, Point, Shape};
use super::palette::{PAPER, Rgb};
use crate::error::{Error, Result};

/// The background: light, so that the dark ink is legible, and no glaring white on a dark page.
const GROUND: Rgb = [0xf2, 0xf2, 0xf2];
/// The most pixels that are drawn: of 8000 x 4000.
const MOST: u64 = 32_000_000;
/// How far beyond the page a shape is followed, in pixels.
const BEYOND: f64 = 64.0;
/// The font, and its character for what it has none of.
const FONT: &[u8] = include_bytes!("raster/sans.ttf");
const BOX: char = '□';

/// Drawings, each with its place on a page of this size, as a PNG file.
///
/// # Errors
/// [`Error::Draw`] if the page is empty or larger than 32 million pixels.
pub(super) fn png((width, height): (u32, u32), drawings: &[((u32, u32), &Drawing)]) -> Result<Vec<u8>> {
    let refused = |reason: String| Error::Draw { what: "a picture as PNG", reason };
    if width == 0 || height == 0 {
        return Err(refused("it is empty".to_owned()));
    }
    if u64::from(width) * u64::from(height) > MOST {
        return Err(refused(format!("its {width} x {height} pixels are more than {MOST}")));
    }
    let face = Face::parse(FONT, 0).map_err(|failed| refused(failed.to_string()))?;
    let (width, height) = (width as usize, height as usize);
    let mut page = Page { pixels: vec![GROUND; width * height], width, height, corner: (0.0, 0.0), face };
    for ((left, top), drawing) in drawings {
        page.corner = (f64::from(*left), f64::from(*top));
        drawing.cells.iter().for_each(|cells| page.cells(cells));
        drawing.shapes.iter().for_each(|shape| page.shape(shape));
    }
    png::encode((width as u32, height as u32), &page.pixels).map_err(|failed| refused(failed.to_string()))
}

/// The pixels so far, and where the corner of the drawing is that is being drawn.
struct Page<'a> {
    pixels: Vec<Rgb>,
    width: usize,
    height: usize,
    corner: Point,
    face: Face<'a>,
}

impl Page<'_> {
    /// Fills cells without smoothing, so that neighbours meet.
    fn cells(&mut self, cells: &Cells) {
        let whole = |length: f64, limit: usize| length.round().clamp(0.0, limit as f64) as usize;
        let (left, top) = (self.corner.0 + cells.at.0, self.corner.1 + cells.at.1);
        let across = |column: usize| whole(left + column as f64 * cells.size.0, self.width);
        let down = |row: usize| whole(top + row as f64 * cells.size.1, self.height);
        let places = cells
            .colors
            .indexed_iter()
            .map(|((row, column), color)| (across(column)..across(column + 1), down(row)..down(row + 1), *color));
        for (columns, rows, color) in places.collect::<Vec<_>>() {
            for row in rows {
                self.pixels[row * self.width..][columns.clone()].fill(color);
            }
        }
    }

    fn shape(&mut self, shape: &Shape) {
        match shape {
            Shape::Path { points, color, width } => {
                let segments = points.windows(2).enumerate().map(|(index, ends)| {
                    let inner = (index > 0, index + 2 < points.len());
                    segment(ends[0], ends[1], *width / 2.0, inner)
                });
                let edges = segments.flat_map(|corners| Edge::around(&corners)).collect::<Vec<_>>();
                self.fill(&edges, *color, 1.0);
            }
            Shape::Area { points, color, opacity } => self.fill(&Edge::around(points), *color, *opacity),
            Shape::Disc { center, radius, color } => {
                let around = (0..32).map(|step| f64::from(step) / 16.0 * std::f64::consts::PI);
                let points = around.map(|turn| (center.0 + radius * turn.cos(), center.1 + radius * turn.sin()));
                self.fill(&Edge::around(&points.collect::<Vec<_>>()), *color, 1.0);
            }
            Shape::Text { at, text, lettering } => {
                let edges = self.letters(*at, text, lettering);
                self.fill(&edges, lettering.color, 1.0);
            }
        }
    }

    /// The outlines of a text.
    fn letters(&self, at: Point, text: &str, lettering: &Lettering) -> Vec<Edge> {
        let scale = lettering.size / f64::from(self.face.units_per_em());
        let glyph = |letter| self.face.glyph_index(letter).or_else(|| self.face.glyph_index(BOX)).unwrap_or(GlyphId(0));
        let glyphs: Vec<GlyphId> = text.chars().map(glyph).collect();
        let advance = |glyph: &GlyphId| f64::from(self.face.glyph_hor_advance(*glyph).unwrap_or(0)) * scale;
        let long: f64 = glyphs.iter().map(advance).sum();
        let mut pen = match lettering.across {
            Across::Start => 0.0,
            Across::Middle => -long / 2.0,
            Across::End => -long,
        };
        // As the SVG: centred on half the height of an x, or hanging from near the top of the capitals.
        let base = match lettering.down {
            Down::Center => 0.27,
            Down::Top => 0.76,
        } * lettering.size;
        // A letter drawn twice, a little apart, is a bold one.
        let strokes: &[f64] = if lettering.bold { &[0.0, 0.06] } else { &[0.0] };
        let mut edges = vec![];
        for glyph in glyphs {
            for shift in strokes {
                let origin = (pen + shift * lettering.size, base);
                let mut outline =
                    Outline { edges: &mut edges, at, origin, scale, turned: lettering.turned, start: at, pen: at };
                self.face.outline_glyph(glyph, &mut outline);
            }
            pen += advance(&glyph);
        }
        edges
    }

    /// Fills what closed lines enclose, smoothly.
    fn fill(&mut self, edges: &[Edge], color: Rgb, opacity: f64) {
        // Paper is whatever lies under the picture.
        let color = if color == PAPER { GROUND } else { color };
        let limits = [self.width, self.height].map(|size| size as f64 + BEYOND);
        let place = |(across, down): Point| {
            let across = (across + self.corner.0).clamp(-BEYOND, limits[0]);
            (across, (down + self.corner.1).clamp(-BEYOND, limits[1]))
        };
        let edges: Vec<Edge> = edges.iter().map(|edge| edge.map(place)).collect();
        let points = || edges.iter().flat_map(Edge::points);
        let (left, top) = points().fold((f64::MAX, f64::MAX), |(x, y), point| (x.min(point.0), y.min(point.1)));
        let (right, bottom) = points().fold((f64::MIN, f64::MIN), |(x, y), point| (x.max(point.0), y.max(point.1)));
        if !(right >= left && bottom >= top) {
            return;
        }
        let (left, top) = (left.floor(), top.floor());
        let size = ((right - left).ceil() as usize + 2, (bottom - top).ceil() as usize + 2);
        let mut raster = Rasterizer::new(size.0, size.1);
        let inside = |(across, down): Point| point((across - left) as f32, (down - top) as f32);
        for edge in &edges {
            match *edge {
                Edge::Line(from, to) => raster.draw_line(inside(from), inside(to)),
                Edge::Quad(from, by, to) => raster.draw_quad(inside(from), inside(by), inside(to)),
                Edge::Cubic(from, by, and, to) => raster.draw_cubic(inside(from), inside(by), inside(and), inside(to)),
            }
        }
        raster.for_each_pixel_2d(|across, down, covered| {
            let (across, down) = (f64::from(across) + left, f64::from(down) + top);
            if covered > 0.0 && across >= 0.0 && down >= 0.0 && across < self.width as f64 && down < self.height as f64
            {
                let pixel = &mut self.pixels[down as usize * self.width + across as usize];
                let part = f64::from(covered.min(1.0)) * opacity;
                for (under, over) in pixel.iter_mut().zip(color) {
                    *under = (f64::from(*under) + (f64::from(over) - f64::from(*under)) * part).round() as u8;
                }
            }
        });
    }
}

/// The corners of a line of some width; where it goes on, it is longer by half of that.
fn segment(from: Point, to: Point, half: f64, (before, after): (bool, bool)) -> [Point; 4] {
    let (across, down) = (to.0 - from.0, to.1 - from.1);
    let long = across.hypot(down);
    let (across, down) = if long > 0.0 { (across / long * half, down / long * half) } else { (half, 0.0) };
    let longer = |end: Point, sign: f64| (end.0 + sign * across, end.1 + sign * down);
    let (from, to) = (if before { longer(from, -1.0) } else { from }, if after { longer(to, 1.0) } else { to });
    [
        (from.0 - down, from.1 + across),
        (to.0 - down, to.1 + across),
        (to.0 + down, to.1 - across),
        (from.0 + down, from.1 - across),
    ]
}

/// A part of a closed line, from its first to its last point.
enum Edge {
    Line(Point, Point),
    Quad(Point, Point, Point),
    Cubic(Point, Point, Point, Point),
}

impl Edge {
    fn around(corners: &[Point]) -> Vec<Self> {
        let next = corners.iter().cycle().skip(1);
        corners.iter().zip(next).map(|(from, to)| Self::Line(*from, *to)).collect()
    }

    fn map(&self, place: impl Fn(Point) -> Point) -> Self {
        match *self {
            Self::Line(from, to) => Self::Line(place(from), place(to)),
            Self::Quad(from, by, to) => Self::Quad(place(from), place(by), place(to)),
            Self::Cubic(from, by, and, to) => Self::Cubic(place(from), place(by), place(and), place(to)),
        }
    }

    fn points(&self) -> Vec<Point> {
        match *self {
            Self::Line(from, to) => vec![from, to],
            Self::Quad(from, by, to) => vec![from, by, to],
            Self::Cubic(from, by, and, to) => vec![from, by, and, to],
        }
    }
}

/// Collects the outline of a glyph whose origin lies at `origin` of a text at `at`.
struct Outline<'a> {
    edges: &'a mut Vec<Edge>,
    at: Point,
    origin: Point,
    scale: f64,
    turned: bool,
    start: Point,
    pen: Point,
}

impl Outline<'_> {
    fn place(&self, x: f32, y: f32) -> Point {
        let (across, down) = (self.origin.0 + f64::from(x) * self.scale, self.origin.1 - f64::from(y) * self.scale);
        if self.turned { (self.at.0 + down, self.at.1 - across) } else { (self.at.0 + across, self.at.1 + down) }
    }
}

impl OutlineBuilder for Outline<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        (self.start, self.pen) = (self.place(x, y), self.place(x, y));
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let to = self.place(x, y);
        self.edges.push(Edge::Line(self.pen, to));
        self.pen = to;
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let to = self.place(x, y);
        self.edges.push(Edge::Quad(self.pen, self.place(x1, y1), to));
        self.pen = to;
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let to = self.place(x, y);
        self.edges.push(Edge::Cubic(self.pen, self.place(x1, y1), self.place(x2, y2), to));
        self.pen = to;
    }

    fn close(&mut self) {
        self.edges.push(Edge::Line(self.pen, self.start));
        self.pen = self.start;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::canvas::Canvas;
    use super::super::palette::{INK, SERIES};
    use super::png::tests::read;
    use super::*;
    use ndarray::array;

    /// The smallest box that holds the pixels of a colour: left, top, right, bottom.
    fn bounds((width, _, pixels): &(u32, u32, Vec<Rgb>), wanted: impl Fn(Rgb) -> bool) -> Option<[usize; 4]> {
        let found = pixels.iter().enumerate().filter(|(_, pixel)| wanted(**pixel));
        let places = found.map(|(index, _)| (index % *width as usize, index / *width as usize));
        places.fold(None, |all, (x, y)| {
            let [left, top, right, bottom] = all.unwrap_or([x, y, x, y]);
            Some([left.min(x), top.min(y), right.max(x), bottom.max(y)])
        })
    }

    #[test]
    fn shapes_are_where_the_svg_has_them() -> Result<()> {
        let mut page = Canvas::new(60.0, 40.0, "");
        page.cells((4.0, 2.0), (5.0, 3.0), array![[SERIES[0], SERIES[1]], [SERIES[2], SERIES[0]]].view());
        page.rectangle((40.0, 20.0), (50.0, 30.0), SERIES[3]);
        let picture = read(&page.finish()?.png()?);
        assert_eq!((picture.0, picture.1), (60, 40));
        assert_eq!(bounds(&picture, |pixel| pixel == SERIES[1]), Some([9, 2, 13, 4]));
        assert_eq!(bounds(&picture, |pixel| pixel == SERIES[2]), Some([4, 5, 8, 7]));
        assert_eq!(bounds(&picture, |pixel| pixel == SERIES[3]), Some([40, 20, 49, 29]));
        Ok(())
    }

    #[test]
    fn text_stands_on_the_side_of_its_point_that_was_asked_for() -> Result<()> {
        let dark = |pixel: Rgb| pixel[0] < 0x90;
        let drawn = |lettering: Lettering, text: &str| -> Result<[usize; 4]> {
            let mut page = Canvas::new(200.0, 200.0, "");
            page.text((100.0, 100.0), text, lettering);
            Ok(bounds(&read(&page.finish()?.png()?), dark).unwrap_or_default())
        };
        let plain = Lettering::new(20.0);
        let [left, top, right, bottom] = drawn(plain, "xxxx")?;
        assert!((98..104).contains(&left) && right > 130 && top > 90 && bottom < 110, "{left} {top} {right} {bottom}");
        assert!((top + bottom).abs_diff(200) <= 3, "an x is centred: {top} to {bottom}");
        let [left, _, right, _] = drawn(plain.middle(), "xxxx")?;
        assert!((left + right).abs_diff(200) <= 3, "{left} to {right}");
        assert!(drawn(plain.end(), "xxxx")?[2] <= 101);
        assert!(drawn(plain.below(), "HHHH")?[1] >= 100);
        let [left, top, right, bottom] = drawn(plain.turned(), "xxxx")?;
        assert!(bottom <= 101 && top < 70 && right - left < 20, "{left} {top} {right} {bottom}");
        Ok(())
    }

    #[test]
    fn every_symbol_that_pictures_use_has_a_glyph() {
        let face = Face::parse(FONT, 0).unwrap();
        let symbols = "·↵⇥⟨⟩∅…−×–⁰¹²³⁴⁵⁶⁷⁸⁹⁻□àéßπλΔ→≤≥";
        assert!(symbols.chars().all(|symbol| face.glyph_index(symbol).is_some()));
        assert!((' '..='~').all(|letter| face.glyph_index(letter).is_some()));
    }

    #[test]
    fn what_has_no_pixels_or_too_many_is_refused() {
        let reason = |size| png(size, &[]).map_or_else(|failed| failed.to_string(), |_| String::new());
        assert!(reason((0, 5)).contains("empty") && reason((70_000, 70_000)).contains("32000000"));
        let mut page = Canvas::new(9.0, 9.0, "");
        page.path(vec![], INK, 1.0);
        page.text((1.0, 1.0), "漢🙂", Lettering::new(9.0));
        assert!(page.finish().and_then(|picture| picture.png()).is_ok());
    }
}
