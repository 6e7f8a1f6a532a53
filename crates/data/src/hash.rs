//! A counter-based generator for everything whose order must stay the same for ever.
//!
//! Random-number crates promise no stable stream between versions, and stateful ones cannot be seeked; a resumed run
//! needs both, so the mixing function is written out here. SplitMix64: Steele, Lea, Flood, OOPSLA 2014.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64: a bijection on 64 bits that mixes every bit into every other.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of a few numbers; the order of the numbers matters.
pub(crate) fn hash(words: &[u64]) -> u64 {
    words.iter().fold(GOLDEN, |state, word| mix(state ^ mix(word.wrapping_add(GOLDEN))).wrapping_add(GOLDEN))
}

/// `hash` scaled to `0..n` (`n > 0`) by multiplication; its bias is below `n / 2^64`.
pub(crate) fn below(hash: u64, n: u64) -> u64 {
    ((u128::from(hash) * u128::from(n)) >> 64) as u64
}

/// Fisher-Yates under the hash of `key`.
pub(crate) fn shuffle<T>(items: &mut [T], key: &[u64]) {
    let key = hash(key);
    for i in (1..items.len()).rev() {
        let j = below(hash(&[key, i as u64]), i as u64 + 1) as usize;
        items.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_is_a_permutation_that_never_changes() {
        let mut items: Vec<u32> = (0..10).collect();
        shuffle(&mut items, &[42, 1]);
        assert_eq!(items, PINNED, "changing the order of old runs breaks their resume");
        items.sort_unstable();
        assert_eq!(items, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn numbers_below_a_bound_are_spread_evenly() {
        let mut seen = [0u32; 7];
        for i in 0..7000 {
            seen[below(hash(&[3, i]), 7) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
    }

    const PINNED: [u32; 10] = [6, 4, 1, 2, 7, 8, 0, 9, 5, 3];
}
