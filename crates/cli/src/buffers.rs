//! The program's allocator: large buffers of all threads share one heap.
//!
//! A training step takes and gives back the same few thousand buffers as the step before. The system's allocator either
//! maps and unmaps each of them, and the page faults cost more than the elementwise work, or keeps them in a heap for each
//! thread, and what one thread has freed is of no use to another. Here large buffers come from one stretch of address space:
//! the smallest hole that fits, neighbouring holes joined, pages kept for as long as the program runs. Small ones are
//! the system's own business.
#![allow(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::{MmapMut, MmapOptions};

/// Bytes from which a buffer lies in the heap.
const LARGE: usize = 64 << 10;
/// Places and sizes are multiples of this: a cache line, and any alignment that numbers ask for.
const GRAIN: usize = 64;
/// Address space for the heap. It costs nothing until it is written to; where so much is not to be had, half of it is
/// tried, and so on.
const SPACE: usize = 1 << 42;
/// The least that is worth having.
const LEAST_SPACE: usize = 1 << 30;

/// See the module.
#[derive(Debug)]
pub struct Buffers {
    heap: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Nothing was asked for yet.
    Unused,
    Heap(Heap),
    /// There is no address space: the system's allocator does it all.
    Absent,
}

/// Best fit with joining of neighbours. What it knows of holes lies outside of them, in small allocations.
#[derive(Debug)]
struct Heap {
    space: MmapMut,
    /// Size of each hole below `top`, by its place.
    holes: BTreeMap<usize, usize>,
    /// The same as (size, place).
    sizes: BTreeSet<(usize, usize)>,
    /// Everything from here on is free.
    top: usize,
    /// Everything from here on has never been written to.
    fresh: usize,
}

impl Heap {
    fn new() -> Option<Self> {
        let mut size = SPACE;
        while size >= LEAST_SPACE {
            if let Ok(space) = MmapOptions::new().len(size).no_reserve_swap().map_anon() {
                return Some(Self { space, holes: BTreeMap::new(), sizes: BTreeSet::new(), top: 0, fresh: 0 });
            }
            size /= 2;
        }
        None
    }

    /// The place of `size` bytes; `None` when the space is full.
    fn take(&mut self, size: usize) -> Option<usize> {
        if let Some(&(found, place)) = self.sizes.range((size, 0)..).next() {
            self.close(place, found);
            if found > size {
                self.open(place + size, found - size);
            }
            return Some(place);
        }
        // A hole at the very end is made part of it.
        let place = match self.holes.last_key_value() {
            Some((&place, &size)) if place + size == self.top => {
                self.close(place, size);
                place
            }
            _ => self.top,
        };
        if place + size > self.space.len() {
            if place < self.top {
                self.open(place, self.top - place);
            }
            return None;
        }
        self.top = place + size;
        Some(place)
    }

    fn give(&mut self, mut place: usize, mut size: usize) {
        if let Some(&behind) = self.holes.get(&(place + size)) {
            self.close(place + size, behind);
            size += behind;
        }
        if let Some((&before, &length)) = self.holes.range(..place).next_back()
            && before + length == place
        {
            self.close(before, length);
            (place, size) = (before, size + length);
        }
        self.open(place, size);
    }

    fn open(&mut self, place: usize, size: usize) {
        self.holes.insert(place, size);
        self.sizes.insert((size, place));
    }

    fn close(&mut self, place: usize, size: usize) {
        self.holes.remove(&place);
        self.sizes.remove(&(size, place));
    }

    /// Where the bytes of a place that may have been written to end, and that from now on all of them may have been.
    fn written(&mut self, place: usize, size: usize) -> usize {
        let written = self.fresh.clamp(place, place + size) - place;
        self.fresh = self.fresh.max(place + size);
        written
    }

    /// Place of an address, if it is one of this heap.
    fn place(&self, address: *mut u8) -> Option<usize> {
        let place = (address as usize).checked_sub(self.space.as_ptr() as usize)?;
        (place < self.space.len()).then_some(place)
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::new()
    }
}

