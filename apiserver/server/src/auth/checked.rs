//! Tokens whose signature was checked a moment ago: checking one takes a tenth of a millisecond, and a client sends its
//! token with every request.
//!
//! Only what can't change is remembered, the claims of these very bytes. Whether the token is in time and what it is bound
//! to is still there is looked at again by every request, so that a deleted pod's token dies as fast as without this.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::jwt::SigningKey;

/// How long a checked signature is remembered, as upstream's cache of successful tokens.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Tokens at most: as many as a large cluster's pods use within that time, some 4 MiB of claims.
const TOKENS_MAX: usize = 4096;

/// SHA-256 of a token: tokens themselves are not kept.
type Digest = [u8; 32];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Checked {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    claims: HashMap<Digest, Arc<Value>>,
    /// In the order in which they end.
    until: VecDeque<(Duration, Digest)>,
}

impl Checked {
    /// The claims of a token that `key` signed; `now` is a monotonic time.
    pub(super) fn verify(&self, key: &SigningKey, now: Duration, token: &str) -> Option<Arc<Value>> {
        let digest = digest(token);
        if let Some(claims) = self.find(now, &digest) {
            return Some(claims);
        }
        // Not under the lock: a stranger's bad tokens would hold up everybody's good ones.
        let claims = Arc::new(key.verify(token)?);
        self.keep(now, digest, claims.clone());
        Some(claims)
    }

    fn find(&self, now: Duration, digest: &Digest) -> Option<Arc<Value>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.forget(|until, _| until <= now);
        inner.claims.get(digest).cloned()
    }

    fn keep(&self, now: Duration, digest: Digest, claims: Arc<Value>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.claims.insert(digest, claims).is_none() {
            inner.until.push_back((now + REMEMBERED, digest));
        }
        inner.forget(|_, held| held > TOKENS_MAX);
    }
}

impl Inner {
    /// Forgets from the oldest on, as long as one is to go by its end and how many there are.
    fn forget(&mut self, goes: impl Fn(Duration, usize) -> bool) {
        while let Some((until, digest)) = self.until.front().copied() {
            if !goes(until, self.until.len()) {
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
        let checked = Checked::default();
        let at = Duration::from_secs;
        let token = ours.sign(&json!({"sub": "a"})).unwrap();
        assert!(checked.verify(&other, at(0), &token).is_none(), "a bad one is not remembered");
        assert_eq!(checked.verify(&ours, at(0), &token).unwrap()["sub"], "a");
        // Remembered: the key is not asked again. Then it is.
        assert!(checked.verify(&other, at(9), &token).is_some());
        assert!(checked.verify(&other, at(9), &format!("{token}x")).is_none());
        assert!(checked.verify(&other, at(10), &token).is_none());
        for n in 0..TOKENS_MAX + 10 {
            checked.keep(at(11), digest(&n.to_string()), Arc::new(Value::Null));
        }
        let inner = checked.inner.lock().unwrap();
        assert_eq!((inner.claims.len(), inner.until.len()), (TOKENS_MAX, TOKENS_MAX));
    }
}
