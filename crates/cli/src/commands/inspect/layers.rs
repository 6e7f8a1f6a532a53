//! The layers of a model for people: each kind once, with how many there are, and in which order they stand.

use qwen_tune_qwen::LayerSpec;

/// Rows of a table: the kinds of layers, then the order where there is more than one kind.
pub(super) fn rows(layers: &[LayerSpec]) -> Vec<[String; 2]> {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    let mut order = Vec::with_capacity(layers.len());
    for layer in layers {
        let kind = layer.to_string();
        let index = kinds.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
            kinds.push((kind, 0));
            kinds.len() - 1
        });
        kinds[index].1 += 1;
        order.push(index);
    }
    let several = kinds.len() > 1;
    let mut rows: Vec<[String; 2]> = kinds
        .iter()
        .enumerate()
        .map(|(index, (kind, times))| {
            let label = if several { format!(" {}", label(index)) } else { String::new() };
            [format!("{times} layer(s){label}"), kind.clone()]
        })
        .collect();
    if several {
        rows.push(["in order".to_owned(), in_order(&order)]);
    }
    rows
}

/// `A`, `B`, .. `Z`, `A1`, ..
fn label(index: usize) -> String {
    let letter = char::from(b'A' + (index % 26) as u8);
    if index < 26 { letter.to_string() } else { format!("{letter}{}", index / 26) }
}

/// `16 times 3 A, 1 B`: runs of the shortest part that the order is a repetition of.
fn in_order(order: &[usize]) -> String {
    let period = (1..=order.len())
        .find(|&period| order.len().is_multiple_of(period) && order.iter().zip(&order[period..]).all(|(a, b)| a == b))
        .unwrap_or(order.len());
    let runs: Vec<String> =
        order[..period].chunk_by(|a, b| a == b).map(|run| format!("{} {}", run.len(), label(run[0]))).collect();
    let times = order.len() / period.max(1);
    let times = if times > 1 { format!("{times} times ") } else { String::new() };
    times + &runs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_repetition_is_told() {
        assert_eq!(in_order(&[0, 0, 0, 1]), "3 A, 1 B");
        assert_eq!(in_order(&[0, 0, 0, 1].repeat(16)), "16 times 3 A, 1 B");
        assert_eq!(in_order(&[0, 1, 0, 1, 0]), "1 A, 1 B, 1 A, 1 B, 1 A");
        assert_eq!(in_order(&[0, 1, 1]), "1 A, 2 B");
        assert_eq!((label(25), label(27)), ("Z".to_owned(), "B1".to_owned()));
    }
}
