//! How much memory a request's body may become. Two bytes of protobuf, or three of JSON, are an empty object in a list, and
//! that is a thousand bytes once it has its defaults: without a bound, the largest body takes gigabytes. What is made of a
//! body is counted while it is made, and refused before it is there.

use crate::ApiError;

/// An object in memory: the first node of its map, and the defaults that it gets.
pub(crate) const OBJECT_BYTES: usize = 1024;
/// An entry of a map or a field of an object: the key's and the value's own parts.
pub(crate) const ENTRY_BYTES: usize = 64;
/// An item of a list.
pub(crate) const ITEM_BYTES: usize = 32;
/// What any body may become: small ones that expand much (an EndpointSlice of a thousand endpoints: 5 MiB) are no harm.
const SMALL_BYTES: usize = 8 << 20;
/// What a body may become beyond that, per byte: the densest objects that are stored (25,000 rules of a role in 1.5 MiB).
const TIMES_BODY: usize = 20;

/// What is left of one body's part.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
    whole: usize,
    exceeded: bool,
}

impl Budget {
    /// For a body of so many bytes.
    pub(crate) fn of_body(bytes: usize) -> Self {
        Self::new(bytes.saturating_mul(TIMES_BODY).saturating_add(SMALL_BYTES))
    }

    /// For what the server made itself, or has bounded before.
    pub(crate) fn unlimited() -> Self {
        Self::new(usize::MAX)
    }

    fn new(whole: usize) -> Self {
        Self { left: whole, whole, exceeded: false }
    }

    /// Counts what is about to be made; false: don't.
    #[must_use]
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        match self.left.checked_sub(bytes) {
            Some(left) if !self.exceeded => self.left = left,
            _ => self.exceeded = true,
        }
        !self.exceeded
    }

    /// Whether it was too much; what has been made then is incomplete.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// The answer to a body that was too much.
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