impl Buffers {
    /// Nothing held yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { heap: Mutex::new(State::Unused) }
    }

    /// Bytes between the heap's start and its end, and how many of them are holes.
    #[must_use]
    pub fn extent(&self) -> (usize, usize) {
        match &*self.state() {
            State::Heap(heap) => (heap.top, heap.holes.values().sum()),
            State::Unused | State::Absent => (0, 0),
        }
    }

    /// Never held while a large buffer is asked for: what the heap knows of its holes is small.
    fn state(&self) -> MutexGuard<'_, State> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer, and how many of its bytes may not be zero.
    fn take(&self, size: usize) -> Option<(*mut u8, usize)> {
        let mut state = self.state();
        if matches!(*state, State::Unused) {
            *state = Heap::new().map_or(State::Absent, State::Heap);
        }
        let State::Heap(heap) = &mut *state else { return None };
        let place = heap.take(size)?;
        let written = heap.written(place, size);
        Some((heap.space.as_mut_ptr().wrapping_add(place), written))
    }

    /// Takes a buffer back; `false` if it is not of this heap.
    fn give(&self, address: *mut u8, size: usize) -> bool {
        let mut state = self.state();
        let State::Heap(heap) = &mut *state else { return false };
        let Some(place) = heap.place(address) else { return false };
        heap.give(place, size);
        true
    }
}

/// The size that is really taken.
fn rounded(layout: Layout) -> usize {
    layout.size().next_multiple_of(GRAIN)
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= GRAIN
}

// SAFETY: places of the heap are handed to one owner at a time, lie in the mapping, start at multiples of GRAIN and go back
// with the size they were taken with; all else is the system's own.
unsafe impl GlobalAlloc for Buffers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout)
            && let Some((place, _)) = self.take(rounded(layout))
        {
            return place;
        }
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout)
            && let Some((place, written)) = self.take(rounded(layout))
        {
            // SAFETY: the buffer has at least so many bytes, and is nobody else's.
            unsafe { place.write_bytes(0, written) };
            return place;
        }
        // SAFETY: the caller's word.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if is_large(layout) && self.give(place, rounded(layout)) {
            return;
        }
        // SAFETY: the caller's word, and it is not of the heap.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's word: the new size does not overflow.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if !is_large(layout) && !is_large(new_layout) {
            // SAFETY: the caller's word.
            return unsafe { System.realloc(place, layout, new_size) };
        }
        if is_large(layout) && is_large(new_layout) && rounded(layout) == rounded(new_layout) {
            return place;
        }
        // SAFETY: both layouts are valid, and the smaller size lies in both buffers.
        unsafe {
            let new = self.alloc(new_layout);
            if new.is_null() {
                return null_mut();
            }
            std::ptr::copy_nonoverlapping(place, new, layout.size().min(new_size));
            self.dealloc(place, layout);
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("an alignment of eight")
    }

    #[test]
    fn a_buffer_is_used_again_and_zeroed_where_it_was_written_to() {
        let buffers = Buffers::new();
        // SAFETY: sizes are not zero, and every place goes back with its layout.
        unsafe {
            let first = buffers.alloc(of(LARGE));
            first.write_bytes(7, LARGE);
            buffers.dealloc(first, of(LARGE));
            let again = buffers.alloc_zeroed(of(2 * LARGE));
            assert_eq!(first, again);
            assert!(std::slice::from_raw_parts(again, 2 * LARGE).iter().all(|byte| *byte == 0));
            again.write_bytes(9, 2 * LARGE);
            let grown = buffers.realloc(again, of(2 * LARGE), 3 * LARGE);
            assert!(std::slice::from_raw_parts(grown, 2 * LARGE).iter().all(|byte| *byte == 9));
            let small = buffers.realloc(grown, of(3 * LARGE), 100);
            assert_eq!(*small, 9);
            buffers.dealloc(small, of(100));
        }
        let (top, holes) = buffers.extent();
        assert_eq!(top, holes);
    }

    proptest! {
        /// Buffers that live at one time do not overlap, keep what is written to them, and leave one hole behind.
        #[test]
        fn buffers_are_apart(steps in prop::collection::vec((any::<bool>(), 1_usize..9, 0_usize..64), 1..120)) {
            let buffers = Buffers::new();
            let mut live: Vec<(*mut u8, usize, u8)> = Vec::new();
            for (index, (gives, size, which)) in steps.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe {
                    if gives && !live.is_empty() {
                        let (place, size, mark) = live.swap_remove(which % live.len());
                        prop_assert!(std::slice::from_raw_parts(place, size).iter().all(|byte| *byte == mark));
                        buffers.dealloc(place, of(size));
                    } else {
                        let (size, mark) = (size * LARGE + 8 * which, index as u8);
                        let place = buffers.alloc(of(size));
                        place.write_bytes(mark, size);
                        live.push((place, size, mark));
                    }
                }
            }
            for (place, size, mark) in live {
                // SAFETY: as above.
                unsafe {
                    prop_assert!(std::slice::from_raw_parts(place, size).iter().all(|byte| *byte == mark));
                    buffers.dealloc(place, of(size));
                }
            }
            let (top, holes) = buffers.extent();
            prop_assert_eq!(top, holes);
        }
    }
}
