//! [`nearest`]: the names somebody may have meant.

/// At most `count` of `names` that are a few letters away from `wanted`, nearest first.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<String> {
    let allowed = (wanted.chars().count() / 3).max(2);
    let folded = wanted.to_lowercase().replace('-', "_");
    let mut scored: Vec<(usize, &str)> = names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&folded, &name.to_lowercase().replace('-', "_")), name))
        .filter(|(distance, _)| *distance <= allowed)
        .collect();
    // Stable, so that equally near names stay in the model's order.
    scored.sort_by_key(|(distance, _)| *distance);
    scored.dedup();
    scored.into_iter().take(count).map(|(_, name)| name.to_owned()).collect()
}
