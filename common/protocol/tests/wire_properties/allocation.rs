//! Counting what a thread allocates, to hold it against what it was given.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a piece of work allocated, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocated {
    /// The largest single allocation.
    pub largest: usize,
    /// The most that was held at a time.
    pub peak: usize,
}

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, and a count per thread.
pub struct Counting;

fn note(size: usize, change: isize) {
    // A thread that is ending has no counts any more.
    let _ = LARGEST.try_with(|l| l.set(l.get().max(size)));
    let _ = HELD.try_with(|h| {
        h.set(h.get() + change);
        let _ = PEAK.try_with(|p| p.set(p.get().max(h.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; the counts allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(0, -(layout.size() as isize));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, size as isize - layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Does something and tells what this thread allocated for it.
pub fn count<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    LARGEST.set(0);
    let before = HELD.get();
    PEAK.set(before);
    let outcome = work();
    (outcome, Allocated { largest: LARGEST.get(), peak: (PEAK.get() - before) as usize })
}
