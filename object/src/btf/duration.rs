//! Durations as Go's `time.Duration` writes and reads them, and with it Kubernetes: `1h2m3.5s`, `1.5ms`, `0s`.

/// From hours to nanoseconds, each in nanoseconds. `us` is read only.
const UNITS: [(&str, i128); 7] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("µs", 1_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Exactly.
pub(super) fn text(nanoseconds: i128) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let magnitude = nanoseconds.unsigned_abs();
    let second = 1_000_000_000;
    match magnitude {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{magnitude}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", decimal(magnitude, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", decimal(magnitude, 1_000_000)),
        _ => {
            let (minutes, seconds) = (magnitude / second / 60, decimal(magnitude % (60 * second), second));
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

/// `amount / unit` with the decimals that it needs; `unit` is a power of ten.
fn decimal(amount: u128, unit: u128) -> String {
    let (whole, rest) = (amount / unit, amount % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    format!("{whole}.{}", format!("{rest:0digits$}").trim_end_matches('0'))
}

/// Nanoseconds; `None` if it is no duration, or not a whole number of nanoseconds.
pub(super) fn parse(text: &str) -> Option<i128> {
    let (negative, mut rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    if rest.is_empty() {
        return None;
    }
    let mut total = 0i128;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (amount, tail) = rest.split_at(number);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(amount, *unit)?)?;
        rest = tail;
    }
    Some(if negative { -total } else { total })
}

fn scaled(amount: &str, unit: i128) -> Option<i128> {
    let (whole, decimals) = amount.split_once('.').unwrap_or((amount, ""));
    let decimals = decimals.trim_end_matches('0');
    let scale = 10i128.checked_pow(u32::try_from(decimals.len()).ok()?)?;
    let digits = [whole, decimals].concat().parse::<i128>().ok()?;
    let scaled = digits.checked_mul(unit)?;
    (scaled % scale == 0).then_some(scaled / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them_and_read_back() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_500_000, "1.5ms"),
            (999_999_999, "999.999999ms"),
            (1_000_000_000, "1s"),
            (-90_000_000_001, "-1m30.000000001s"),
            (3_600_000_000_000, "1h0m0s"),
            (i128::from(u64::MAX), "5124095h34m33.709551615s"),
        ];
        for (nanoseconds, written) in cases {
            assert_eq!(text(nanoseconds), written);
            assert_eq!(parse(written), Some(nanoseconds));
        }
        assert_eq!(parse("1.5us"), Some(1_500));
        assert_eq!(parse("0.5h"), Some(1_800_000_000_000));
    }

    #[test]
    fn what_is_no_whole_number_of_nanoseconds_is_refused() {
        for wrong in ["", "-", "5", "1.5ns", "ms", "1 ms", "1x", "..s", "1.2.3s", "--1s", "1e3s"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
