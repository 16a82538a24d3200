//! How is a picture saved, combined with others, or shown in a notebook?

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::canvas::Drawing;
use super::raster;
use super::text::escape;
use crate::error::Result;
use crate::file;

/// A finished vector picture.
///
/// Shown as the result of a notebook cell if it is the last expression, beside it as PNG for viewers that show no SVG:
/// JupyterLab in a notebook that it does not trust, for one. The background is transparent. Text and axes have the colour of
/// the page's text, or, where a viewer keeps the picture apart from the page, as JupyterLab does, a grey that is legible on
/// white and on black. Saved pictures are black on white.
///
/// ```
/// # fn main() -> headscope::Result<()> {
/// use headscope::view::Bars;
/// let picture = Bars::new().bar("induction", 0.8).bar("previous token", 0.3).svg()?;
/// assert!(picture.as_str().starts_with("<svg"));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Svg {
    source: String,
    width: u32,
    height: u32,
    /// What is drawn, and where, in pixels.
    drawings: Vec<((u32, u32), Arc<Drawing>)>,
}

impl PartialEq for Svg {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Svg {}

/// A finished HTML fragment with its style and script, which loads nothing from elsewhere.
///
/// Shown as the result of a notebook cell if it is the last expression.
///
/// ```
/// # fn main() -> headscope::Result<()> {
/// use headscope::view::Attention;
/// use ndarray::Array3;
/// let page = Attention::new(vec!["a".into(), "b".into()], Array3::from_elem((1, 2, 2), 0.5)).html()?;
/// assert!(!page.as_str().contains("https://"));
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Html(String);

/// The space between combined pictures, in pixels.
const GAP: u32 = 12;

/// The colour of text and axes where the picture is a document of its own (an image in JupyterLab, or a file), which does not
/// know the page's theme: 4.4 times as light as black, and white 4.4 times as light as it.
const ALONE: &str = "<style>svg:root{color:#787878}</style>";

impl Svg {
    /// Wraps SVG elements, in user units of `1 / units` pixel, into a document with a transparent background.
    pub(super) fn wrap(
        body: &str,
        (width, height): (u32, u32),
        units: u32,
        name: &str,
        drawings: Vec<((u32, u32), Arc<Drawing>)>,
    ) -> Self {
        let (across, down) = (width * units, height * units);
        let name = escape(name);
        let source = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {across} {down}\" \
             role=\"img\" aria-label=\"{name}\">{ALONE}{body}</svg>"
        );
        Self { source, width, height, drawings }
    }

    /// The source of the document.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// The width and height of the picture, in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Places pictures side by side, aligned at the top: a notebook cell shows one result, and this makes one of several.
    ///
    /// ```
    /// # fn main() -> headscope::Result<()> {
    /// use headscope::view::{Bars, Svg};
    /// let picture = Bars::new().bar("a", 1.0).svg()?;
    /// let both = Svg::beside(&[picture.clone(), picture.clone()]);
    /// assert!(both.size().0 > 2 * picture.size().0);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn beside(pictures: &[Self]) -> Self {
        Self::grid(pictures, pictures.len())
    }

    /// Places pictures in rows of `columns`. Each column is as wide as its widest picture, and each row as high as its highest.
    ///
    /// Without pictures or columns the result is empty.
    #[must_use]
    pub fn grid(pictures: &[Self], columns: usize) -> Self {
        let columns = columns.clamp(1, pictures.len().max(1));
        let mut widths = vec![0; columns];
        for (index, picture) in pictures.iter().enumerate() {
            widths[index % columns] = picture.width.max(widths[index % columns]);
        }
        let (mut body, mut drawings, mut top) = (String::new(), vec![], 0);
        for row in pictures.chunks(columns) {
            let mut left = 0;
            for (picture, width) in row.iter().zip(&widths) {
                let inner = picture.source.replacen("<svg ", &format!("<svg x=\"{left}\" y=\"{top}\" "), 1);
                body.push_str(&inner.replace(ALONE, ""));
                let moved = picture.drawings.iter().map(|((x, y), drawing)| ((x + left, y + top), drawing.clone()));
                drawings.extend(moved);
                left += width + GAP;
            }
            top += row.iter().map(|picture| picture.height).max().unwrap_or(0) + GAP;
        }
        let across = widths.iter().map(|width| width + GAP).sum::<u32>().saturating_sub(GAP);
        let (size, name) = ((across, top.saturating_sub(GAP)), format!("{} pictures", pictures.len()));
        Self::wrap(&body, size, 1, &name, drawings)
    }

    /// The picture in pixels, a PNG file of its [`size`](Self::size): dark on light grey, in at most 256 colours.
    ///
    /// # Errors
    /// [`Error::Draw`](crate::Error::Draw) if the picture is empty or larger than 32 million pixels.
    ///
    /// ```
    /// # fn main() -> headscope::Result<()> {
    /// let picture = headscope::view::Bars::new().bar("a", 1.0).svg()?;
    /// assert!(picture.png()?.starts_with(b"\x89PNG"));
    /// # Ok(()) }
    /// ```
    pub fn png(&self) -> Result<Vec<u8>> {
        let drawings: Vec<_> = self.drawings.iter().map(|(at, drawing)| (*at, drawing.as_ref())).collect();
        raster::png((self.width, self.height), &drawings)
    }

    /// Writes the picture to `path`, completely or not at all: as PNG if the name ends in `.png`, else as SVG, black on white.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the folder does not exist or the file cannot be written; for a PNG as
    /// [`png`](Self::png).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("png")) {
            return file::write_bytes(path, &self.png()?);
        }
        file::write_bytes(path, self.on_paper().as_bytes())
    }

    /// The source with a white background and dark text.
    fn on_paper(&self) -> String {
        const PAPER: &str =
            "<style>svg:root{color:#262626}</style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>";
        self.source.replacen(ALONE, PAPER, 1)
    }

    /// Prints the blocks that the notebook kernel recognises as a picture: SVG, and PNG for viewers that show none.
    pub fn evcxr_display(&self) {
        println!("{}", block("image/svg+xml", &self.source));
        if let Ok(pixels) = self.png() {
            println!("{}", block("image/png", &BASE64_STANDARD.encode(pixels)));
        }
    }
}

