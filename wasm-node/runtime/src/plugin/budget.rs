//! What the values of one call may take, asked before each of them is made.

use std::cell::Cell;

use wasmtime::component::Val;

/// Bytes that one value takes by itself.
pub(crate) const VALUE_BYTES: usize = size_of::<Val>();
/// What each allocation costs besides its content.
const ALLOCATION_BYTES: usize = 16;

/// More than a call's values may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the arguments take more than {max} bytes as values ({VALUE_BYTES} for each, besides their text)")]
pub(crate) struct TooMuch {
    max: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Budget {
    max: usize,
    used: Cell<usize>,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, used: Cell::new(0) }
    }

    fn take(&self, bytes: usize) -> Result<(), TooMuch> {
        let used = self.used.get().saturating_add(bytes);
        if used > self.max {
            return Err(TooMuch { max: self.max });
        }
        self.used.set(used);
        Ok(())
    }

    /// So many values are about to be made.
    pub(crate) fn values(&self, count: usize) -> Result<(), TooMuch> {
        self.take(count.saturating_mul(VALUE_BYTES))
    }

    /// A text is about to be kept.
    pub(crate) fn text(&self, text: &str) -> Result<(), TooMuch> {
        self.take(text.len().saturating_add(ALLOCATION_BYTES))
    }

    /// Bytes that were taken.
    pub(crate) fn used(&self) -> usize {
        self.used.get()
    }
}
