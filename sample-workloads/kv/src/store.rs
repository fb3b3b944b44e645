//! Keys with their values and deadlines.
use crate::failure::Failure;
use crate::siphash::{Seed, hash};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

/// Memory of a key besides its bytes and its value's: nodes of trees, allocations.
const KEY_OVERHEAD_BYTES: usize = 96;
/// Memory of an item of a list, set or hash besides its bytes.
const ITEM_OVERHEAD_BYTES: usize = 32;

/// All keys.
///
/// They are ordered by hash: a cursor of `SCAN` is a hash, so that a scan returns each key that exists from its begin to its end,
/// whatever is added and removed meanwhile.
pub struct Store {
    seed: Seed,
    slots: BTreeMap<u64, Vec<Slot>>,
    deadlines: BTreeSet<(u64, Box<[u8]>)>,
    keys: usize,
    bytes: usize,
}

/// A key.
pub struct Slot {
    pub key: Box<[u8]>,
    pub value: Value,
    /// Milliseconds since 1970.
    pub deadline_ms: Option<u64>,
}

/// The value of a key.
pub enum Value {
    Text(Text),
    List(List),
    Hash(Hash),
    Set(Set),
}

pub type Text = Vec<u8>;

/// Items, and their bytes.
#[derive(Default)]
pub struct Counted<T> {
    pub items: T,
    bytes: usize,
}

pub type List = Counted<VecDeque<Vec<u8>>>;
pub type Hash = Counted<BTreeMap<Vec<u8>, Vec<u8>>>;
pub type Set = Counted<BTreeSet<Vec<u8>>>;

/// A type of values.
pub trait Kind: Default {
    fn of(value: &Value) -> Option<&Self>;
    fn of_mut(value: &mut Value) -> Option<&mut Self>;
    fn into_value(self) -> Value;
}

macro_rules! kind {
    ($type:ident) => {
        impl Kind for $type {
            fn of(value: &Value) -> Option<&Self> {
                if let Value::$type(value) = value { Some(value) } else { None }
            }
            fn of_mut(value: &mut Value) -> Option<&mut Self> {
                if let Value::$type(value) = value { Some(value) } else { None }
            }
            fn into_value(self) -> Value {
                Value::$type(self)
            }
        }
    };
}
kind!(Text);
kind!(List);
kind!(Hash);
kind!(Set);

impl Value {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::List(List { bytes, .. }) | Self::Hash(Hash { bytes, .. }) | Self::Set(Set { bytes, .. }) => *bytes,
        }
    }

    /// A collection without items has no key.
    fn is_gone(&self) -> bool {
        match self {
            Self::Text(_) => false,
            Self::List(list) => list.items.is_empty(),
            Self::Hash(hash) => hash.items.is_empty(),
            Self::Set(set) => set.items.is_empty(),
        }
    }

    /// The name in `TYPE`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::List(_) => "list",
            Self::Hash(_) => "hash",
            Self::Set(_) => "set",
        }
    }
}

impl List {
    pub fn push(&mut self, item: Vec<u8>, at_front: bool) {
        self.bytes += item.len() + ITEM_OVERHEAD_BYTES;
        if at_front { self.items.push_front(item) } else { self.items.push_back(item) }
    }

    pub fn pop(&mut self, at_front: bool) -> Option<Vec<u8>> {
        let item = if at_front { self.items.pop_front() } else { self.items.pop_back() }?;
        self.bytes -= item.len() + ITEM_OVERHEAD_BYTES;
        Some(item)
    }
}

impl Hash {
    /// Whether the field is new.
    pub fn insert(&mut self, field: Vec<u8>, value: Vec<u8>) -> bool {
        let (field_bytes, value_bytes) = (field.len(), value.len());
        self.bytes += value_bytes;
        match self.items.insert(field, value) {
            Some(old) => {
                self.bytes -= old.len();
                false
            }
            None => {
                self.bytes += field_bytes + 2 * ITEM_OVERHEAD_BYTES;
                true
            }
        }
    }

    pub fn remove(&mut self, field: &[u8]) -> bool {
        let removed = self.items.remove(field);
        if let Some(value) = &removed {
            self.bytes -= field.len() + value.len() + 2 * ITEM_OVERHEAD_BYTES;
        }
        removed.is_some()
    }
}

