//! Operands on their way into the cache while others are multiplied.
//!
//! Weights are larger than any cache and are read in pieces that no machine foresees: short rows, pages apart. Packing would
//! wait for every line; a tile, which is bound by its multiplications, has time to ask for them.

/// Memory that is wanted next: rows of some lines of the cache each, fetched one now and then while products are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    at: *const u8,
    /// Lines left of this row and rows left behind it; lines of a row, and bytes from the last one to the next row.
    lines: usize,
    rows: usize,
    row_lines: usize,
    gap: usize,
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

impl Ahead {
    pub(super) const NOTHING: Self = Self { at: std::ptr::null(), lines: 0, rows: 0, row_lines: 0, gap: 0 };

    /// `rows` rows of `bytes` bytes each, `stride` bytes apart.
    pub(super) fn rows(first: *const u8, rows: usize, bytes: usize, stride: usize) -> Self {
        let row_lines = bytes.div_ceil(LINE);
        if rows == 0 || row_lines == 0 {
            return Self::NOTHING;
        }
        Self {
            at: first,
            lines: row_lines,
            rows: rows - 1,
            row_lines,
            gap: stride.wrapping_sub((row_lines - 1) * LINE),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.lines == 0
    }

    #[inline(always)]
    pub(super) fn fetch_line(&mut self) {
        if self.lines == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing and never faults.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(self.at.cast());
        }
        self.lines -= 1;
        if self.lines > 0 {
            self.at = self.at.wrapping_add(LINE);
        } else if self.rows > 0 {
            (self.lines, self.rows) = (self.row_lines, self.rows - 1);
            self.at = self.at.wrapping_add(self.gap);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_of_all_rows_are_fetched_once() {
        let memory = vec![0u8; 8192];
        for (rows, bytes, stride) in
            [(0, 100, 200), (3, 0, 64), (1, 1, 1), (1, 300, 300), (7, 64, 1024), (5, 200, 1600)]
        {
            let mut ahead = Ahead::rows(memory.as_ptr(), rows, bytes, stride);
            let mut fetched = Vec::new();
            while !ahead.is_over() {
                fetched.push(ahead.at as usize - memory.as_ptr() as usize);
                ahead.fetch_line();
            }
            let lines = (0..rows).flat_map(|row| (0..bytes).step_by(LINE).map(move |at| row * stride + at));
            assert_eq!(fetched, lines.collect::<Vec<_>>(), "{rows} rows of {bytes} bytes, {stride} apart");
        }
    }
}
