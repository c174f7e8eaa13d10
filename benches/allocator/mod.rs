//! An allocator that counts.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ops::Sub,
    sync::atomic::{AtomicI64, Ordering},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Blocks, and the bytes in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) number: i64,
    pub(crate) bytes: i64,
}

/// What `action` took and did not give back before it ended: what its result holds.
pub(crate) fn held<T>(action: impl FnOnce() -> T) -> (T, Blocks) {
    let before = [TAKEN.now(), GIVEN_BACK.now()];
    let result = action();
    let [taken, given_back] = [TAKEN.since(before[0]), GIVEN_BACK.since(before[1])];
    (result, taken - given_back)
}

/// What `action` took, whether it gave it back or not. A block that grows is another one.
pub(crate) fn taken<T>(action: impl FnOnce() -> T) -> (T, Blocks) {
    let before = TAKEN.now();
    let result = action();
    (result, TAKEN.since(before))
}

static TAKEN: Counter = Counter::new();
static GIVEN_BACK: Counter = Counter::new();

struct Counter {
    number: AtomicI64,
    bytes: AtomicI64,
}

impl Counter {
    const fn new() -> Self {
        Self { number: AtomicI64::new(0), bytes: AtomicI64::new(0) }
    }

    fn add(&self, layout: Layout) {
        self.number.fetch_add(1, Ordering::Relaxed);
        // No block is larger than `isize::MAX`.
        self.bytes.fetch_add(layout.size().cast_signed() as i64, Ordering::Relaxed);
    }

    fn now(&self) -> Blocks {
        Blocks { number: self.number.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    fn since(&self, before: Blocks) -> Blocks {
        self.now() - before
    }
}

impl Sub for Blocks {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { number: self.number - other.number, bytes: self.bytes - other.bytes }
    }
}

/// The system's allocator, which counts what it gives and takes. Blocks never grow in place, so that growth is counted.
struct Counting;

#[allow(unsafe_code, reason = "an allocator is unsafe to implement; there is no other way to count blocks")]
// SAFETY: every block comes from the system's allocator and goes back to it with the layout it was made with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.add(layout);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        GIVEN_BACK.add(layout);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}
