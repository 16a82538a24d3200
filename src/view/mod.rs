//! How does a result look? Pictures of results that were computed elsewhere.
//!
//! | module | question it answers | result |
//! |---|---|---|
//! | [`heatmap`] | where in a grid (layer by head, site by position) is a value large? | [`Svg`] |
//! | [`mod@line`] | how does a value change with training, depth or size? | [`Svg`] |
//! | [`bars`] | which of a few named things is larger? | [`Svg`] |
//! | [`mod@attention`] | what does each head attend to? | [`Html`], or [`Svg`] for paper |
//! | [`mod@lens`] | what would the model answer at each depth? A token in each cell | [`Svg`] |
//! | [`knob()`] | what changes when one thing is turned? A slider over pictures | [`Html`] |
//! | [`display`] | how is a picture saved, combined with others, or shown in a notebook? | |
//! | [`results`] | tables, runs and models as pictures: [`Table::heatmap`](crate::table::Table::heatmap), [`attention()`] | |
//! | [`palette`] | which colours, and can everyone tell them apart? | |
//!
//! A picture is described by chained calls and drawn by `svg` or `html`, which return an error for what they cannot draw. The
//! result is owned text: a notebook shows it as the result of a cell, and `save` writes it. In a notebook the background is
//! that of the page, light or dark.
//!
//! ```
//! # fn main() -> headscope::Result<()> {
//! use headscope::view::{Heatmap, Lines, Svg};
//! use ndarray::array;
//! let heads = Heatmap::new(array![[0.0, 0.7], [-0.2, 0.1]]).x_label("head").y_label("layer").unit("nats");
//! let growth = Lines::new().series("head 0.1", &[(1.0, 0.0), (10.0, 0.2), (100.0, 0.7)]).x_label("step").log_x();
//! let both: Svg = Svg::beside(&[heads.svg()?, growth.svg()?]);
//! # let path = std::env::temp_dir().join(format!("headscope-{}.svg", std::process::id()));
//! both.save(&path)?;
//! both.evcxr_display();
//! # let _ = std::fs::remove_file(path);
//! # Ok(()) }
//! ```

mod axis;
mod canvas;
mod raster;
mod text;

pub mod attention;
pub mod bars;
pub mod display;
pub mod heatmap;
mod knob;
pub mod lens;
pub mod line;
pub mod palette;
pub mod results;
mod scan;

pub use attention::Attention;
pub use bars::Bars;
#[cfg(test)]
pub(crate) use canvas::tests::assert_well_formed;
pub use display::{Html, Svg};
pub use heatmap::Heatmap;
pub use knob::knob;
pub use lens::lens;
pub use line::Lines;
pub use results::{attention, attention_heads, attention_of, film};
pub(crate) use text::escape;
