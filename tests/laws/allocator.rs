//! The allocator of these tests. On a thread that asks it to, it counts blocks, or looks at those that are given back.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    iter::Sum,
    ops::Add,
    slice,
};

#[global_allocator]
static ALLOCATOR: Watchful = Watchful;

/// What `looking` looks for.
pub(crate) const CANARY: &[u8] = b"cAnary";

/// The blocks that a thread was given and gave back. A block that grows is given back for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) taken: Blocks,
    pub(crate) given_back: Blocks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) number: usize,
    pub(crate) bytes: usize,
}

/// How many blocks this thread gave back with a canary in them while `action` ran.
pub(crate) fn looking(action: impl FnOnce()) -> usize {
    HITS.set(0);
    IS_LOOKING.set(true);
    action();
    IS_LOOKING.set(false);
    HITS.get()
}

/// The blocks that this thread took and gave back while `action` ran.
pub(crate) fn counting<T>(action: impl FnOnce() -> T) -> (T, Traffic) {
    TRAFFIC.set(Traffic::NONE);
    IS_COUNTING.set(true);
    let result = action();
    IS_COUNTING.set(false);
    (result, TRAFFIC.get())
}

thread_local! {
    // None has a destructor or is made lazily, so that the allocator may use them at any time.
    static IS_LOOKING: Cell<bool> = const { Cell::new(false) };
    static HITS: Cell<usize> = const { Cell::new(0) };
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
    static TRAFFIC: Cell<Traffic> = const { Cell::new(Traffic::NONE) };
}

/// The system's allocator, which counts blocks and looks at each before it is given back.
///
/// Blocks begin as zeros: one that is used in part would else be found with what its last owner left in it. And they
/// never grow in place: whoever lets a buffer grow has to count on a copy.
struct Watchful;

#[allow(unsafe_code, reason = "an allocator is unsafe to implement; it does what it does for the tests alone")]
// SAFETY: every block comes from the system's allocator and goes back to it with the layout it was made with.
unsafe impl GlobalAlloc for Watchful {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_COUNTING.get() {
            TRAFFIC.set(TRAFFIC.get() + Traffic { taken: Blocks::one(layout), ..Traffic::NONE });
        }
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if IS_COUNTING.get() {
            TRAFFIC.set(TRAFFIC.get() + Traffic { given_back: Blocks::one(layout), ..Traffic::NONE });
        }
        if IS_LOOKING.get() {
            // SAFETY: the block is the caller's until it is given back below, and all of it was set to zero at first.
            let bytes = unsafe { slice::from_raw_parts(block, layout.size()) };
            if bytes.windows(CANARY.len()).any(|window| window == CANARY) {
                HITS.set(HITS.get() + 1);
            }
        }
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

impl Traffic {
    pub(crate) const NONE: Self = Self { taken: Blocks::NONE, given_back: Blocks::NONE };
}

impl Blocks {
    pub(crate) const NONE: Self = Self { number: 0, bytes: 0 };

    fn one(layout: Layout) -> Self {
        Self { number: 1, bytes: layout.size() }
    }
}

impl Add for Blocks {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { number: self.number + other.number, bytes: self.bytes + other.bytes }
    }
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { taken: self.taken + other.taken, given_back: self.given_back + other.given_back }
    }
}

impl Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::NONE, Add::add)
    }
}
