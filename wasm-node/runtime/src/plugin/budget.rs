//! Memory budget for the values of one call, charged before each value is created.

use std::cell::Cell;

use wasmtime::component::Val;

/// Bytes of one value without its content.
pub(crate) const VALUE_BYTES: usize = size_of::<Val>();
/// Bytes of each allocation besides its content.
const ALLOCATION_BYTES: usize = 16;

/// The values exceed the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the arguments take more than {max} bytes as values ({VALUE_BYTES} for each, besides their text)")]
pub(crate) struct TooMuch {
    max: usize,
}

/// The budget of one call.
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

    /// Charges this many values.
    pub(crate) fn values(&self, count: usize) -> Result<(), TooMuch> {
        self.take(count.saturating_mul(VALUE_BYTES))
    }

    /// Charges a text.
    pub(crate) fn text(&self, text: &str) -> Result<(), TooMuch> {
        self.take(text.len().saturating_add(ALLOCATION_BYTES))
    }

    /// Charged bytes.
    pub(crate) fn used(&self) -> usize {
        self.used.get()
    }
}
