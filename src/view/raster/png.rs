//! How do pixels become a PNG file? In at most 256 colours, a byte for each pixel: notebooks keep it beside the SVG.
//!
//! Source: the PNG specification, third edition (W3C 2023), sections 5 and 11. Encoders on crates.io have more features than
//! this picture needs, and change those of crates on which polars stands.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::super::palette::Rgb;

/// A PNG of these pixels, row by row.
pub(super) fn encode((width, height): (u32, u32), pixels: &[Rgb]) -> io::Result<Vec<u8>> {
    let (palette, indices) = indexed(pixels);
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in indices.chunks(width as usize) {
        packed.write_all(&[0])?; // rows as they are, not as differences
        packed.write_all(row)?;
    }
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 3, 0, 0, 0]); // eight bits, indices; deflate, no other filters, not interlaced
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header), (b"PLTE", palette.concat()), (b"IDAT", packed.finish()?), (b"IEND", vec![])]
    {
        let body = [kind.as_slice(), &data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&body);
        file.extend(crc32fast::hash(&body).to_be_bytes());
    }
    Ok(file)
}

/// How many of the most frequent colours are kept as they are: those of cells, paper and lines.
const EXACT: usize = 96;

/// The colours of pixels, at most 256, and the number of each pixel's. Where there are more, the rarer ones (the smooth edges
/// of letters) become the nearest of those that are kept: the most frequent, and one for each small cube of the others.
fn indexed(pixels: &[Rgb]) -> (Vec<Rgb>, Vec<u8>) {
    let mut counts: HashMap<Rgb, usize> = HashMap::new();
    pixels.iter().for_each(|pixel| *counts.entry(*pixel).or_default() += 1);
    let mut colors: Vec<(usize, Rgb)> = counts.into_iter().map(|(color, count)| (count, color)).collect();
    colors.sort_by_key(|&(count, color)| (std::cmp::Reverse(count), color));
    let colors: Vec<Rgb> = colors.into_iter().map(|(_, color)| color).collect();
    let palettes = (0..8).map(|dropped| kept(&colors, dropped));
    let palette = palettes.into_iter().find(|palette| palette.len() <= 256).unwrap_or_else(|| colors[..256].to_vec());
    let numbers: HashMap<Rgb, u8> = colors.iter().map(|color| (*color, nearest(&palette, *color))).collect();
    (palette, pixels.iter().map(|pixel| numbers.get(pixel).copied().unwrap_or(0)).collect())
}

/// The first colours, and of the others the first of each cube whose colours agree but for the `dropped` lowest bits.
fn kept(colors: &[Rgb], dropped: u32) -> Vec<Rgb> {
    let (exact, others) = colors.split_at(EXACT.min(colors.len()));
    let cube = |color: &Rgb| color.map(|channel| channel >> dropped);
    let mut cubes: HashSet<Rgb> = exact.iter().map(cube).collect();
    let first = others.iter().filter(|color| dropped == 0 || cubes.insert(cube(color)));
    exact.iter().chain(first).copied().collect()
}

/// The number of the nearest colour of a palette of at most 256.
fn nearest(palette: &[Rgb], color: Rgb) -> u8 {
    let distance =
        |one: &Rgb| (0..3).map(|channel| u32::from(one[channel].abs_diff(color[channel])).pow(2)).sum::<u32>();
    (0..=255).zip(palette).min_by_key(|(_, one)| distance(one)).map_or(0, |(number, _)| number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::io::Read as _;

    use super::*;

    /// Width, height and pixels of a file as this module writes it; checks each part's length and sum.
    pub(in super::super) fn read(file: &[u8]) -> (u32, u32, Vec<Rgb>) {
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let (mut rest, mut parts) = (&file[8..], HashMap::new());
        while !rest.is_empty() {
            let length = number(&rest[..4]) as usize;
            assert_eq!(crc32fast::hash(&rest[4..8 + length]), number(&rest[8 + length..12 + length]));
            parts.insert(&rest[4..8], &rest[8..8 + length]);
            rest = &rest[12 + length..];
        }
        let (header, palette) = (parts[b"IHDR".as_slice()], parts[b"PLTE".as_slice()]);
        let (width, height) = (number(&header[..4]), number(&header[4..8]));
        let mut rows = vec![];
        flate2::read::ZlibDecoder::new(parts[b"IDAT".as_slice()]).read_to_end(&mut rows).unwrap();
        assert_eq!(rows.len(), (width as usize + 1) * height as usize);
        let indices = rows.chunks(width as usize + 1).flat_map(|row| &row[1..]);
        let color = |index: &u8| std::array::from_fn(|channel| palette[usize::from(*index) * 3 + channel]);
        (width, height, indices.map(color).collect())
    }

    #[test]
    fn pixels_come_back() {
        let pixels: Vec<Rgb> = (0..12).map(|n| [n * 20, 255 - n, n % 3]).collect();
        assert_eq!(read(&encode((4, 3), &pixels).unwrap()), (4, 3, pixels));
    }

    #[test]
    fn few_colours_are_kept_and_many_become_at_most_256() {
        let few: Vec<Rgb> = (0..=255).map(|level| [level, 255 - level, 7]).collect();
        let (palette, indices) = indexed(&few);
        assert!(few.iter().zip(&indices).all(|(color, index)| palette[usize::from(*index)] == *color));
        let many: Vec<Rgb> = (0..40_000u32).map(|n| [n as u8, (n >> 4) as u8, (n >> 8) as u8]).collect();
        let (palette, indices) = indexed(&many);
        assert!(palette.len() <= 256);
        let far = |(one, index): (&Rgb, &u8)| (0..3).map(|c| one[c].abs_diff(palette[usize::from(*index)][c])).max();
        assert!(many.iter().zip(&indices).filter_map(far).all(|distance| distance < 64));
        // A thousand shades, as of a heat map with letters on it, do not touch the large areas.
        let mut shaded: Vec<Rgb> = (0..1000u32).map(|n| [n as u8, (n >> 2) as u8, 99]).collect();
        shaded.extend([[0xff; 3]; 50].iter().chain(&[[0xf2; 3]; 90]));
        let (palette, indices) = indexed(&shaded);
        assert!(indices[1000..1050].iter().all(|index| palette[usize::from(*index)] == [0xff; 3]));
        assert!(indices[1050..].iter().all(|index| palette[usize::from(*index)] == [0xf2; 3]));
    }
}
