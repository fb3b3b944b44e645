//! What is made of a version's schema, while somebody uses it: the form that objects are checked by, and the types that they
//! merge by. At rest its text is kept, packed: most definitions of a cluster are asked for nothing most of the time. What is
//! made stays within a bound for all definitions together; what was used longest ago goes first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use machinery_api::GroupVersionKind;
use machinery_api::packed::Packed;
use machinery_api::schema::{SharedType, Unstructured, built_in, custom};
use serde_json::{Value, json};

use super::schema::{Schema, compile, drop_nulls, embedded, fill, prune, weight};
use crate::resource_type::TypeSource;

/// What all that is made of schemas may take, by its own account: some hundred definitions of 60 KiB that are used at once.
pub const COMPILED_BYTES_MAX: usize = 64 << 20;

/// What is made of a schema.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// `None`: anything is kept.
    schema: Option<Arc<Schema>>,
    /// Why the schema can't be used. It was refused when it was written, but for what an earlier program took.
    pub(crate) wrong: Option<String>,
    types: SharedType,
    bytes: usize,
}

impl Compiled {
    pub(crate) fn schema(&self) -> Option<&Schema> {
        self.schema.as_deref()
    }
}

/// Whose types are made.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) group: Box<str>,
    pub(crate) version: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) list_kind: Box<str>,
}

/// A version's schema: its text, and what was made of it while that is in use.
#[derive(Debug)]
pub(crate) struct Source {
    named: Named,
    text: Packed,
    /// Whether objects are read by it, and not kept as they are.
    reads: bool,
    made: Mutex<Option<Arc<Compiled>>>,
    /// One makes it; others wait for that.
    making: Mutex<()>,
    /// When it was used, by the count of uses.
    used: AtomicU64,
    compilations: Arc<Compilations>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source {
    /// `reads`: objects are read by the schema, and not kept as they are.
    pub(crate) fn new(named: Named, schema: &Value, reads: bool, compilations: &Arc<Compilations>) -> Arc<Self> {
        Arc::new(Self {
            named,
            text: Packed::alone(schema.to_string().as_bytes()),
            reads: reads && schema.is_object(),
            made: Mutex::default(),
            making: Mutex::default(),
            used: AtomicU64::default(),
            compilations: compilations.clone(),
        })
    }

    /// The schema as it was given.
    pub(crate) fn schema(&self) -> Value {
        serde_json::from_slice(&self.text.text()).unwrap_or_default()
    }

    /// Whether objects are read by it.
    pub(crate) fn reads(&self) -> bool {
        self.reads
    }

    /// What is made of it, for as long as the answer is held.
    pub(crate) fn hold(self: &Arc<Self>) -> Arc<Compiled> {
        self.used.store(self.compilations.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let known = || locked(&self.made).clone();
        if let Some(made) = known() {
            return made;
        }
        let _one = locked(&self.making);
        if let Some(made) = known() {
            return made;
        }
        let made = Arc::new(self.make());
        *locked(&self.made) = Some(made.clone());
        self.compilations.keep(self);
        made
    }

    fn make(&self) -> Compiled {
        self.compilations.made.fetch_add(1, Ordering::Relaxed);
        let given = self.schema();
        let (schema, wrong) = match self.reads.then(|| compile(&given)) {
            None => (None, None),
            Some(Ok(schema)) => (Some(Arc::new(schema)), None),
            Some(Err(why)) => (None, Some(why.to_string())),
        };
        let types = self.types(&given, schema.clone());
        let bytes = types.own_bytes() + schema.as_deref().map_or(0, weight::of);
        Compiled { schema, wrong, types, bytes }
    }

    /// Types of the schema, or of anything where it is none that types can be made of.
    fn types(&self, given: &Value, schema: Option<Arc<Schema>>) -> SharedType {
        let Named { group, version, kind, list_kind } = &self.named;
        let of = GroupVersionKind { group, version, kind };
        let reader: Arc<dyn Unstructured> = Arc::new(Reader(schema));
        let made = |schema: &Value| custom(built_in(), of, list_kind, schema, Some(reader.clone()));
        let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        made(if given.is_object() { given } else { &anything })
            .or_else(|_| made(&anything))
            .expect("anything has types")
    }

    fn bytes(&self) -> usize {
        locked(&self.made).as_ref().map_or(0, |made| made.bytes)
    }
}

/// A source's types.
#[derive(Debug)]
pub(crate) struct Types(pub(crate) Arc<Source>);

impl TypeSource for Types {
    fn hold(&self) -> SharedType {
        self.0.hold().types.clone()
    }
}

/// Reads objects of a version.
#[derive(Debug)]
struct Reader(Option<Arc<Schema>>);

impl Unstructured for Reader {
    fn coerce(&self, object: &mut Value) -> Result<Vec<String>, String> {
        let Some(schema) = &self.0 else { return Ok(Vec::new()) };
        let mut taken = prune(object, schema);
        drop_nulls(object, Some(schema));
        taken.extend(embedded::coerce(object, schema, false).map_err(|wrong| wrong.to_string())?);
        Ok(taken)
    }

    fn default(&self, object: &mut Value) {
        if let Some(schema) = &self.0 {
            fill(object, schema);
        }
    }
}

/// Those that something is made of still.
fn made(held: &[Weak<Source>]) -> Vec<Arc<Source>> {
    held.iter().filter_map(Weak::upgrade).filter(|source| source.bytes() > 0).collect()
}

/// All that is made of schemas, and the bound on it.
#[derive(Debug)]
pub struct Compilations {
    bytes_max: usize,
    /// Of those that something is made of.
    held: Mutex<Vec<Weak<Source>>>,
    uses: AtomicU64,
    /// What was used before stays no longer at the next rest.
    rested: AtomicU64,
    made: AtomicU64,
}

impl Default for Compilations {
    fn default() -> Self {
        Self::new(COMPILED_BYTES_MAX)
    }
}

impl Compilations {
    /// With a bound.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            held: Mutex::default(),
            uses: AtomicU64::new(1),
            rested: AtomicU64::default(),
            made: AtomicU64::default(),
        }
    }