impl Set {
    pub fn insert(&mut self, member: Vec<u8>) -> bool {
        let bytes = member.len() + ITEM_OVERHEAD_BYTES;
        let is_new = self.items.insert(member);
        self.bytes += if is_new { bytes } else { 0 };
        is_new
    }

    pub fn remove(&mut self, member: &[u8]) -> bool {
        let removed = self.items.remove(member);
        self.bytes -= if removed { member.len() + ITEM_OVERHEAD_BYTES } else { 0 };
        removed
    }
}

impl Store {
    pub fn new(seed: Seed) -> Self {
        Self { seed, slots: BTreeMap::new(), deadlines: BTreeSet::new(), keys: 0, bytes: 0 }
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.keys
    }

    /// The number of keys with a deadline.
    pub fn volatile(&self) -> usize {
        self.deadlines.len()
    }

    /// Memory of all keys, approximately.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// 0 is the begin and the end of a scan, and some clients keep a cursor in a signed number.
    fn hash(&self, key: &[u8]) -> u64 {
        hash(self.seed, key) >> 1
    }

    pub fn get(&self, key: &[u8]) -> Option<&Slot> {
        self.slots.get(&self.hash(key))?.iter().find(|slot| *slot.key == *key)
    }

    fn get_mut(&mut self, key: &[u8]) -> Option<&mut Slot> {
        let hash = self.hash(key);
        self.slots.get_mut(&hash)?.iter_mut().find(|slot| *slot.key == *key)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn read<T: Kind>(&self, key: &[u8]) -> Result<Option<&T>, Failure> {
        self.get(key).map(|slot| T::of(&slot.value).ok_or(Failure::WRONG_TYPE)).transpose()
    }

    /// Changes the value of a key, which begins as an empty one. A collection that is empty then is removed.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn edit<T: Kind, R>(&mut self, key: &[u8], change: impl FnOnce(&mut T) -> R) -> Result<R, Failure> {
        if self.get(key).is_none() {
            self.insert(key, T::default().into_value(), None);
        }
        let Some(slot) = self.get_mut(key) else { return Err(Failure::WRONG_TYPE) };
        let before = slot.value.bytes();
        let result = change(T::of_mut(&mut slot.value).ok_or(Failure::WRONG_TYPE)?);
        let (after, is_gone) = (slot.value.bytes(), slot.value.is_gone());
        self.bytes = self.bytes - before + after;
        if is_gone {
            self.remove(key);
        }
        Ok(result)
    }

    /// Sets a key, and replaces what it was.
    pub fn insert(&mut self, key: &[u8], value: Value, deadline_ms: Option<u64>) {
        if let Some(slot) = self.get_mut(key) {
            let (before, after) = (slot.value.bytes(), value.bytes());
            slot.value = value;
            self.bytes = self.bytes - before + after;
        } else {
            self.bytes += key.len() + value.bytes() + KEY_OVERHEAD_BYTES;
            self.keys += 1;
            let hash = self.hash(key);
            self.slots.entry(hash).or_default().push(Slot { key: key.into(), value, deadline_ms: None });
        }
        self.set_deadline(key, deadline_ms);
    }

