//! Where the parts of a heat map stand.

use super::super::axis::{TICK, TITLE, widest};
use super::super::text::{shorten, width};
use super::Heatmap;
use super::colors::Colors;

/// The room for cells, in pixels.
const ROOM: (f64, f64) = (540.0, 620.0);
/// The width of the colour bar.
pub(super) const BAR_WIDTH: f64 = 13.0;

/// Where everything stands, in pixels.
pub(super) struct Layout {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) cell: (f64, f64),
    pub(super) across: f64,
    pub(super) down: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) letters: f64,
    pub(super) turned: bool,
    pub(super) tick_height: f64,
    pub(super) unit_height: f64,
    pub(super) bar_height: f64,
}

impl Layout {
    pub(super) fn new(map: &Heatmap, colors: &Colors, x_ticks: &[String], y_ticks: &[String]) -> Self {
        let (rows, columns) = map.values.dim();
        let mut wide = (ROOM.0 / columns as f64).floor().clamp(4.0, 40.0);
        let mut high = wide.min((ROOM.1 / rows as f64).floor()).max(4.0);
        if rows <= 3 {
            high = high.max(22.0);
        }
        let mut letters = 11.0;
        if map.annotate {
            let ems = map.values.iter().map(|value| width(&map.shown(*value), 1.0)).fold(0.0, f64::max);
            letters = ((wide - 4.0) / ems).clamp(8.0, 11.0);
            wide = wide.max((ems * letters + 4.0).ceil());
            high = high.max(letters + 5.0);
        }
        let turned = widest(x_ticks, TICK) + 5.0 > wide && map.x_ticks.is_some();
        let tick_height = if turned { widest(x_ticks, TICK) + 2.0 } else { 14.0 };
        let left = 16.0 + widest(y_ticks, TICK) + if map.y_label.is_empty() { 0.0 } else { 16.0 };
        let top = if map.title.is_empty() { 12.0 } else { 34.0 };
        let (across, down) = (wide * columns as f64, high * rows as f64);
        let unit_height = if map.unit.is_empty() { 0.0 } else { 18.0 };
        let bar_height = (down - unit_height).clamp(70.0, 240.0);
        let bar_ticks: Vec<String> = colors.axis.ticks(5).into_iter().map(|(_, text)| text).collect();
        let notes = colors.notes();
        let texts = bar_ticks.iter().chain(notes.iter().map(|(text, _)| text));
        let beside = 18.0 + BAR_WIDTH + 7.0 + widest(texts, TICK).max(width(&map.unit, TICK) - BAR_WIDTH) + 6.0;
        let below = tick_height + if map.x_label.is_empty() { 14.0 } else { 32.0 };
        let bar_bottom = unit_height + bar_height + 10.0 + 16.0 * notes.len() as f64;
        let titled = left + width(&shorten(&map.title, 100), TITLE) * 1.05 + 8.0;
        Self {
            left,
            top,
            cell: (wide, high),
            across,
            down,
            width: (left + across + beside).max(titled),
            height: top + (down + below).max(bar_bottom),
            letters,
            turned,
            tick_height,
            unit_height,
            bar_height,
        }
    }

    pub(super) fn right(&self) -> f64 {
        self.left + self.across
    }

    pub(super) fn bottom(&self) -> f64 {
        self.top + self.down
    }
}
