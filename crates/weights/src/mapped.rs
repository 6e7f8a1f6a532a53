//! Files mapped into memory, read-only.

use std::{fs::File, ops::Range, path::Path, sync::Arc};

use memmap2::{Mmap, MmapOptions};

use crate::WeightError;

/// Bytes of a mapped file, which stays mapped for as long as they live.
///
/// The map is private and read-only: whatever holds these bytes, the file does not change through them.
#[derive(Debug, Clone)]
pub struct MappedBytes {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl MappedBytes {
    /// Those of a range of the map.
    ///
    /// # Panics
    /// If it reaches beyond its end.
    pub(crate) fn new(map: &Arc<Mmap>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= map.len(), "invariant: a tensor lies within its file");
        Self { map: map.clone(), range }
    }

    /// Gives the memory behind them back to the system; whoever reads them later has them from the file again. Bytes beside
    /// them go with them where they share a page.
    pub fn give_back(&self) {
        give_back(&self.map, &self.range);
    }
}

impl AsRef<[u8]> for MappedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

/// Maps a whole file; an empty one is an empty map.
pub(crate) fn map(path: &Path) -> Result<Mmap, WeightError> {
    let file = File::open(path).map_err(WeightError::io("open", path))?;
    // SAFETY: the map is only read. A file that another process changes while it is mapped would change under our
    // slices; weights are not edited in place, and reading every checkpoint into memory instead would double the
    // memory a model needs.
    #[expect(unsafe_code, reason = "memory-mapping a file")]
    let map = unsafe { MmapOptions::new().map_copy_read_only(&file) };
    map.map_err(WeightError::io("map", path))
}

/// Gives the memory behind a range of a map back; what is read there later comes from the file again.
#[cfg(unix)]
pub(crate) fn give_back(map: &Mmap, range: &Range<usize>) {
    if range.is_empty() {
        return;
    }
    // SAFETY: the map is read-only and backed by a file, so a page given up here is read from the file again, with the
    // same content, when it is next touched; nobody can observe the difference.
    // Failure only means that memory is given back later.
    #[expect(unsafe_code, reason = "giving pages of a read-only file map back")]
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
}

/// Does nothing where the system has no such call.
#[cfg(not(unix))]
pub(crate) fn give_back(_map: &Mmap, _range: &Range<usize>) {}