    /// Whether there was one.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        self.take(key).is_some()
    }

    /// Removes a key.
    pub fn take(&mut self, key: &[u8]) -> Option<Slot> {
        let hash = self.hash(key);
        let slots = self.slots.get_mut(&hash)?;
        let slot = slots.swap_remove(slots.iter().position(|slot| *slot.key == *key)?);
        if slots.is_empty() {
            self.slots.remove(&hash);
        }
        self.bytes -= slot.key.len() + slot.value.bytes() + KEY_OVERHEAD_BYTES;
        self.keys -= 1;
        if let Some(deadline_ms) = slot.deadline_ms {
            self.deadlines.remove(&(deadline_ms, slot.key.clone()));
        }
        Some(slot)
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.seed);
    }

    /// Sets or removes the deadline of a key.
    pub fn set_deadline(&mut self, key: &[u8], deadline_ms: Option<u64>) {
        let Some(slot) = self.get_mut(key) else { return };
        let before = core::mem::replace(&mut slot.deadline_ms, deadline_ms);
        if before == deadline_ms {
            return;
        }
        if let Some(before) = before {
            self.deadlines.remove(&(before, key.into()));
        }
        if let Some(deadline_ms) = deadline_ms {
            self.deadlines.insert((deadline_ms, key.into()));
        }
    }

    /// The next deadline.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Removes a key whose deadline has come, and returns it.
    pub fn expire(&mut self, now_ms: u64) -> Option<Box<[u8]>> {
        self.next_deadline_ms().filter(|deadline_ms| *deadline_ms <= now_ms)?;
        let (_, key) = self.deadlines.pop_first()?;
        self.remove(&key);
        Some(key)
    }

    /// All keys.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values().flatten()
    }

    /// At least `count` keys from a cursor on, if there are as many, and the next cursor: 0 at the end.
    pub fn scan(&self, cursor: u64, count: usize) -> (Vec<&Slot>, u64) {
        let mut slots = Vec::new();
        for (hash, of_hash) in self.slots.range(cursor..) {
            if slots.len() >= count {
                return (slots, *hash);
            }
            slots.extend(of_hash);
        }
        (slots, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Value {
        Value::Text(bytes.to_vec())
    }

    #[test]
    fn memory_is_0_again_when_all_is_gone() {
        let mut store = Store::new((1, 2));
        for n in 0..100_u32 {
            let key = n.to_string();
            let key = key.as_bytes();
            match n % 4 {
                0 => store.insert(key, text(b"value"), Some(n.into())),
                1 => store.edit(key, |list: &mut List| list.push(key.to_vec(), n % 2 == 0)).unwrap(),
                2 => drop(store.edit(key, |hash: &mut Hash| hash.insert(key.to_vec(), b"v".to_vec())).unwrap()),
                _ => drop(store.edit(key, |set: &mut Set| set.insert(key.to_vec())).unwrap()),
            }
        }
        assert_eq!((store.len(), store.volatile()), (100, 25));
        store.insert(b"0", text(b"longer than before"), None);
        assert_eq!(store.volatile(), 24);
        store.edit(b"2", |hash: &mut Hash| assert!(!hash.insert(b"2".to_vec(), b"other".to_vec()))).unwrap();
        for n in 0..100_u32 {
            let key = n.to_string();
            let key = key.as_bytes();
            match n % 4 {
                0 => assert!(store.remove(key)),
                1 => drop(store.edit(key, |list: &mut List| list.pop(true)).unwrap()),
                2 => assert!(store.edit(key, |hash: &mut Hash| hash.remove(key)).unwrap()),
                _ => assert!(store.edit(key, |set: &mut Set| set.remove(key)).unwrap()),
            }
        }
        assert_eq!((store.len(), store.bytes(), store.volatile(), store.next_deadline_ms()), (0, 0, 0, None));
    }

    #[test]
    fn a_value_has_one_type() {
        let mut store = Store::new((1, 2));
        store.insert(b"a", text(b"x"), None);
        assert_eq!(store.read::<List>(b"a").err(), Some(Failure::WRONG_TYPE));
        assert_eq!(store.edit(b"a", |_: &mut Set| ()).err(), Some(Failure::WRONG_TYPE));
        assert_eq!(store.read::<Text>(b"a").unwrap(), Some(&b"x".to_vec()));
    }

    #[test]
    fn keys_expire_in_the_order_of_their_deadlines() {
        let mut store = Store::new((1, 2));
        store.insert(b"a", text(b""), Some(20));
        store.insert(b"b", text(b""), Some(10));
        store.insert(b"c", text(b""), Some(30));
        store.set_deadline(b"c", None);
        assert_eq!(store.expire(9), None);
        assert_eq!(store.expire(20).as_deref(), Some(&b"b"[..]));
        assert_eq!(store.expire(20).as_deref(), Some(&b"a"[..]));
        assert_eq!((store.expire(1000), store.len()), (None, 1));
    }

    #[test]
    fn a_scan_returns_what_stays() {
        let mut store = Store::new((1, 2));
        for n in 0..100_u32 {
            store.insert(format!("stays{n}").as_bytes(), text(b""), None);
            store.insert(format!("goes{n}").as_bytes(), text(b""), None);
        }
        let (mut found, mut cursor, mut step) = (BTreeSet::new(), 0, 0);
        loop {
            let (slots, next) = store.scan(cursor, 7);
            found.extend(slots.iter().map(|slot| slot.key.clone()));
            store.remove(format!("goes{step}").as_bytes());
            store.insert(format!("comes{step}").as_bytes(), text(b""), None);
            (cursor, step) = (next, step + 1);
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(found.iter().filter(|key| key.starts_with(b"stays")).count(), 100);
        assert!(step > 10, "{step}");
    }
}
