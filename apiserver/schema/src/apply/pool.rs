//! Interns field sets and managers' identities: replicas of a template have the same managers and fields. Unused values
//! are dropped.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

use super::fields;
use super::set::Set;
use machinery_api::packed::{Packed, Packer};

/// Shards of a pool, to reduce lock contention.
const SHARDS: usize = 16;
/// Number of holders from which on a set is kept parsed.
const PARSED_FROM_HOLDERS: usize = 4;
/// Maximum recently parsed sets cached by a thread: sets of compressed objects have no other holder.
const RECENT_MAX: usize = 16;
/// Maximum text size of a cached set, in bytes.
const RECENT_BYTES_MAX: usize = 4096;

thread_local! {
    static RECENT: RefCell<VecDeque<(Arc<FieldSet>, Arc<Set>)>> = const { RefCell::new(VecDeque::new()) };
}

/// A field set as text, and parsed while it has many holders. The set of a single compressed object is compressed: the
/// fields of a pod's status differ from its siblings' by addresses.
#[derive(Debug)]
pub struct FieldSet {
    text: RwLock<Form>,
    text_len: u32,
    set: OnceLock<Arc<Set>>,
}

#[derive(Debug)]
enum Form {
    Plain(Box<str>),
    Packed(Packed),
}

impl FieldSet {
    fn new(text: &str) -> Self {
        let text_len = u32::try_from(text.len()).expect("a text that was in a request's body");
        Self { text: RwLock::new(Form::Plain(text.into())), text_len, set: OnceLock::new() }
    }

    /// Calls `of` with the FieldsV1 text.
    pub fn read<T>(&self, of: impl FnOnce(&str) -> T) -> T {
        match &*self.text.read().unwrap_or_else(PoisonError::into_inner) {
            Form::Plain(text) => of(text),
            // A compressed set was valid UTF-8.
            Form::Packed(packed) => of(std::str::from_utf8(&packed.text()).unwrap_or_default()),
        }
    }

    /// The length of the text.
    #[must_use]
    pub fn text_len(&self) -> usize {
        self.text_len as usize
    }

    /// Whether it has no fields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text_len() == "{}".len()
    }

    /// Compresses the text, unless it has many holders.
    pub(super) fn pack(self: &Arc<Self>, packer: &mut Packer) {
        if Arc::strong_count(self) >= PARSED_FROM_HOLDERS {
            return;
        }
        let packed = match &*self.text.read().unwrap_or_else(PoisonError::into_inner) {
            Form::Plain(text) => packer.pack(text.as_bytes()),
            Form::Packed(_) => None,
        };
        if let Some(packed) = packed {
            *self.text.write().unwrap_or_else(PoisonError::into_inner) = Form::Packed(packed);
        }
    }

    /// The parsed set.
    #[must_use]
    pub fn set(self: &Arc<Self>) -> Arc<Set> {
        if let Some(set) = self.set.get() {
            return set.clone();
        }
        let recent = RECENT.with_borrow(|recent| recent.iter().find(|(of, _)| Arc::ptr_eq(of, self)).cloned());
        if let Some((_, set)) = recent {
            return set;
        }
        // The text was encoded from a set.
        let set = Arc::new(self.read(fields::decode).unwrap_or_default());
        if Arc::strong_count(self) >= PARSED_FROM_HOLDERS {
            drop(self.set.set(set.clone()));
        } else if self.text_len() <= RECENT_BYTES_MAX {
            RECENT.with_borrow_mut(|recent| {
                recent.truncate(RECENT_MAX - 1);
                recent.push_front((self.clone(), set.clone()));
            });
        }
        set
    }
}

/// Weakly held values by their text.
struct Pool<T> {
    hasher: RandomState,
    shards: [Mutex<Shard<T>>; SHARDS],
}

struct Shard<T> {
    values: HashMap<u64, Vec<Weak<T>>>,
    /// Size at which dropped values are swept.
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

/// Interns the text of [`fields::encode`].
#[must_use]
pub fn of_text(text: &str) -> Arc<FieldSet> {
    SETS.get(text, |held| held.read(|held| held == text), || FieldSet::new(text))
}

/// Interns a set.
#[must_use]
pub fn of_set(set: &Set) -> Arc<FieldSet> {
    of_text(&fields::encode(set))
}

/// Interns an identity.
#[must_use]
pub(super) fn identity(who: super::managers::Identity) -> Arc<super::managers::Identity> {
    let key = (&*who.manager, who.operation, &*who.api_version, &*who.subresource);
    let hash = IDENTITIES.hasher.hash_one(key);
    let copy = who.clone();
    IDENTITIES.get(hash, move |held| *held == who, move || copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_set_is_the_one_of_its_text() {
        let text = |n: usize| {
            let fields: String = (0..20).map(|field| format!(",\"f:field{}\":{{}}", field * 7)).collect();
            format!("{{\"f:status\":{{\"f:podIPs\":{{\"k:{{\\\"ip\\\":\\\"127.0.0.{n}\\\"}}\":{{}}}}{fields}}}}}")
        };
        let mut packer = Packer::default();
        let sets: Vec<Arc<FieldSet>> = (0..20).map(|n| of_text(&text(n))).collect();
        let before: Vec<Arc<Set>> = sets.iter().map(FieldSet::set).collect();
        for set in &sets {
            set.pack(&mut packer);
            set.pack(&mut packer);
        }
        let packed = sets.iter().filter(|set| matches!(&*set.text.read().unwrap(), Form::Packed(_))).count();
        assert!(packed >= 18, "{packed} of 20: a model is found by the second");
        for (n, (set, before)) in sets.iter().zip(before).enumerate() {
            assert_eq!((set.read(str::to_owned), set.text_len()), (text(n), text(n).len()));
            assert!(Arc::ptr_eq(&of_text(&text(n)), set), "it is still the one of its text");
            assert_eq!(set.set(), before);
        }
        let shared = of_text(&text(99));
        let holders: Vec<_> = (0..PARSED_FROM_HOLDERS).map(|_| shared.clone()).collect();
        shared.pack(&mut packer);
        assert!(matches!(&*shared.text.read().unwrap(), Form::Plain(_)), "{} hold it", holders.len());
    }
}
