//! Interns values that many objects have in common: ten thousand pods of one template share one copy of their
//! template's fields. Input: an owned value; output: the shared one that equals it.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Minimum size for a sweep, which visits every value.
const SWEPT_FROM: usize = 256;

/// Interned immutable values. A sweep drops the unused ones whenever their number has doubled, so an interner has at
/// most twice the values in use.
#[derive(Debug)]
pub struct Interner<T>(LazyLock<Mutex<Values<T>>>);

#[derive(Debug)]
struct Values<T> {
    held: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T> Values<T> {
    fn new() -> Self {
        Self { held: HashSet::new(), sweep_at: SWEPT_FROM }
    }
}

impl<T: Eq + Hash> Interner<T> {
    /// An empty interner.
    #[must_use]
    pub const fn new() -> Self {
        Self(LazyLock::new(|| Mutex::new(Values::new())))
    }

    /// Interns a value.
    #[must_use]
    pub fn intern(&self, value: T) -> Arc<T> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = values.held.get(&value) {
            return held.clone();
        }
        if values.held.len() >= values.sweep_at {
            values.held.retain(|held| Arc::strong_count(held) > 1);
            values.sweep_at = (2 * values.held.len()).max(SWEPT_FROM);
            let capacity = values.sweep_at;
            values.held.shrink_to(capacity);
        }
        let value = Arc::new(value);
        values.held.insert(value.clone());
        value
    }
}

impl<T: Eq + Hash> Default for Interner<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_held_once_and_unused_ones_go() {
        static NAMES: Interner<String> = Interner::new();
        let kept = NAMES.intern("a".into());
        assert!(Arc::ptr_eq(&kept, &NAMES.intern("a".into())));
        for n in 0..10 * SWEPT_FROM {
            let _ = NAMES.intern(n.to_string());
        }
        assert!(NAMES.0.lock().unwrap().held.len() <= SWEPT_FROM);
        assert!(Arc::ptr_eq(&kept, &NAMES.intern("a".into())));
    }
}