impl Html {
    /// Wraps a finished fragment.
    pub(crate) fn new(source: String) -> Self {
        Self(source)
    }

    /// The source of the fragment.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Writes the fragment to `path` as a page of its own, completely or not at all.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the folder does not exist or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let head = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>headscope</title></head>\n<body>\n";
        file::write_bytes(path.as_ref(), format!("{head}{}\n</body></html>\n", self.0).as_bytes())
    }

    /// Prints the block that the notebook kernel recognises as an HTML fragment.
    pub fn evcxr_display(&self) {
        println!("{}", block("text/html", &self.0));
    }
}

/// The kernel's block around a result.
fn block(kind: &str, content: &str) -> String {
    format!("EVCXR_BEGIN_CONTENT {kind}\n{content}\nEVCXR_END_CONTENT")
}

impl fmt::Debug for Svg {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Svg({} x {} px, {} bytes)", self.width, self.height, self.source.len())
    }
}

impl fmt::Debug for Html {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Html({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn the_kernel_sees_one_block() {
        let shown = block("image/svg+xml", "<svg/>");
        assert_eq!(shown, "EVCXR_BEGIN_CONTENT image/svg+xml\n<svg/>\nEVCXR_END_CONTENT");
    }

    #[test]
    fn pictures_stand_beside_each_other() {
        let (wide, high) = (Svg::wrap("", (100, 40), 10, "a", vec![]), Svg::wrap("", (30, 90), 10, "b", vec![]));
        assert_eq!(Svg::beside(&[wide.clone(), high.clone()]).size(), (142, 90));
        assert_eq!(Svg::grid(&[wide.clone(), high.clone(), wide], 2).size(), (142, 90 + 12 + 40));
        assert_eq!(Svg::beside(&[]).size(), (0, 0));
        assert_eq!(Svg::beside(&[high]).as_str().matches("<svg ").count(), 2);
    }

    #[test]
    fn saving_replaces_the_file_and_leaves_no_other() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("temporary folder")))?;
        let path = folder.path().join("picture.svg");
        Svg::wrap("", (1, 1), 1, "first", vec![]).save(&path)?;
        Svg::wrap("", (1, 1), 1, "second", vec![]).save(&path)?;
        let read = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        assert!(read.contains("second") && read.contains("fill=\"#fff\"") && !read.contains("#787878"));
        let files = std::fs::read_dir(folder.path()).map_err(Error::io("read", folder.path()))?.count();
        assert_eq!(files, 1);
        Ok(())
    }

    #[test]
    fn a_grid_is_drawn_in_pixels_where_its_parts_are() -> Result<()> {
        let part = crate::view::Bars::new().bar("a", 1.0).svg()?;
        let grid = Svg::grid(&[part.clone(), part.clone(), part.clone()], 2);
        let places: Vec<(u32, u32)> = grid.drawings.iter().map(|(at, _)| *at).collect();
        let (wide, high) = part.size();
        assert_eq!(places, [(0, 0), (wide + GAP, 0), (0, high + GAP)]);
        assert_eq!(grid.as_str().matches("<style>").count(), 1);
        assert!(grid.png()?.len() < 3 * part.png()?.len());
        Ok(())
    }

    #[test]
    fn a_name_that_ends_in_png_is_a_png() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("temporary folder")))?;
        let path = folder.path().join("picture.PNG");
        crate::view::Bars::new().bar("a", 1.0).svg()?.save(&path)?;
        assert!(std::fs::read(&path).map_err(Error::io("read", &path))?.starts_with(b"\x89PNG"));
        Ok(())
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let failed = Svg::wrap("", (1, 1), 1, "x", vec![]).save("/no/such/folder/picture.svg");
        assert!(matches!(failed, Err(Error::Io { action: "write", .. })));
    }

    #[test]
    fn debug_is_short() {
        assert_eq!(format!("{:?}", Html::new("x".repeat(5000))), "Html(5000 bytes)");
    }
}
