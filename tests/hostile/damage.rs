//! Damage as disks, networks and enemies do it; the same in every run.

/// A deterministic source of damage.
pub struct Damage(u64);

impl Damage {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    /// Cuts the bytes short, flips some bits, puts a stretch of them elsewhere, or makes a number of text absurd.
    pub fn apply(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        let at = self.below(bytes.len());
        match self.below(8) {
            0 | 1 => bytes.truncate(at),
            2 => {
                let from = self.below(bytes.len());
                let stretch = bytes[from..bytes.len().min(from + 1 + self.below(64))].to_vec();
                bytes.splice(at..at, stretch);
            }
            3 => {
                const ABSURD: [&str; 6] =
                    ["99999999999999999999", "-1", "1e999", "18446744073709551615", "4294967296", "null"];
                let found = bytes[at..].iter().position(u8::is_ascii_digit).map(|n| at + n);
                if let Some(start) = found {
                    let digits = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
                    bytes.splice(start..start + digits, ABSURD[self.below(ABSURD.len())].bytes());
                }
            }
            _ => {
                for _ in 0..=self.below(4) {
                    let at = self.below(bytes.len());
                    bytes[at] ^= 1 << self.below(8);
                }
            }
        }
        bytes
    }
}
