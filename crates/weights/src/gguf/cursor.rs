//! [`Cursor`]: bytes of a header, taken one field after another.

use super::GgufFault;

/// A place in a file, and the mark that faults are reported at: where the key or tensor at hand begins.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    mark: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0, mark: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn length(&self) -> usize {
        self.file.len()
    }

    pub(super) fn marked(&self) -> usize {
        self.mark
    }

    /// Puts the mark here.
    pub(super) fn mark(&mut self) -> usize {
        self.mark = self.at;
        self.at
    }

    pub(super) fn mark_at(&mut self, at: usize) {
        self.mark = at;
    }

    /// The next bytes, for `what`.
    pub(super) fn take(&mut self, count: usize, what: impl Fn() -> String) -> Result<&'a [u8], GgufFault> {
        let left = &self.file[self.at..];
        match left.get(..count) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => Err(GgufFault::Truncated { what: what(), needs: count as u64, left: left.len() as u64 }),
        }
    }

    /// A count of things that take at least `least` bytes each, if the file has room for them.
    pub(super) fn fits(&self, count: u64, least: usize, what: impl Fn() -> String) -> Result<usize, GgufFault> {
        let left = (self.file.len() - self.at) as u64;
        let needs = count.saturating_mul(least as u64);
        if needs > left {
            return Err(GgufFault::Truncated { what: what(), needs, left });
        }
        Ok(count as usize)
    }

    pub(super) fn array<const N: usize>(&mut self, what: impl Fn() -> String) -> Result<[u8; N], GgufFault> {
        let bytes = self.take(N, what)?;
        Ok(*bytes.as_array().expect("invariant: N bytes were taken"))
    }

    pub(super) fn u32(&mut self, what: impl Fn() -> String) -> Result<u32, GgufFault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: impl Fn() -> String) -> Result<u64, GgufFault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn text(&mut self, what: impl Fn() -> String) -> Result<&'a str, GgufFault> {
        let length = self.u64(&what)?;
        let length = self.fits(length, 1, &what)?;
        std::str::from_utf8(self.take(length, &what)?).map_err(|_| GgufFault::NotUtf8 { what: what() })
    }
}
