//! How can any text be shown in a picture? Nothing invisible, nothing that breaks XML.

/// Shows a token with all its white space: a space as `·`, a line break as `↵`, an empty token as `∅`.
pub(super) fn token(text: &str) -> String {
    if text.is_empty() { "∅".to_owned() } else { text.replace(' ', "·").chars().map(visible).collect() }
}

/// Shows a label: inner spaces stay, spaces at the ends and control characters become visible.
pub(super) fn label(text: &str) -> String {
    let inner = text.trim_matches(' ');
    let start = text.len() - text.trim_start_matches(' ').len();
    let end = text.len() - start - inner.len();
    format!("{}{inner}{}", "·".repeat(start), "·".repeat(end)).chars().map(visible).collect()
}

/// A character in visible form; characters that XML forbids never pass.
fn visible(character: char) -> String {
    match character {
        '\n' => "↵".to_owned(),
        '\t' => "⇥".to_owned(),
        '\0'..='\u{1f}' => char::from_u32(0x2400 + character as u32).map_or_else(String::new, String::from),
        '\u{7f}' => "␡".to_owned(),
        '\u{80}'..='\u{9f}'
        | '\u{ad}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
        | '\u{feff}'
        | '\u{fffe}'
        | '\u{ffff}' => format!("⟨{:04X}⟩", character as u32),
        other => other.to_string(),
    }
}

/// Escapes text for XML and HTML, in content and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// At most `limit` characters of `text`; the last one is an ellipsis if something was cut.
pub(super) fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit.saturating_sub(1)).chain(['…']).collect()
}

/// The approximate width of `text` in pixels, in a sans-serif font of `size` pixels: within about a tenth, rather too large.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let ems: f64 = text
        .chars()
        .map(|character| match character {
            'i' | 'j' | 'l' | 'f' | 't' | '.' | ',' | ':' | ';' | '\'' | '|' | '·' | ' ' | '(' | ')' | 'I' => 0.36,
            'm' | 'w' | 'M' | 'W' | '@' | '%' | '…' => 0.92,
            'A'..='Z' | '−' | '+' | '=' | '<' | '>' => 0.72,
            '\u{2e80}'..='\u{ffdc}' | '\u{1f000}'.. => 1.05,
            _ => 0.58,
        })
        .sum();
    ems * size
}

/// A number with `decimals` places and a true minus sign; never `-0`.
pub(super) fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|byte| byte == b'0' || byte == b'.') => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// A number too large or too small to write out: `2.5×10⁻⁶`.
pub(super) fn scientific(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    format!("{}×10{}", mantissa.replace('-', "−"), superscript(exponent))
}

/// The digits and sign of an exponent, superscript.
pub(super) fn superscript(exponent: &str) -> String {
    exponent
        .chars()
        .map(|character| match character {
            '-' => '⁻',
            '0' => '⁰',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            '4' => '⁴',
            '5' => '⁵',
            '6' => '⁶',
            '7' => '⁷',
            '8' => '⁸',
            '9' => '⁹',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_controls_become_visible() {
        assert_eq!(token(" the\n"), "·the↵");
        assert_eq!(token(""), "∅");
        assert_eq!(token("\0\u{1b}\u{2028}\u{200b}"), "␀␛⟨2028⟩⟨200B⟩");
        assert_eq!(label(" layer 3 "), "·layer 3·");
        assert_eq!(label("  "), "··");
    }

    #[test]
    fn markup_is_escaped() {
        assert_eq!(escape("<s> & \"'"), "&lt;s&gt; &amp; &quot;&#39;");
    }

    #[test]
    fn cutting_counts_characters_not_bytes() {
        assert_eq!(shorten("naïveté", 7), "naïveté");
        assert_eq!(shorten("naïveté", 4), "naï…");
    }

    #[test]
    fn numbers_have_a_true_minus_and_no_negative_zero() {
        assert_eq!(number(-0.04, 1), "0.0");
        assert_eq!(number(-1.25, 2), "−1.25");
        assert_eq!(scientific(-2.5e-6, 1), "−2.5×10⁻⁶");
    }
}
