//! [`Moment`]: today's date in the forms that templates print it in.

/// A date and time in UTC, for templates that print today's date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    days: i64,
    seconds: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Moment {
    pub(crate) fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
        Self { days: seconds / 86_400, seconds: seconds % 86_400 }
    }

    /// Midnight of `YYYY-MM-DD`.
    pub(crate) fn from_date(text: &str) -> Option<Self> {
        let mut parts = text.split('-').map(str::parse::<i64>);
        let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        // Days from civil: Hinnant, "chrono-Compatible Low-Level Date Algorithms".
        let y = if month <= 2 { year - 1 } else { year };
        let era = y.div_euclid(400);
        let of_era = y.rem_euclid(400);
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        let moment = Self { days, seconds: 0 };
        // The 31st of a shorter month lands in the next.
        (moment.civil() == (year, month, day)).then_some(moment)
    }

    fn civil(self) -> (i64, i64, i64) {
        let z = self.days + 719_468;
        let era = z.div_euclid(146_097);
        let of_era = z.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let m = (5 * of_year + 2) / 153;
        let month = if m < 10 { m + 3 } else { m - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        (year, month, of_year - (153 * m + 2) / 5 + 1)
    }

    /// The directives that templates use; others stay as they are.
    pub(crate) fn strftime(self, format: &str) -> String {
        let (year, month, day) = self.civil();
        let (hour, minute, second) = (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        let weekday = (self.days + 4).rem_euclid(7) as usize;
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let (plain, directive) = match chars.next() {
                Some('-') => (true, chars.next()),
                other => (false, other),
            };
            let two = |n: i64| if plain { n.to_string() } else { format!("{n:02}") };
            match directive {
                Some('Y') => out.push_str(&format!("{year:04}")),
                Some('y') => out.push_str(&two(year % 100)),
                Some('m') => out.push_str(&two(month)),
                Some('d') => out.push_str(&two(day)),
                Some('H') => out.push_str(&two(hour)),
                Some('I') => out.push_str(&two(twelve)),
                Some('M') => out.push_str(&two(minute)),
                Some('S') => out.push_str(&two(second)),
                Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
                Some('B') => out.push_str(MONTHS[month as usize - 1]),
                Some('b') => out.push_str(&MONTHS[month as usize - 1][..3]),
                Some('A') => out.push_str(WEEKDAYS[weekday]),
                Some('a') => out.push_str(&WEEKDAYS[weekday][..3]),
                Some('F') => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
                Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
                Some('%') => out.push('%'),
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dates_are_civil() {
        let moment = Moment::from_date("2024-02-29").unwrap();
        assert_eq!(
            moment.strftime("%d %B %Y, %a %-d %b %y %H:%M %I%p %%%q"),
            "29 February 2024, Thu 29 Feb 24 00:00 12AM %%q"
        );
        assert_eq!(Moment::from_date("2026-11-22").unwrap().strftime("%A"), "Sunday");
        assert_eq!(Moment::from_date("1970-01-01").unwrap().days, 0);
        assert!(
            ["2023-02-29", "2024-13-01", "x", "2024-1", "2024-1-1-1"].iter().all(|t| Moment::from_date(t).is_none())
        );
    }
}
