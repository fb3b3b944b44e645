//! A cache of verified token signatures. A verification takes 0.1 ms, and clients send their token with every request.
//!
//! Only the claims are cached, which cannot change for given bytes. Expiry and bound objects are checked on every
//! request, so that tokens of deleted pods are rejected immediately.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::jwt::SigningKey;

/// The lifetime of an entry, as in upstream's cache of successful tokens.
const ENTRY_TTL: Duration = Duration::from_secs(10);
/// The maximum number of entries: as many as a large cluster's pods use within the lifetime, about 4 MiB of claims.
const ENTRIES_MAX: usize = 4096;

/// The SHA-256 of a token; tokens themselves are not stored.
type Digest = [u8; 32];

#[derive(Debug, Default)]
pub(super) struct TokenCache {
    state: Mutex<TokenCacheState>,
}

#[derive(Debug, Default)]
struct TokenCacheState {
    claims: HashMap<Digest, Arc<Value>>,
    /// Expiry times, ascending.
    until: VecDeque<(Duration, Digest)>,
}

impl TokenCache {
    /// Returns the claims of a token that `key` signed. `now` is a monotonic time.
    pub(super) fn verify(&self, key: &SigningKey, now: Duration, token: &str) -> Option<Arc<Value>> {
        let digest = digest(token);
        if let Some(claims) = self.get(now, &digest) {
            return Some(claims);
        }
        // Verified without the lock, so that invalid tokens of one client do not delay other requests.
        let claims = Arc::new(key.verify(token)?);
        self.insert(now, digest, claims.clone());
        Some(claims)
    }

    fn get(&self, now: Duration, digest: &Digest) -> Option<Arc<Value>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.evict(|until, _| until <= now);
        state.claims.get(digest).cloned()
    }

    fn insert(&self, now: Duration, digest: Digest, claims: Arc<Value>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.claims.insert(digest, claims).is_none() {
            state.until.push_back((now + ENTRY_TTL, digest));
        }
        state.evict(|_, count| count > ENTRIES_MAX);
    }
}

impl TokenCacheState {
    /// Removes entries from the oldest on while `evicts` returns true for an entry's expiry and the number of entries.
    fn evict(&mut self, evicts: impl Fn(Duration, usize) -> bool) {
        while let Some((until, digest)) = self.until.front().copied() {
            if !evicts(until, self.until.len()) {
                return;
            }
            self.until.pop_front();
            self.claims.remove(&digest);
        }
    }
}

fn digest(token: &str) -> Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_signature_is_checked_once_in_a_while_and_for_a_bounded_number() {
        let key = |_: u8| SigningKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let (ours, other) = (key(1), key(2));
        let cache = TokenCache::default();
        let at = Duration::from_secs;
        let token = ours.sign(&json!({"sub": "a"})).unwrap();
        assert!(cache.verify(&other, at(0), &token).is_none(), "a bad one is not remembered");
        assert_eq!(cache.verify(&ours, at(0), &token).unwrap()["sub"], "a");
        // The cached entry is used within its lifetime, and the signature is verified again after that.
        assert!(cache.verify(&other, at(9), &token).is_some());
        assert!(cache.verify(&other, at(9), &format!("{token}x")).is_none());
        assert!(cache.verify(&other, at(10), &token).is_none());
        for n in 0..ENTRIES_MAX + 10 {
            cache.insert(at(11), digest(&n.to_string()), Arc::new(Value::Null));
        }
        let state = cache.state.lock().unwrap();
        assert_eq!((state.claims.len(), state.until.len()), (ENTRIES_MAX, ENTRIES_MAX));
    }
}
