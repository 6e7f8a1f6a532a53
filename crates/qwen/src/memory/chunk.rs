//! How many tokens go through a feed-forward part together where nothing of it is kept.

/// The most and the fewest that a plan asks for. Each chunk reads the part's weights again, which for more tokens costs
/// nothing beside the products; fewer would save little, since by then what mixers hold is more.
const MOST: u64 = 4096;
/// See [`MOST`].
pub const FEWEST_CHUNK_TOKENS: u64 = 512;

/// Of so many tokens, those that go together where a chunk may have `most`: equal shares, in as few chunks as there may be.
pub fn chunk_share(tokens: u64, most: Option<u64>) -> u64 {
    let most = most.unwrap_or(tokens).max(1);
    tokens.div_ceil(tokens.div_ceil(most).max(1))
}

/// Sizes that split so many tokens, the largest first.
pub fn chunk_sizes(tokens: u64) -> impl Iterator<Item = u64> {
    let halved = std::iter::successors(Some(MOST), |size| Some(size / 2));
    halved.take_while(|&size| size >= FEWEST_CHUNK_TOKENS).filter(move |&size| size < tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_and_no_larger_than_asked() {
        assert_eq!(chunk_share(1000, None), 1000);
        assert_eq!(chunk_share(1000, Some(1000)), 1000);
        assert_eq!(chunk_share(1001, Some(1000)), 501);
        assert_eq!(chunk_share(10, Some(4)), 4);
        assert_eq!(chunk_share(0, Some(4)), 0);
        assert_eq!(chunk_sizes(4096).collect::<Vec<_>>(), [2048, 1024, 512]);
        assert_eq!(chunk_sizes(512).count(), 0);
    }
}
