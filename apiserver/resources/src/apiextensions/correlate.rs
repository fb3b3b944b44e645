//! Which part of the object that was there stands behind a part of the new one: by name in maps, by keys in lists of type
//! map. What did not change is let pass, though the schema has changed meanwhile.

use serde_json::Value;

use super::schema::{Listed, Schema};

/// A part of an object, and what it was.
#[derive(Clone, Copy)]
pub(crate) struct Correlated<'a> {
    new: &'a Value,
    old: &'a Value,
    schema: &'a Schema,
}

impl<'a> Correlated<'a> {
    pub(crate) fn new(new: &'a Value, old: &'a Value, schema: &'a Schema) -> Self {
        Self { new, old, schema }
    }

    /// Whether nothing changed.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.new == self.old
    }

    /// Tells parts of one object apart.
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self.new).addr()
    }

    /// Whether nothing changed, as upstream compares for the rules of a schema: a key that the schema doesn't know has nothing
    /// behind it, so that what holds one counts as changed.
    pub(crate) fn is_same(&self) -> bool {
        match (self.new, self.old) {
            (Value::Object(new), Value::Object(old)) => {
                let is_same =
                    |(key, new): (&String, &'a Value)| self.key(key, new).is_some_and(|below| below.is_same());
                new.len() == old.len() && new.iter().all(is_same)
            }
            (Value::Array(new), Value::Array(old)) if matches!(self.schema.listed, Listed::Map(_)) => {
                let is_same = |(at, new): (usize, &'a Value)| self.index(at, new).is_some_and(|below| below.is_same());
                new.len() == old.len() && new.iter().enumerate().all(is_same)
            }
            (new, old) => new == old,
        }
    }

    /// The part at a key; `None`: it was not there, or the schema doesn't know it.
    pub(crate) fn key(&self, key: &str, new: &'a Value) -> Option<Self> {
        let old = self.old.as_object()?.get(key)?;
        let schema = self.schema.properties.get(key).or_else(|| self.schema.additional.schema())?;
        Some(Self { new, old, schema })
    }

    /// The item that is `new` now.
    pub(crate) fn index(&self, _: usize, new: &'a Value) -> Option<Self> {
        let Listed::Map(keys) = &self.schema.listed else { return None };
        let schema = self.schema.items.as_deref()?;
        let old = same_item(self.old.as_array()?, new, keys)?;
        Some(Self { new, old, schema })
    }
}

/// The item with the same keys, where there is just one.
pub(crate) fn same_item<'a>(list: &'a [Value], item: &Value, keys: &[Box<str>]) -> Option<&'a Value> {
    let item = item.as_object()?;
    let same =
        |other: &&Value| other.as_object().is_some_and(|o| keys.iter().all(|key| o.get(&**key) == item.get(&**key)));
    let mut found = list.iter().filter(same);
    found.next().filter(|_| found.next().is_none())
}
