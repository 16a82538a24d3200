//! Is there room for what a user asks for? Checks counts before the memory or time is spent.

use crate::error::{Error, Result};
use crate::memory;

/// Returns an error if `n` items of `each` bytes do not fit in three quarters of the free memory.
pub(crate) fn fits(name: &'static str, n: usize, each: usize) -> Result<()> {
    within(name, n, each, memory::usable(memory::free()))
}

/// Returns an error if `n` items of `each` bytes do not fit in `limit` bytes.
pub(crate) fn within(name: &'static str, n: usize, each: usize, limit: usize) -> Result<()> {
    let bytes = n as u128 * each as u128;
    if bytes <= limit as u128 {
        return Ok(());
    }
    Err(Error::TooMuch {
        name,
        found: n.to_string(),
        takes: format!("{} of memory", size(bytes)),
        limit: format!("{}, which hold {}", size(limit as u128), limit / each.max(1)),
    })
}

/// Returns an error if there are more than `most` repetitions, each of which takes as long as `what`.
pub(crate) fn at_most(name: &'static str, n: usize, most: usize, what: &'static str) -> Result<()> {
    if n <= most {
        return Ok(());
    }
    let takes = format!("{n} times as long as {what}");
    Err(Error::TooMuch { name, found: n.to_string(), takes, limit: most.to_string() })
}

/// Formats a number of bytes for humans.
fn size(bytes: u128) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1).take_while(|&unit| bytes >> (10 * (unit + 1)) > 0).count();
    let number = bytes as f64 / (1u128 << (10 * unit)) as f64;
    if unit == 0 { format!("{bytes} {}", UNITS[0]) } else { format!("{number:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_says_how_much_it_is_and_how_much_would() {
        assert!(within("n", 4, 256, 1024).is_ok() && within("n", 5, 256, 1024).is_err());
        let found = within("prompts", 99_999_999, 8000, 5 << 30).unwrap_err().to_string();
        assert_eq!(found, "prompts: 99999999 would take 745.1 GiB of memory; the limit is 5.0 GiB, which hold 671088");
        assert!(within("n", usize::MAX, usize::MAX, usize::MAX).unwrap_err().to_string().contains("TiB"));
        assert!(fits("n", 1, 1).is_ok() && fits("n", usize::MAX, 1).is_err());
        assert!(at_most("n", 7, 7, "one").is_ok());
        let found = at_most("shuffles", 8, 7, "the estimate itself").unwrap_err().to_string();
        assert_eq!(found, "shuffles: 8 would take 8 times as long as the estimate itself; the limit is 7");
    }
}
