//! The system's allocator, which counts what it is asked for when it is told to.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ops::Sub,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// Statics, not thread-locals: to look at one costs a load, which is all that the timed requests pay.
static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static NUMBER: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Blocks that were asked for. One that grows is asked for anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
}

impl Sub for Blocks {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { number: self.number - other.number, bytes: self.bytes - other.bytes }
    }
}

/// The blocks that were asked for while `action` ran.
pub(crate) fn counting(action: impl FnOnce()) -> Blocks {
    NUMBER.store(0, Relaxed);
    BYTES.store(0, Relaxed);
    IS_COUNTING.store(true, Relaxed);
    action();
    IS_COUNTING.store(false, Relaxed);
    Blocks { number: NUMBER.load(Relaxed), bytes: BYTES.load(Relaxed) }
}

fn count(bytes: usize) {
    if IS_COUNTING.load(Relaxed) {
        NUMBER.fetch_add(1, Relaxed);
        BYTES.fetch_add(bytes as u64, Relaxed);
    }
}

struct Counting;

#[allow(unsafe_code, reason = "an allocator is unsafe to implement, and this one is for the measure alone")]
// SAFETY: every block comes from the system's allocator and goes back to it with the layout it was made with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}
