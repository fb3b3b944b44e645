//! Parses a JSON object of arguments by the function's types. A mismatch is rejected at its start, so no unwanted value
//! is stored, and nesting is no deeper than the types.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{alphabet, engine::DecodePaddingMode};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use wasmtime::component::Val;

use super::super::budget::{Budget, TooMuch};
use super::super::error_path::{ErrorPath, PathSegment, shortened};
use super::super::types::{Description, Function, Labels, Shape, TypeId};
use super::{SAFE_INTEGER_MAX, map};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Parses the arguments of a call; an empty body has none.
///
/// # Errors
/// A sentence for the client that names the argument and its type.
pub(crate) fn arguments(
    description: &Description,
    function: &Function,
    body: &[u8],
    budget: &Budget,
) -> Result<Vec<Val>, String> {
    let body = if body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { body };
    let reader = Reader { description, budget, place: ErrorPath::default() };
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = json.deserialize_map(Arguments { reader: &reader, function });
    let read = read.and_then(|values| json.end().map(|()| values));
    read.map_err(|error| reader.place.message(&why(&error)))
}

/// The error without its line and column: a JSON body is one line, and the message contains the path.
fn why(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if error.is_data() {
        let at = format!(" at line {} column {}", error.line(), error.column());
        return text.strip_suffix(&at).unwrap_or(&text).to_owned();
    }
    format!("the body is not JSON: {text}")
}

pub(super) struct Reader<'a> {
    pub(super) description: &'a Description,
    pub(super) budget: &'a Budget,
    place: ErrorPath,
}

impl<'a> Reader<'a> {
    pub(super) fn within<T, E>(&self, read: Result<T, E>, step: impl FnOnce() -> PathSegment) -> Result<T, E> {
        read.inspect_err(|_| self.place.within(step()))
    }

    pub(super) fn value(&'a self, ty: TypeId) -> Value<'a> {
        Value { reader: self, ty }
    }

    pub(super) fn text<E: serde::de::Error>(&self, text: &str) -> Result<String, E> {
        self.budget.text(text).map_err(over_budget)?;
        Ok(text.to_owned())
    }
}

pub(super) fn over_budget<E: serde::de::Error>(error: TooMuch) -> E {
    E::custom(error)
}

/// The object of all arguments.
struct Arguments<'a> {
    reader: &'a Reader<'a>,
    function: &'a Function,
}

impl<'de> Visitor<'de> for Arguments<'_> {
    type Value = Vec<Val>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of arguments by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let (names, types) = (&self.function.parameters, &self.function.parameter_types);
        let step = |name: &str| PathSegment::Argument(name.to_owned());
        let unknown = |name: &str| {
            let known = if names.names().is_empty() { "none".to_owned() } else { names.listed() };
            format!("{} has no argument {:?}; it has {known}", self.function.name, shortened(name))
        };
        Ok(members(self.reader, map, names, types, &step, &unknown)?.into_iter().map(|(_, value)| value).collect())
    }
}

/// Reads an object's members into the labels' order.
fn members<'de, A: MapAccess<'de>>(
    reader: &Reader<'_>,
    mut map: A,
    labels: &Labels,
    types: &[TypeId],
    step: &dyn Fn(&str) -> PathSegment,
    unknown: &dyn Fn(&str) -> String,
) -> Result<Vec<(usize, Val)>, A::Error> {
    reader.budget.values(labels.names().len()).map_err(over_budget)?;
    let mut values: Vec<Option<Val>> = vec![None; labels.names().len()];
    while let Some(at) = map.next_key_seed(Label { labels, unknown })? {
        let name = &labels.names()[at];
        if values[at].is_some() {
            reader.place.within(step(name));
            return Err(A::Error::custom("it is given twice"));
        }
        let value = map.next_value_seed(reader.value(types[at]));
        values[at] = Some(reader.within(value, || step(name))?);
    }
    let all = values.into_iter().enumerate().map(|(at, value)| match value {
        Some(value) => Ok((at, value)),
        // Optional fields may be left out.
        None if matches!(reader.description.shape(types[at]), Shape::Option(_)) => Ok((at, Val::Option(None))),
        None => {
            reader.place.within(step(&labels.names()[at]));
            Err(A::Error::custom(format!("it is missing, wanted {}", reader.description.name(types[at]))))
        }
    });
    all.collect()
}

