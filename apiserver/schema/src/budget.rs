//! Memory budget of decoding a request's body. Two bytes of protobuf, or three of JSON, are an empty object in a list,
//! which takes a thousand bytes with its defaults: unbounded, the largest body would take gigabytes. Allocations are
//! counted before they are made, and rejected over the budget.

use machinery_api::ApiError;

/// Size of an object in memory: the first node of its map, and its defaults.
pub(crate) const OBJECT_BYTES: usize = 1024;
/// Size of an entry of a map or a field of an object: the key and the value's fixed part.
pub(crate) const ENTRY_BYTES: usize = 64;
/// Size of a list item.
pub(crate) const ITEM_BYTES: usize = 32;
/// Budget of every body: small ones may expand much (an EndpointSlice of a thousand endpoints: 5 MiB).
const SMALL_BYTES: usize = 8 << 20;
/// Additional budget per byte of a body: the densest stored objects (25,000 rules of a role in 1.5 MiB).
const TIMES_BODY: usize = 20;

/// The remaining budget of one body.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
    whole: usize,
    exceeded: bool,
}

impl Budget {
    /// The budget for a body of this many bytes.
    pub(crate) fn of_body(bytes: usize) -> Self {
        Self::new(bytes.saturating_mul(TIMES_BODY).saturating_add(SMALL_BYTES))
    }

    /// For values made by the server itself, or bounded before.
    pub(crate) fn unlimited() -> Self {
        Self::new(usize::MAX)
    }

    fn new(whole: usize) -> Self {
        Self { left: whole, whole, exceeded: false }
    }

    /// Counts an allocation; false if it must not be made.
    #[must_use]
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        match self.left.checked_sub(bytes) {
            Some(left) if !self.exceeded => self.left = left,
            _ => self.exceeded = true,
        }
        !self.exceeded
    }

    /// Whether the budget was exceeded; the decoded value is incomplete then.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// The error for an exceeded budget.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        if !self.exceeded {
            return Ok(());
        }
        Err(ApiError::TooLarge(format!(
            "Request entity too large: its lists and objects would take more than {} MiB of memory; split it into several \
             objects",
            self.whole >> 20
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_once() {
        let mut budget = Budget::of_body(0);
        assert!(budget.take(SMALL_BYTES) && !budget.take(1) && !budget.take(0));
        assert_eq!(budget.check().unwrap_err().status().code, 413);
        assert!(Budget::unlimited().take(usize::MAX));
    }
}
