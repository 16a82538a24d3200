//! Which colours can be told apart by readers with a colour vision deficiency, and in grey print?
//!
//! Series use the palette of Okabe and Ito (2008) without its yellow, which is too faint on white. Values use viridis
//! (sequential) or ColorBrewer's RdBu (diverging). Attention uses a single blue, white at 0.

/// A colour as red, green and blue, from 0 to 255 each.
pub type Rgb = [u8; 3];

/// Text and axes. This and the next three follow the theme of the page; the values are for paper.
pub(super) const INK: Rgb = [0x26, 0x26, 0x26];
/// Tick labels and notes.
pub(super) const SOFT: Rgb = [0x5a, 0x5a, 0x5a];
/// Grid lines.
pub(super) const GRID: Rgb = [0xe6, 0xe6, 0xe6];
/// The background of every picture. Not quite the white of a cell, which stays white on a dark page.
pub(super) const PAPER: Rgb = [0xff, 0xff, 0xfe];
/// Text on a coloured ground, which is the same in every theme.
const ON_LIGHT: Rgb = [0x1f, 0x1f, 0x1f];
const ON_DARK: Rgb = [0xff, 0xff, 0xff];
/// A missing value.
pub(super) const MISSING: Rgb = [0xb8, 0xb8, 0xb8];

/// The colours of series, in order.
pub const SERIES: [Rgb; 7] = [
    [0x00, 0x72, 0xb2],
    [0xd5, 0x5e, 0x00],
    [0x00, 0x9e, 0x73],
    [0xcc, 0x79, 0xa7],
    [0xe6, 0x9f, 0x00],
    [0x56, 0xb4, 0xe9],
    [0x59, 0x59, 0x59],
];

const VIRIDIS: [Rgb; 9] = [
    [0x44, 0x01, 0x54],
    [0x47, 0x2d, 0x7b],
    [0x3b, 0x52, 0x8b],
    [0x2c, 0x72, 0x8e],
    [0x21, 0x91, 0x8c],
    [0x28, 0xae, 0x80],
    [0x5e, 0xc9, 0x62],
    [0xad, 0xdc, 0x30],
    [0xfd, 0xe7, 0x25],
];

const BLUE_WHITE_RED: [Rgb; 11] = [
    [0x05, 0x30, 0x61],
    [0x21, 0x66, 0xac],
    [0x43, 0x93, 0xc3],
    [0x92, 0xc5, 0xde],
    [0xd1, 0xe5, 0xf0],
    [0xff, 0xff, 0xff],
    [0xfd, 0xdb, 0xc7],
    [0xf4, 0xa5, 0x82],
    [0xd6, 0x60, 0x4d],
    [0xb2, 0x18, 0x2b],
    [0x67, 0x00, 0x1f],
];

/// The attention view uses the same stops (`attention.js`).
const BLUES: [Rgb; 9] = [
    [0xff, 0xff, 0xff],
    [0xd6, 0xe6, 0xf4],
    [0xab, 0xd0, 0xe6],
    [0x82, 0xbb, 0xdb],
    [0x5b, 0xa3, 0xcf],
    [0x37, 0x87, 0xc0],
    [0x1b, 0x69, 0xaf],
    [0x08, 0x4d, 0x96],
    [0x08, 0x30, 0x6b],
];

/// Which colour does a value between 0 and 1 take?
///
/// ```
/// use headscope::view::palette::ColorMap;
/// assert_eq!(ColorMap::Diverging.color(0.5), [255, 255, 255]);
/// assert_eq!(ColorMap::Attention.color(0.0), [255, 255, 255]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorMap {
    /// viridis: dark violet through green to yellow, perceptually even.
    Sequential,
    /// Blue below the middle, white at 0.5, red above.
    Diverging,
    /// From white at 0 to dark blue.
    Attention,
}

impl ColorMap {
    /// The colour at `position`, clamped to 0..=1; grey if missing.
    #[must_use]
    pub fn color(self, position: f64) -> Rgb {
        if position.is_nan() {
            return MISSING;
        }
        match self {
            Self::Sequential => between(&VIRIDIS, position),
            Self::Diverging => between(&BLUE_WHITE_RED, position),
            Self::Attention => between(&BLUES, position),
        }
    }
}

/// The colour at `position` of evenly spaced stops.
fn between(stops: &[Rgb], position: f64) -> Rgb {
    let along = position.clamp(0.0, 1.0) * (stops.len() - 1) as f64;
    let from = (along as usize).min(stops.len() - 2);
    let part = along - from as f64;
    std::array::from_fn(|channel| {
        let (low, high) = (f64::from(stops[from][channel]), f64::from(stops[from + 1][channel]));
        (low + (high - low) * part).round() as u8
    })
}

/// The colour of the `index`-th series; after the last the palette repeats.
pub(super) fn series(index: usize) -> Rgb {
    SERIES[index % SERIES.len()]
}

/// Black or white, whichever reads better on `ground`.
pub(super) fn ink_on(ground: Rgb) -> Rgb {
    let [red, green, blue] = ground.map(|channel| (f64::from(channel) / 255.0).powf(2.2));
    if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.22 { ON_LIGHT } else { ON_DARK }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lightness(color: Rgb) -> f64 {
        let [red, green, blue] = color.map(f64::from);
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    #[test]
    fn sequential_maps_change_lightness_one_way() {
        for (map, sign) in [(ColorMap::Sequential, 1.0), (ColorMap::Attention, -1.0)] {
            let steps: Vec<f64> = (0..=64).map(|step| sign * lightness(map.color(f64::from(step) / 64.0))).collect();
            assert!(steps.windows(2).all(|pair| pair[1] >= pair[0]), "{map:?}: {steps:?}");
        }
    }

    #[test]
    fn positions_outside_are_held_and_missing_is_grey() {
        assert_eq!(ColorMap::Sequential.color(7.0), VIRIDIS[8]);
        assert_eq!(ColorMap::Diverging.color(-1.0), BLUE_WHITE_RED[0]);
        assert_eq!(ColorMap::Diverging.color(f64::NAN), MISSING);
    }

    #[test]
    fn ink_contrasts_with_its_ground() {
        assert_eq!(ink_on([255, 255, 255]), ON_LIGHT);
        assert_eq!(ink_on(VIRIDIS[0]), ON_DARK);
        assert_eq!(ink_on(VIRIDIS[8]), ON_LIGHT);
    }
}
