//! Numbers as people read them.

/// `1234567` as `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Parameters and tokens: `134.5M`, `2.1B`.
pub fn short_count(number: u64) -> String {
    scaled(number as f64, 1000.0, &["", "K", "M", "B", "T"], "")
}

/// Memory and files: `1.5 GiB`.
pub fn bytes(number: u64) -> String {
    scaled(number as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"], " ")
}

fn scaled(number: f64, base: f64, units: &[&str], gap: &str) -> String {
    let mut value = number;
    let mut unit = 0;
    // The rounded value decides, so that 999,960 is 1.0M and not 1000.0K.
    while unit + 1 < units.len() && (value * 10.0).round() / 10.0 >= base {
        value /= base;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0}{gap}{}", units[0]) } else { format!("{value:.1}{gap}{}", units[unit]) }
}

/// Seconds as `0:42`, `12:05`, `3:07:09` or `2d 4h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes, seconds) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}:{seconds:02}"),
        (0, _) => format!("{hours}:{minutes:02}:{seconds:02}"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A learning rate: `2.0e-4`.
pub fn rate(number: f64) -> String {
    if number == 0.0 { "0".to_owned() } else { format!("{number:.1e}") }
}

/// A share as `12.3%`, and never `0.0%` for something that is there.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 0.1 { format!("{percent:.3}%") } else { format!("{percent:.1}%") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators() {
        let shown: Vec<String> = [0, 12, 999, 1000, 1_234_567].into_iter().map(count).collect();
        assert_eq!(shown, ["0", "12", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn units_change_where_the_rounded_number_would_overflow() {
        assert_eq!(short_count(999), "999");
        assert_eq!(short_count(999_960), "1.0M");
        assert_eq!(short_count(134_515_008), "134.5M");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
    }

    #[test]
    fn durations_grow_by_units() {
        let shown: Vec<String> = [0.4, 42.0, 725.0, 11_229.0, 187_200.0, f64::NAN].into_iter().map(duration).collect();
        assert_eq!(shown, ["0:00", "0:42", "12:05", "3:07:09", "2d 4h", "-"]);
    }

    #[test]
    fn rates_and_shares_keep_what_matters() {
        assert_eq!(rate(2e-4), "2.0e-4");
        assert_eq!(rate(0.0), "0");
        assert_eq!(percent(0.1234), "12.3%");
        assert_eq!(percent(0.0002), "0.020%");
    }
}
