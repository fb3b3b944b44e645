//! Interns values that many objects have in common: ten thousand pods of one template share one copy of their
//! template's fields.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Minimum size for a sweep, which visits every value.
const SWEPT_FROM: usize = 256;

/// A pool of interned immutable values. Unused values are dropped by a sweep whenever the pool has doubled, so a pool
/// has at most twice the values in use.
#[derive(Debug)]
pub struct Pool<T>(LazyLock<Mutex<Values<T>>>);

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

impl<T: Eq + Hash> Pool<T> {
    /// An empty pool.
    #[must_use]
    pub const fn new() -> Self {
        Self(LazyLock::new(|| Mutex::new(Values::new())))
    }

    /// Interns a value.
    #[must_use]
    pub fn share(&self, value: T) -> Arc<T> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = values.held.get(&value) {
            return held.clone();
        }
        if values.held.len() >= values.sweep_at {
            values.held.retain(|held| Arc::strong_count(held) > 1);
            values.sweep_at = (2 * values.held.len()).max(SWEPT_FROM);
            let room = values.sweep_at;
            values.held.shrink_to(room);
        }
        let value = Arc::new(value);
        values.held.insert(value.clone());
        value
    }
}

impl<T: Eq + Hash> Default for Pool<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_held_once_and_unused_ones_go() {
        static POOL: Pool<String> = Pool::new();
        let kept = POOL.share("a".into());
        assert!(Arc::ptr_eq(&kept, &POOL.share("a".into())));
        for n in 0..10 * SWEPT_FROM {
            let _ = POOL.share(n.to_string());
        }
        assert!(POOL.0.lock().unwrap().held.len() <= SWEPT_FROM);
        assert!(Arc::ptr_eq(&kept, &POOL.share("a".into())));
    }
}
