//! One pass over a key with the results of its effects, and the state that a controller caches between passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::effect::{Effect, ReconcilerState};
use crate::plan::Failure;
use machinery_api::ObjectKey;

/// The server's response to an effect.
pub type EffectResult = Result<Arc<Value>, Failure>;

/// Progress of a pass over one key: its effects so far and the scratch state of the last round.
#[derive(Debug, Default, Clone)]
pub struct Pass {
    results: Vec<(Effect, EffectResult)>,
    /// Scratch state from the last plan with effects.
    pub scratch: Option<ReconcilerState>,
}

impl Pass {
    /// Adds an effect's result.
    pub fn record(&mut self, effect: Effect, result: EffectResult) {
        self.results.push((effect, result));
    }

    /// Whether an effect was run already.
    #[must_use]
    pub fn has_results(&self) -> bool {
        !self.results.is_empty()
    }

    /// The last result of an effect in this pass.
    #[must_use]
    pub fn result(&self, effect: &Effect) -> Option<&EffectResult> {
        self.results.iter().rev().find(|(known, _)| known == effect).map(|(_, result)| result)
    }

    /// The last result of a GET of a path.
    #[must_use]
    pub fn get_result(&self, path: &str) -> Option<&EffectResult> {
        let is_get = |effect: &Effect| matches!(effect, Effect::Get(known) if known == path);
        self.results.iter().rev().find(|(effect, _)| is_get(effect)).map(|(_, result)| result)
    }
}

/// A controller's cached state, by key.
#[derive(Debug, Default, Clone)]
pub struct ReconcilerCache(BTreeMap<ObjectKey, ReconcilerState>);

impl ReconcilerCache {
    /// An empty cache.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The state of a key, if it is of this type.
    #[must_use]
    pub fn of<T: 'static>(&self, key: &ObjectKey) -> Option<&T> {
        self.0.get(key)?.get()
    }

    /// The state of a namespace's keys, in order.
    pub fn within<'a, T: 'static>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a ObjectKey, &'a T)> {
        let keys = self.0.range(ObjectKey::new(namespace, "")..).take_while(move |(key, _)| key.namespace == namespace);
        keys.filter_map(|(key, state)| Some((key, state.get()?)))
    }

    /// Sets or removes the state of a key.
    pub fn set(&mut self, key: &ObjectKey, state: Option<ReconcilerState>) {
        match state {
            Some(state) => self.0.insert(key.clone(), state),
            None => self.0.remove(key),
        };
    }

    /// Whether a key has no state.
    #[must_use]
    pub fn lacks(&self, key: &ObjectKey) -> bool {
        !self.0.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts_and_memories_are_found_by_namespace() {
        let mut pass = Pass::default();
        let ask = Effect::Get("/a".into());
        assert!(pass.get_result("/a").is_none());
        for n in [1, 2] {
            pass.record(ask.clone(), Ok(Arc::new(n.into())));
        }
        pass.record(Effect::Put("/a".into(), Value::Null), Ok(Arc::new(3.into())));
        assert_eq!(pass.get_result("/a"), Some(&Ok(Arc::new(2.into()))));
        assert_eq!(pass.result(&ask), pass.get_result("/a"));
        let mut reconciler_cache = ReconcilerCache::new();
        let keys = [("a", "x"), ("b", "x"), ("b", "y"), ("c", "x")].map(|(space, name)| ObjectKey::new(space, name));
        keys.iter().for_each(|key| reconciler_cache.set(key, Some(ReconcilerState::of(key.name.clone()))));
        reconciler_cache.set(&keys[1], Some(ReconcilerState::of(5)));
        let of_b: Vec<_> =
            reconciler_cache.within::<String>("b").map(|(key, name)| (key.clone(), name.as_str())).collect();
        assert_eq!(of_b, [(keys[2].clone(), "y")], "of another type: not seen");
        reconciler_cache.set(&keys[0], None);
        assert!(reconciler_cache.lacks(&keys[0]) && reconciler_cache.of::<String>(&keys[3]).is_some());
    }
}
