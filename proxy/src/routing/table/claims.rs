//! Claims of Services on addresses and listeners, in the order of arrival.

use std::collections::HashMap;

use machinery_api::ObjectKey;

/// Claims by key, in the order of arrival.
#[derive(Debug)]
pub(super) struct Claims<T>(HashMap<T, Vec<ObjectKey>>);

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + std::hash::Hash> Claims<T> {
    pub(super) fn claim(&mut self, what: T, key: &ObjectKey) {
        let claims = self.0.entry(what).or_default();
        if !claims.contains(key) {
            claims.push(key.clone());
        }
    }

    pub(super) fn release(&mut self, what: &T, key: &ObjectKey) {
        if let Some(claims) = self.0.get_mut(what) {
            claims.retain(|claim| claim != key);
            if claims.is_empty() {
                self.0.remove(what);
            }
        }
    }

    pub(super) fn first(&self, what: &T) -> Option<&ObjectKey> {
        self.0.get(what)?.first()
    }

    pub(super) fn last(&self, what: &T) -> Option<&ObjectKey> {
        self.0.get(what)?.last()
    }
}
