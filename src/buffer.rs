//! Buffers that are used again: a small pool for each thread, so that no request waits for another one's.

use std::{cell::RefCell, mem, ops::Deref};

use zeroize::Zeroize;

/// A buffer from the pool of the thread that takes it, for the pool of the thread that drops it.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    holds_secret: bool,
}

/// So many are kept for each thread. A burst takes more, and gives them back to the allocator.
const MOST: usize = 64;

/// A longer one is not kept: hardly a server accepts such a head.
const LARGEST: usize = 8 * 1024;

/// Enough for most heads, so that a buffer does not grow step by step.
const SMALLEST: usize = 512;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Buffer {
    /// An empty one.
    pub(crate) fn take() -> Self {
        let bytes = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_default();
        Self { bytes, holds_secret: false }
    }

    /// Adds a part and what ends it.
    pub(crate) fn write(&mut self, part: &[u8], end: u8) {
        let room = self.bytes.capacity() - self.bytes.len();
        if room <= part.len() {
            self.grow(part.len() + 1);
        }
        self.bytes.extend_from_slice(part);
        self.bytes.push(end);
    }

    /// The same for what is wiped before the buffer is used again.
    pub(crate) fn write_secret(&mut self, part: &[u8], end: u8) {
        self.holds_secret = true;
        self.write(part, end);
    }

    #[cold]
    fn grow(&mut self, by: usize) {
        let length = (self.bytes.len() + by).max(SMALLEST).next_power_of_two();
        let mut larger = Vec::with_capacity(length);
        larger.extend_from_slice(&self.bytes);
        self.empty();
        self.bytes = larger;
    }

    fn empty(&mut self) {
        if self.holds_secret {
            // Of the slice, since a `Vec` is wiped byte by byte, with all the room it has left.
            self.bytes.as_mut_slice().zeroize();
        }
        self.bytes.clear();
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.empty();
        let bytes = mem::take(&mut self.bytes);
        if bytes.capacity() > LARGEST {
            return;
        }
        // A thread that ends has no pool any more.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < MOST {
                pool.push(bytes);
            }
        });
    }
}
