//! Durations as people write them: `250ms`, `30s`, `5m`, `12h`, `7d`, and combined from large to small: `1h30m`.
//!
//! Refuses fractions, signs, spaces and bare numbers: a duration without its unit is a guess. Invariant: what [`spell`]
//! writes, [`parse`] reads back.

use std::time::Duration;

/// From large to small, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration.
///
/// # Errors
///
/// What is wrong with the text, to be shown behind its key.
pub(crate) fn parse(text: &str) -> Result<Duration, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (digits, after_digits) = split_while(rest, u8::is_ascii_digit);
        let (name, after_unit) = split_while(after_digits, u8::is_ascii_alphabetic);
        if digits.is_empty() {
            return Err("is not a duration");
        }
        if name.is_empty() {
            return Err("has a number without a unit");
        }
        if !UNITS.iter().any(|(unit, _)| *unit == name) {
            return Err("has an unknown unit");
        }
        let Some((_, unit_ms)) = units.find(|(unit, _)| *unit == name) else {
            return Err("has its units out of order");
        };
        total_ms = digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(*unit_ms))
            .and_then(|part_ms| total_ms.checked_add(part_ms))
            .ok_or("is too long")?;
        rest = after_unit;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes a duration the way [`parse`] reads it; what is below a millisecond is dropped.
pub(super) fn spell(duration: Duration) -> String {
    let mut rest_ms = duration.as_millis();
    let mut text = String::new();
    for (unit, unit_ms) in UNITS {
        let count = rest_ms / u128::from(unit_ms);
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
        rest_ms %= u128::from(unit_ms);
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Splits only behind ASCII, so always between characters.
fn split_while(text: &str, belongs: impl Fn(&u8) -> bool) -> (&str, &str) {
    let length = text.bytes().take_while(|byte| belongs(byte)).count();
    text.split_at(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_and_what_they_mean() {
        let check = |text: &str, expected: Result<u64, &'static str>| {
            assert_eq!(parse(text).map(|duration| duration.as_millis()), expected.map(u128::from), "{text:?}");
        };
        check("250ms", Ok(250));
        check("30s", Ok(30_000));
        check("5m", Ok(300_000));
        check("12h", Ok(43_200_000));
        check("7d", Ok(604_800_000));
        check("1h30m", Ok(5_400_000));
        check("1d2h3m4s5ms", Ok(93_784_005));
        check("0s", Ok(0));
        check("", Err("is empty"));
        check("30", Err("has a number without a unit"));
        check("s", Err("is not a duration"));
        check("-1s", Err("is not a duration"));
        check("1.5s", Err("has a number without a unit"));
        check("1 s", Err("has a number without a unit"));
        check("1s ", Err("is not a duration"));
        check("3 Tage", Err("has a number without a unit"));
        check("1w", Err("has an unknown unit"));
        check("1S", Err("has an unknown unit"));
        check("1s1h", Err("has its units out of order"));
        check("1s1s", Err("has its units out of order"));
        check("213503982335d", Err("is too long"));
        check("99999999999999999999s", Err("is too long"));
        check("3µs", Err("has a number without a unit"));
    }

    proptest! {
        #[test]
        fn what_is_spelled_reads_back(millis in 0..u64::MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&spell(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_answered(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
