//! How do patterns look in a terminal? Shades of one character per edge.

use ndarray::ArrayView2;

use super::Attention;
use crate::error::Result;
use crate::view::text::{shorten, token};

/// Characters per line, if there is more than one head to a line.
const WIDE: usize = 100;
/// Characters of a token.
const TOKEN: usize = 12;

impl Attention {
    /// Patterns as text: for each query a line with a character for each key, `·` for a weight below 0.1, `░` below 0.3, `▒`
    /// below 0.6, `▓` below 0.85, `█` above, and a space for none. Heads stand side by side, as many as fit into 100
    /// characters.
    ///
    /// ```
    /// # fn main() -> headscope::Result<()> {
    /// use headscope::view::Attention;
    /// use ndarray::array;
    /// let view = Attention::new(vec!["The".into(), " cat".into()], array![[[1.0, 0.0], [0.25, 0.75]]]).layer(3);
    /// assert_eq!(view.text()?, "        head 3.0\n0 The   |█ |\n1 ·cat  |░▓|\n");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`html`](Self::html).
    pub fn text(&self) -> Result<String> {
        let names = self.check()?;
        let (heads, queries, keys) = self.patterns.dim();
        let first = keys - queries;
        let label = |at: usize| format!("{at} {}", shorten(&token(&self.tokens[at]), TOKEN));
        let labels: Vec<String> = (first..keys).map(label).collect();
        let left = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0) + 2;
        let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let column = widest.max(keys + 2) + 1;
        let at_once = (WIDE.saturating_sub(left) / column).clamp(1, heads);
        let mut text = String::new();
        for start in (0..heads).step_by(at_once) {
            let band = start..(start + at_once).min(heads);
            let mut lines = vec![" ".repeat(left) + &padded(&names[band.clone()], column)];
            for (query, label) in labels.iter().enumerate() {
                let shown: Vec<String> =
                    band.clone().map(|head| shades(&self.patterns.index_axis(ndarray::Axis(0), head), query)).collect();
                lines.push(padded(std::slice::from_ref(label), left) + &padded(&shown, column));
            }
            for line in lines {
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        Ok(text)
    }
}

/// Each text filled with spaces to `width` characters.
fn padded(texts: &[String], width: usize) -> String {
    texts.iter().map(|text| format!("{text:<width$}")).collect()
}

fn shades(pattern: &ArrayView2<'_, f64>, query: usize) -> String {
    let shade = |&weight: &f64| match weight {
        weight if weight <= 0.0 => ' ',
        weight if weight < 0.1 => '·',
        weight if weight < 0.3 => '░',
        weight if weight < 0.6 => '▒',
        weight if weight < 0.85 => '▓',
        _ => '█',
    };
    format!("|{}|", pattern.row(query).iter().map(shade).collect::<String>())
}