    /// Lets go what was used longest ago, until the rest is within the bound.
    fn keep(&self, new: &Arc<Source>) {
        // One after the other: none may write down a list that lacks what another has just made.
        let mut known = locked(&self.held);
        let mut held = made(&known);
        held.retain(|source| !Arc::ptr_eq(source, new));
        held.sort_by_key(|source| std::cmp::Reverse(source.used.load(Ordering::Relaxed)));
        let mut bytes = new.bytes();
        held.retain(|source| {
            let with = bytes + source.bytes();
            if with > self.bytes_max {
                *locked(&source.made) = None;
                return false;
            }
            bytes = with;
            true
        });
        held.push(new.clone());
        *known = held.iter().map(Arc::downgrade).collect();
    }

    fn sources(&self) -> Vec<Arc<Source>> {
        made(&locked(&self.held))
    }

    /// Lets go what nobody has used since this was last called.
    pub fn rest(&self) {
        let before = self.rested.swap(self.uses.load(Ordering::Relaxed), Ordering::Relaxed);
        for source in self.sources().iter().filter(|source| source.used.load(Ordering::Relaxed) < before) {
            *locked(&source.made) = None;
        }
    }

    /// What is held now, by its own account.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sources().iter().map(|source| source.bytes()).sum()
    }

    /// How often something was made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ResourceInfo;
    use crate::apiextensions::custom::resources;

    /// A schema as generators write it: sentences for each field, bounds and patterns for some, a rule here and there.
    fn schema(fields: usize) -> Value {
        let about =
            "What it is for, in a sentence or two, as the source of the type has it beside the field that it is of.";
        let part = |n: usize| {
            json!({"type": "object", "description": about, "required": ["name"], "properties": {
                "name": {"type": "string", "description": about, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                "amount": {"description": about, "x-kubernetes-int-or-string": true,
                    "anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": "^([0-9]+)(m|Ki|Mi|Gi)?$"},
                "policy": {"type": "string", "description": about, "enum": ["Always", "Never", "IfNeeded"], "default": "Always"},
                "labels": {"type": "object", "description": about, "additionalProperties": {"type": "string"}},
                "ports": {"type": "array", "description": about, "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["port"], "items": {"type": "object", "required": ["port"], "properties": {
                        "port": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535, "description": about}}}}},
                "x-kubernetes-validations": if n.is_multiple_of(20) { json!([{"rule": "self.name != 'none'"}]) } else { json!([]) }})
        };
        let parts: serde_json::Map<String, Value> = (0..fields).map(|n| (format!("part{n}"), part(n))).collect();
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": parts}}})
    }

    fn served(name: &str, schema: &Value, compilations: &Arc<Compilations>) -> ResourceInfo {
        let names = json!({"plural": name, "singular": name, "kind": "Thing", "listKind": "ThingList"});
        let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
        let definition = json!({"metadata": {"name": format!("{name}.x.example")},
            "status": {"acceptedNames": names, "storedVersions": ["v1"]},
            "spec": {"group": "x.example", "scope": "Namespaced", "names": names, "versions": [version]}});
        resources(&definition, false, compilations).unwrap().remove(0)
    }

    fn source(resource: &ResourceInfo) -> Arc<Source> {
        let custom = resource.custom.as_ref().unwrap();
        custom.definition.versions[custom.version].source().clone()
    }

    /// The bound that memory is held by: what is made of a schema is in proportion to its text.
    #[test]
    fn what_is_made_of_a_schema_is_in_proportion_to_its_text() {
        let schema = schema(50);
        let text = schema.to_string().len();
        let compilations = Arc::default();
        let resource = served("things", &schema, &compilations);
        let source = source(&resource);
        let rests = source.text.packed_len() + size_of::<Source>();
        assert!(rests * 2 < text, "{rests} bytes rest of a schema of {text}");
        assert_eq!(source.bytes(), 0, "nothing is made of what nobody has used");
        let made = source.hold();
        assert!(made.bytes < 4 * text, "{} bytes are made of a schema of {text}", made.bytes);
        assert_eq!(source.schema(), schema);
    }

    #[test]
    fn definitions_that_rest_take_nothing_and_those_in_use_stay_within_a_bound() {
        const DEFINITIONS: usize = 30;
        let schema = schema(10);
        let one = source(&served("one", &schema, &Arc::default())).hold().bytes;
        let bound = 7 * one;
        let compilations = Arc::new(Compilations::new(bound));
        let served: Vec<ResourceInfo> =
            (0..DEFINITIONS).map(|n| served(&format!("things{n}"), &schema, &compilations)).collect();
        assert_eq!((compilations.bytes(), compilations.made()), (0, 0));
        let held = source(&served[0]).hold();
        for resource in &served {
            drop(resource.schema.hold());
            assert!(compilations.bytes() <= bound);
        }
        assert_eq!(compilations.made(), DEFINITIONS as u64);
        for resource in &served[DEFINITIONS - 5..] {
            drop(resource.schema.hold());
        }
        assert_eq!(compilations.made(), DEFINITIONS as u64, "those used last are still there");
        assert!(held.schema().is_some(), "who holds it has it");
        drop(served[0].schema.hold());
        assert_eq!(compilations.made(), DEFINITIONS as u64 + 1, "that used first is made anew");
        compilations.rest();
        drop(served[0].schema.hold());
        compilations.rest();
        assert_eq!((compilations.bytes(), source(&served[0]).bytes()), (one, one), "what nobody used meanwhile goes");
        compilations.rest();
        assert_eq!(compilations.bytes(), 0);
        for _ in 0..3 {
            served[..2].iter().for_each(|resource| drop(resource.schema.hold()));
            assert_eq!(compilations.bytes(), 2 * one, "what is made anew counts once");
            compilations.rest();
            compilations.rest();
        }
    }

    #[test]
    fn one_larger_than_the_bound_is_made_once_for_all_who_use_it_now() {
        let compilations = Arc::new(Compilations::new(1));
        let (a, b) = (served("a", &schema(2), &compilations), served("b", &schema(2), &compilations));
        for _ in 0..3 {
            drop((a.schema.hold(), a.schema.hold()));
        }
        assert_eq!(compilations.made(), 1);
        drop((b.schema.hold(), a.schema.hold()));
        assert_eq!(compilations.made(), 3, "each has the place of the other");
    }

    /// What an earlier program took and this one doesn't: nothing is written by it, and who tries is told.
    #[test]
    fn a_schema_that_cannot_be_used_lets_nothing_be_written() {
        let wrong = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "["}}});
        let resource = served("things", &wrong, &Arc::default());
        let context = crate::Context::of_server(jiff::Timestamp::UNIX_EPOCH);
        let errors = resource.strategy.validate(&context, &json!({"metadata": {"name": "x"}}));
        assert!(
            errors[0].message.contains("the schema can't be used: must be a valid regular expression"),
            "{errors:?}"
        );
    }
}
