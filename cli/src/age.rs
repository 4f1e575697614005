//! How long ago, in kubectl's words.

use jiff::Timestamp;

/// `42s`, `7m`, `3h`, `12d`; empty when nobody knows.
pub fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return String::new() };
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let words = [(5, "5s"), (119, "119s"), (600, "10m"), (7200, "2h"), (200_000, "2d")];
        for (seconds, word) in words {
            assert_eq!(age(Some(at(0)), at(seconds)), word);
        }
        assert_eq!(age(Some(at(9)), at(0)), "0s");
        assert_eq!(age(None, at(0)), "");
    }
}
