//! Maps in JSON: an object where keys are strings, else an array of pairs.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use wasmtime::component::Val;

use super::super::error_path::{PathSegment, shortened};
use super::super::maps;
use super::super::types::{Shape, TypeId};
use super::read::{Value, over_budget};

/// Reads a map with string keys.
pub(super) fn of_members<'de, A: MapAccess<'de>>(
    whole: Value<'_>,
    mut members: A,
    of: TypeId,
) -> Result<Val, A::Error> {
    let (reader, mut pairs) = (whole.reader, Vec::new());
    while let Some(key) = members.next_key::<std::borrow::Cow<'de, str>>()? {
        reader.budget.values(2).map_err(over_budget)?;
        let key = reader.text::<A::Error>(&key)?;
        let value = members.next_value_seed(reader.value(of));
        let value = reader.within(value, || PathSegment::Key(key.clone()))?;
        pairs.push((Val::String(key), value));
    }
    once(pairs)
}

/// Reads a map with other keys.
pub(super) fn of_pairs<'de, A: SeqAccess<'de>>(
    whole: Value<'_>,
    mut seq: A,
    (key, value): (TypeId, TypeId),
) -> Result<Val, A::Error> {
    let mut pairs = Vec::new();
    loop {
        let next = seq.next_element_seed(Pair { whole, key, value });
        match whole.reader.within(next, || PathSegment::Index(pairs.len()))? {
            Some(pair) => pairs.push(pair),
            None => return once(pairs),
        }
    }
}

fn once<E: serde::de::Error>(pairs: Vec<(Val, Val)>) -> Result<Val, E> {
    match maps::first_duplicate(&pairs) {
        Some(key) => Err(E::custom(format!("the key {:?} is given twice", shortened(&maps::display_key(key))))),
        None => Ok(Val::Map(pairs)),
    }
}

/// `[KEY, VALUE]`.
struct Pair<'a> {
    whole: Value<'a>,
    key: TypeId,
    value: TypeId,
}

impl<'de> DeserializeSeed<'de> for Pair<'_> {
    type Value = (Val, Val);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Pair<'_> {
    type Value = (Val, Val);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of a key and its value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (reader, wanted) = (self.whole.reader, "an array of a key and its value");
        reader.budget.values(2).map_err(over_budget)?;
        let missing = || A::Error::custom(format!("wanted {wanted}"));
        let key = seq.next_element_seed(reader.value(self.key))?.ok_or_else(missing)?;
        let value = seq.next_element_seed(reader.value(self.value));
        let value = reader.within(value, || PathSegment::Key(maps::display_key(&key)))?.ok_or_else(missing)?;
        match seq.next_element::<serde::de::IgnoredAny>()? {
            None => Ok((key, value)),
            Some(_) => Err(missing()),
        }
    }
}

impl Value<'_> {
    /// Whether a map of that type is an object.
    pub(super) fn is_object(&self) -> bool {
        let is_text = |key: &TypeId| *self.reader.description.shape(*key) == Shape::String;
        matches!(self.shape(), Shape::Map(key, _) if is_text(key))
    }
}
