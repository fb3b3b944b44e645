//! Correlates parts of a new object with those of the old one: by name in maps, by keys in lists of type map.
//! Unchanged parts are exempt from validation (ratcheting), even if the schema has changed.

use serde_json::Value;

use super::schema::{ListType, Schema};

/// A part of the new object with its counterpart in the old one.
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

    /// Whether old and new are equal.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.new == self.old
    }

    /// An identity of the part within its object.
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self.new).addr()
    }

    /// Whether old and new are equal by upstream's comparison for rules. A key that the schema doesn't know has no
    /// counterpart, so an object with such a key counts as changed.
    pub(crate) fn is_same(&self) -> bool {
        match (self.new, self.old) {
            (Value::Object(new), Value::Object(old)) => {
                let is_same =
                    |(key, new): (&String, &'a Value)| self.key(key, new).is_some_and(|below| below.is_same());
                new.len() == old.len() && new.iter().all(is_same)
            }
            (Value::Array(new), Value::Array(old)) if matches!(self.schema.listed, ListType::Map(_)) => {
                let is_same = |(at, new): (usize, &'a Value)| self.index(at, new).is_some_and(|below| below.is_same());
                new.len() == old.len() && new.iter().enumerate().all(is_same)
            }
            (new, old) => new == old,
        }
    }

    /// The part at a key; `None` if it is new or unknown to the schema.
    pub(crate) fn key(&self, key: &str, new: &'a Value) -> Option<Self> {
        let old = self.old.as_object()?.get(key)?;
        let schema = self.schema.properties.get(key).or_else(|| self.schema.additional.schema())?;
        Some(Self { new, old, schema })
    }

    /// The counterpart of a list item.
    pub(crate) fn index(&self, _: usize, new: &'a Value) -> Option<Self> {
        let ListType::Map(keys) = &self.schema.listed else { return None };
        let schema = self.schema.items.as_deref()?;
        let old = same_item(self.old.as_array()?, new, keys)?;
        Some(Self { new, old, schema })
    }
}

/// The only item with the same keys; `None` if there are several.
pub(crate) fn same_item<'a>(list: &'a [Value], item: &Value, keys: &[Box<str>]) -> Option<&'a Value> {
    let item = item.as_object()?;
    let same =
        |other: &&Value| other.as_object().is_some_and(|o| keys.iter().all(|key| o.get(&**key) == item.get(&**key)));
    let mut found = list.iter().filter(same);
    found.next().filter(|_| found.next().is_none())
}
