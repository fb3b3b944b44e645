//! Sets and managers' identities that many objects share are held once: replicas of a template are written by the same
//! managers and set the same fields. What nobody holds any more goes.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

use super::fields;
use super::set::Set;
use crate::packed::{Packed, Packer};

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

/// A set of fields as its text, and parsed while many hold it. That of one object that rests is packed: the fields of a pod's
/// status differ from those of its siblings by its addresses.
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

    /// What reads FieldsV1 gets the text.
    pub fn read<T>(&self, of: impl FnOnce(&str) -> T) -> T {
        match &*self.text.read().unwrap_or_else(PoisonError::into_inner) {
            Form::Plain(text) => of(text),
            // What was packed was a text.
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

    /// Packs the text, unless many hold it.
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
    SETS.get(text, |held| held.read(|held| held == text), || FieldSet::new(text))
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
