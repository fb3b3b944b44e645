//! Sets and managers' identities that many objects share are held once: replicas of a template are written by the same
//! managers and set the same fields. What nobody holds any more goes.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::fields;
use super::set::Set;

/// Pieces of a pool, so that writers seldom wait for one another.
const SHARDS: usize = 16;
/// Holders from which on a set is kept parsed.
const PARSED_FROM_HOLDERS: usize = 4;
/// Sets that a thread parsed last and keeps for its next request: of objects that rest, nobody else holds them.
const RECENT_MAX: usize = 16;
/// The longest of them, in bytes of text.
const RECENT_BYTES_MAX: usize = 4096;

thread_local! {
    static RECENT: RefCell<VecDeque<(Arc<FieldSet>, Arc<Set>)>> = const { RefCell::new(VecDeque::new()) };
}

/// A set of fields as its text, and parsed while many hold it.
#[derive(Debug)]
pub struct FieldSet {
    text: Box<str>,
    set: OnceLock<Arc<Set>>,
}

impl FieldSet {
    /// FieldsV1.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The set.
    #[must_use]
    pub fn set(self: &Arc<Self>) -> Arc<Set> {
        if let Some(set) = self.set.get() {
            return set.clone();
        }
        let recent = RECENT.with_borrow(|recent| recent.iter().find(|(of, _)| Arc::ptr_eq(of, self)).cloned());
        if let Some((_, set)) = recent {
            return set;
        }
        // The text was made of a set.
        let set = Arc::new(fields::decode(&self.text).unwrap_or_default());
        if Arc::strong_count(self) >= PARSED_FROM_HOLDERS {
            drop(self.set.set(set.clone()));
        } else if self.text.len() <= RECENT_BYTES_MAX {
            RECENT.with_borrow_mut(|recent| {
                recent.truncate(RECENT_MAX - 1);
                recent.push_front((self.clone(), set.clone()));
            });
        }
        set
    }
}

/// Values by their text, as long as somebody holds them.
struct Pool<T> {
    hasher: RandomState,
    shards: [Mutex<Shard<T>>; SHARDS],
}

struct Shard<T> {
    values: HashMap<u64, Vec<Weak<T>>>,
    /// When to look for what is gone.
    sweep_at: usize,
}

impl<T> Pool<T> {
    fn new() -> Self {
        let shard = |_| Mutex::new(Shard { values: HashMap::new(), sweep_at: 1024 });
        Self { hasher: RandomState::new(), shards: std::array::from_fn(shard) }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<T>> {
        self.shards[hash as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get<K: std::hash::Hash>(&self, key: K, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Arc<T> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash);
        if let Some(found) = shard.values.get(&hash).into_iter().flatten().filter_map(Weak::upgrade).find(|v| is(v)) {
            return found;
        }
        let made = Arc::new(make());
        let bucket = shard.values.entry(hash).or_default();
        bucket.retain(|held| held.strong_count() > 0);
        bucket.push(Arc::downgrade(&made));
        if shard.values.len() >= shard.sweep_at {
            shard.values.retain(|_, bucket| {
                bucket.retain(|held| held.strong_count() > 0);
                !bucket.is_empty()
            });
            shard.sweep_at = (2 * shard.values.len()).max(1024);
        }
        made
    }
}

static SETS: LazyLock<Pool<FieldSet>> = LazyLock::new(Pool::new);
static IDENTITIES: LazyLock<Pool<super::managers::Identity>> = LazyLock::new(Pool::new);

/// The one set of a text that [`fields::encode`] made.
#[must_use]
pub fn of_text(text: &str) -> Arc<FieldSet> {
    SETS.get(text, |held| *held.text == *text, || FieldSet { text: text.into(), set: OnceLock::new() })
}

/// The one set like this.
#[must_use]
pub fn of_set(set: &Set) -> Arc<FieldSet> {
    of_text(&fields::encode(set))
}

/// The one identity like this.
#[must_use]
pub(super) fn identity(who: super::managers::Identity) -> Arc<super::managers::Identity> {
    let key = (&*who.manager, who.operation, &*who.api_version, &*who.subresource);
    let hash = IDENTITIES.hasher.hash_one(key);
    let copy = who.clone();
    IDENTITIES.get(hash, move |held| *held == who, move || copy)
}
