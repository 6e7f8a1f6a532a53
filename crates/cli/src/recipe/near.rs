//! Which of several names someone probably meant.

/// The closest name, if one is close enough to be worth suggesting.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest_above(0.65, wanted, names)
}

/// The closest name if there can hardly be a doubt: for suggestions from far away.
pub(super) fn nearly_equal<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest_above(0.8, wanted, names)
}

fn nearest_above<'a>(threshold: f64, wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for name in names {
        let lower = name.to_lowercase();
        let score = likeness(&wanted, &lower);
        if best.is_none_or(|(so_far, _)| score > so_far) {
            best = Some((score, name));
        }
    }
    best.filter(|(score, _)| *score >= threshold).map(|(_, name)| name)
}

/// 1 for equal up to separators, else the share of letters that stay, at least 0.75 for one slip in a short name and
/// for a name that begins with the other (`lr` is no prefix of anything, `max_grad` is).
fn likeness(wanted: &str, name: &str) -> f64 {
    let plain = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let (wanted, name) = (plain(wanted), plain(name));
    if wanted.is_empty() || name.is_empty() {
        return 0.0;
    }
    if wanted == name {
        return 1.0;
    }
    let edits = strsim::damerau_levenshtein(&wanted, &name);
    if edits == 1 && wanted.len().min(name.len()) >= 3 {
        return 0.9;
    }
    let (short, long) = if wanted.len() < name.len() { (&wanted, &name) } else { (&name, &wanted) };
    if short.len() >= 4 && long.starts_with(short.as_str()) {
        return 0.75;
    }
    strsim::normalized_damerau_levenshtein(&wanted, &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["rank", "alpha", "dropout", "learning_rate", "max_grad_norm"];

    #[test]
    fn slips_find_the_name() {
        for (typed, meant) in [
            ("rnak", "rank"),
            ("learningrate", "learning_rate"),
            ("learning-rate", "learning_rate"),
            ("max_grad", "max_grad_norm"),
            ("Alpha", "alpha"),
            ("drop_out", "dropout"),
        ] {
            assert_eq!(nearest(typed, NAMES), Some(meant), "{typed}");
        }
    }

    #[test]
    fn strangers_find_nothing() {
        for typed in ["gpu", "quantise", "x", ""] {
            assert_eq!(nearest(typed, NAMES), None, "{typed}");
        }
    }
}