/// A name out of a list, as its index.
struct Label<'a> {
    labels: &'a Labels,
    unknown: &'a dyn Fn(&str) -> String,
}

impl<'de> DeserializeSeed<'de> for Label<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Label<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<usize, E> {
        self.labels.find(name).ok_or_else(|| E::custom((self.unknown)(name)))
    }
}

/// A value of a type.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub(super) reader: &'a Reader<'a>,
    ty: TypeId,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Val;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Val, D::Error> {
        match self.shape() {
            Shape::Option(_) => deserializer.deserialize_option(self),
            // serde_json's own parsing of a fraction may be off by its last digit.
            Shape::F32 | Shape::F64 => self.float(<&RawValue as serde::Deserialize>::deserialize(deserializer)?.get()),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'a> Value<'a> {
    pub(super) fn shape(&self) -> &'a Shape {
        self.reader.description.shape(self.ty)
    }

    fn type_mismatch<E: serde::de::Error>(&self, found: &str) -> E {
        E::custom(format!("wanted {}, found {found}", self.reader.description.name(self.ty)))
    }

    fn float<E: serde::de::Error>(self, text: &str) -> Result<Val, E> {
        let special = match text {
            "\"NaN\"" => Some(f64::NAN),
            "\"inf\"" => Some(f64::INFINITY),
            "\"-inf\"" => Some(f64::NEG_INFINITY),
            _ => None,
        };
        // Anything other than a JSON number starts with another character.
        let is_number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if special.is_none() && !is_number {
            return Err(self.type_mismatch(&found_raw(text)));
        }
        let range = || E::custom(format!("{} is out of the range of {}", shortened(text), self.shape().word()));
        Ok(match (self.shape(), special) {
            (Shape::F32, Some(special)) => Val::Float32(special as f32),
            (Shape::F32, None) => {
                Val::Float32(text.parse().ok().filter(|value: &f32| value.is_finite()).ok_or_else(range)?)
            }
            (_, Some(special)) => Val::Float64(special),
            (_, None) => Val::Float64(text.parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(range)?),
        })
    }

    fn integer<E: serde::de::Error>(self, value: i128) -> Result<Val, E> {
        let made = match self.shape() {
            Shape::S8 => i8::try_from(value).ok().map(Val::S8),
            Shape::U8 => u8::try_from(value).ok().map(Val::U8),
            Shape::S16 => i16::try_from(value).ok().map(Val::S16),
            Shape::U16 => u16::try_from(value).ok().map(Val::U16),
            Shape::S32 => i32::try_from(value).ok().map(Val::S32),
            Shape::U32 => u32::try_from(value).ok().map(Val::U32),
            Shape::S64 => i64::try_from(value).ok().map(Val::S64),
            Shape::U64 => u64::try_from(value).ok().map(Val::U64),
            _ => return Err(self.type_mismatch("a number")),
        };
        made.ok_or_else(|| E::custom(format!("{value} is out of the range of {}", self.shape().word())))
    }

    /// A list of bytes as base64.
    fn bytes<E: serde::de::Error>(self, text: &str) -> Result<Val, E> {
        self.reader.budget.values(base64::decoded_len_estimate(text.len())).map_err(over_budget)?;
        let bytes = BASE64.decode(text).map_err(|error| E::custom(format!("wanted bytes as base64: {error}")))?;
        Ok(Val::List(bytes.into_iter().map(Val::U8).collect()))
    }

    fn label<E: serde::de::Error>(self, labels: &Labels, name: &str) -> Result<(usize, String), E> {
        let at = labels.find(name).ok_or_else(|| self.unknown_label(labels, name))?;
        Ok((at, self.reader.text(name)?))
    }

    fn unknown_label<E: serde::de::Error>(self, labels: &Labels, name: &str) -> E {
        let wanted = self.reader.description.name(self.ty);
        let listed = if wanted.contains("(one of") { String::new() } else { format!(" (one of {})", labels.listed()) };
        E::custom(format!("wanted {wanted}{listed}, found {:?}", shortened(name)))
    }

    /// The payload of an object's only member.
    fn payload<'de, A: MapAccess<'de>>(
        self,
        map: &mut A,
        name: &str,
        ty: Option<TypeId>,
    ) -> Result<Option<Val>, A::Error> {
        let reader = self.reader;
        let Some(ty) = ty else {
            let null = map.next_value_seed(Null);
            reader.within(null, || PathSegment::Label(name.to_owned()))?;
            return Ok(None);
        };
        reader.budget.values(1).map_err(over_budget)?;
        Ok(Some(reader.within(map.next_value_seed(reader.value(ty)), || PathSegment::Label(name.to_owned()))?))
    }

    /// An object of one member whose name is one of `names`.
    fn one_of<'de, A: MapAccess<'de>>(
        self,
        mut map: A,
        names: &Labels,
        ty: impl Fn(usize) -> Option<TypeId>,
    ) -> Result<(usize, Option<Val>), A::Error> {
        let unknown = |name: &str| self.unknown_label::<serde_json::Error>(names, name).to_string();
        let Some(at) = map.next_key_seed(Label { labels: names, unknown: &unknown })? else {
            return Err(self.type_mismatch("an empty object"));
        };
        let payload = self.payload(&mut map, &names.names()[at], ty(at))?;
        match map.next_key_seed(Label { labels: names, unknown: &unknown })? {
            None => Ok((at, payload)),
            Some(_) => Err(self.type_mismatch("an object of several members")),
        }
    }

    fn sequence<'de, A: SeqAccess<'de>>(self, mut seq: A, of: TypeId) -> Result<Val, A::Error> {
        let mut values = Vec::new();
        loop {
            let next = seq.next_element_seed(self.reader.value(of));
            match self.reader.within(next, || PathSegment::Index(values.len()))? {
                Some(value) => {
                    self.reader.budget.values(1).map_err(over_budget)?;
                    values.push(value);
                }
                None => return Ok(Val::List(values)),
            }
        }
    }

    fn tuple<'de, A: SeqAccess<'de>>(self, mut seq: A, of: &[TypeId]) -> Result<Val, A::Error> {
        self.reader.budget.values(of.len()).map_err(over_budget)?;
        let mut values = Vec::with_capacity(of.len());
        for ty in of {
            let next = seq.next_element_seed(self.reader.value(*ty));
            match self.reader.within(next, || PathSegment::Index(values.len()))? {
                Some(value) => values.push(value),
                None => return Err(self.type_mismatch(&format!("an array of {}, not {}", values.len(), of.len()))),
            }
        }
        match seq.next_element::<serde::de::IgnoredAny>()? {
            None => Ok(Val::Tuple(values)),
            Some(_) => Err(self.type_mismatch(&format!("an array of more than {}", of.len()))),
        }
    }

    fn flags<'de, A: SeqAccess<'de>>(self, mut seq: A, labels: &Labels) -> Result<Val, A::Error> {
        let mut set = vec![false; labels.names().len()];
        let unknown = |name: &str| self.unknown_label::<serde_json::Error>(labels, name).to_string();
        while let Some(at) = seq.next_element_seed(Label { labels, unknown: &unknown })? {
            if std::mem::replace(&mut set[at], true) {
                return Err(A::Error::custom(format!("the flag {} is given twice", labels.names()[at])));
            }
        }
        let names = labels.names().iter().zip(set).filter(|(_, set)| *set);
        // A flag is a text in a list, which takes little less than a value.
        let kept = names.map(|(name, _)| {
            self.reader.budget.values(1).map_err(over_budget)?;
            self.reader.text(name)
        });
        Ok(Val::Flags(kept.collect::<Result<_, _>>()?))
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Val;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reader.description.name(self.ty))
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Val, E> {
        match self.shape() {
            Shape::Bool => Ok(Val::Bool(value)),
            _ => Err(self.type_mismatch("a boolean")),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Val, E> {
        self.integer(value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Val, E> {
        self.integer(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Val, E> {
        // As in JSON Schema, 1.0 is an integer. Larger values have lost their original digits.
        if value.fract() == 0.0 && value.abs() <= SAFE_INTEGER_MAX as f64 {
            return self.integer(value as i128);
        }
        match self.integer::<E>(0) {
            Ok(_) if value.fract() == 0.0 => {
                Err(E::custom(format!("{value} is out of the range of {}", self.shape().word())))
            }
            Ok(_) => Err(self.type_mismatch("a fraction")),
            Err(error) => Err(error),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Val, E> {
        match self.shape() {
            Shape::String | Shape::Own(_) | Shape::Borrow(_) => Ok(Val::String(self.reader.text(text)?)),
            Shape::Char => {
                let mut chars = text.chars();
                match (chars.next(), chars.next()) {
                    (Some(one), None) => Ok(Val::Char(one)),
                    _ => Err(self.type_mismatch(&format!("a string of {} characters", text.chars().count()))),
                }
            }
            Shape::U64 | Shape::S64 => match text.parse::<i128>() {
                // A JSON integer, which is less than Rust accepts.
                Ok(value) if !text.starts_with('+') => self.integer(value),
                _ => Err(self.type_mismatch(&format!("the string {:?}", shortened(text)))),
            },
            Shape::Enum(labels) => Ok(Val::Enum(self.label(labels, text)?.1)),
            Shape::Variant(labels, types) => match self.label(labels, text)? {
                (at, name) if types[at].is_none() => Ok(Val::Variant(name, None)),
                (_, name) => Err(E::custom(format!("the case {name} has a payload: wanted {{{name:?}: …}}"))),
            },
            Shape::List(of) if *self.reader.description.shape(*of) == Shape::U8 => self.bytes(text),
            _ => Err(self.type_mismatch(&format!("the string {:?}", shortened(text)))),
        }
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Val, E> {
        Err(self.type_mismatch("null"))
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Val, E> {
        Ok(Val::Option(None))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Val, D::Error> {
        let Shape::Option(of) = self.shape() else { return Err(self.type_mismatch("something else")) };
        let (reader, of) = (self.reader, *of);
        reader.budget.values(1).map_err(over_budget)?;
        let value = match reader.description.shape(of) {
            Shape::Option(_) => deserializer.deserialize_any(Some_ { value: self, of })?,
            _ => reader.value(of).deserialize(deserializer)?,
        };
        Ok(Val::Option(Some(Box::new(value))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Val, A::Error> {
        match self.shape() {
            Shape::List(of) => self.sequence(seq, *of),
            Shape::Map(key, value) if !self.is_object() => map::of_pairs(self, seq, (*key, *value)),
            Shape::Tuple(of) => self.tuple(seq, of),
            Shape::Flags(labels) => self.flags(seq, labels),
            _ => Err(self.type_mismatch("an array")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Val, A::Error> {
        match self.shape() {
            Shape::Record(labels, types) => {
                let step = |name: &str| PathSegment::Label(name.to_owned());
                let unknown = |name: &str| {
                    let wanted = self.reader.description.name(self.ty);
                    format!("{wanted} has no field {:?}; it has {}", shortened(name), labels.listed())
                };
                let members = members(self.reader, map, labels, types, &step, &unknown)?;
                let named = members.into_iter().map(|(at, value)| {
                    let name = &labels.names()[at];
                    Ok((self.reader.text::<A::Error>(name)?, value))
                });
                Ok(Val::Record(named.collect::<Result<_, A::Error>>()?))
            }
            Shape::Variant(labels, types) => {
                let (at, payload) = self.one_of(map, labels, |at| types[at])?;
                Ok(Val::Variant(self.reader.text(&labels.names()[at])?, payload.map(Box::new)))
            }
            Shape::Result(ok, err) => {
                let names = Labels::from(vec!["ok".to_owned(), "err".to_owned()]);
                let (at, payload) = self.one_of(map, &names, |at| if at == 0 { *ok } else { *err })?;
                let payload = payload.map(Box::new);
                Ok(Val::Result(if at == 0 { Ok(payload) } else { Err(payload) }))
            }
            Shape::Map(_, value) if self.is_object() => map::of_members(self, map, *value),
            _ => Err(self.type_mismatch("an object")),
        }
    }
}

/// An option within an option: `{"some": …}`.
struct Some_<'a> {
    value: Value<'a>,
    of: TypeId,
}

impl<'de> Visitor<'de> for Some_<'_> {
    type Value = Val;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null or an object with the one member \"some\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Val, A::Error> {
        let names = Labels::from(vec!["some".to_owned()]);
        let (_, payload) = self.value.one_of(map, &names, |_| Some(self.of))?;
        payload.ok_or_else(|| self.value.type_mismatch("nothing"))
    }
}

/// `null` for an empty payload.
struct Null;

impl<'de> DeserializeSeed<'de> for Null {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Null {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null: it has no payload")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

fn found_raw(text: &str) -> String {
    match text.as_bytes().first() {
        Some(b'"') => format!("the string {}", shortened(text)),
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array".to_owned(),
        _ => shortened(text),
    }
}
