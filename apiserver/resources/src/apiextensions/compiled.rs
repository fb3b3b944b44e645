//! Cache of compiled schemas, per version of a definition: the form that objects are checked by, and the types that
//! they merge by. Only the packed text is permanent, since most definitions of a cluster are unused most of the time.
//! One bound on bytes holds for all definitions together; the least recently used schemas are evicted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use apiserver_schema::{Nulls, SharedType, Unstructured, built_in, custom};
use machinery_api::GroupVersionKind;
use machinery_api::packed::Packed;
use serde_json::{Value, json};

use super::schema::{Schema, compile, drop_nulls, embedded, fill, prune, weight};
use crate::resource_type::TypeSource;

/// Bound on the estimated memory of all compiled schemas: some hundred definitions of 60 KiB in use at once.
pub const COMPILED_BYTES_MAX: usize = 64 << 20;

/// A compiled schema.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// `None`: objects are kept unchanged.
    schema: Option<Arc<Schema>>,
    /// Why the schema doesn't compile. Validation rejects such schemas, but an earlier release may have stored one.
    pub(crate) wrong: Option<String>,
    types: SharedType,
    bytes: usize,
}

impl Compiled {
    pub(crate) fn schema(&self) -> Option<&Schema> {
        self.schema.as_deref()
    }
}

/// The names of a version's types.
#[derive(Debug)]
pub(crate) struct TypeNames {
    pub(crate) group: Box<str>,
    pub(crate) version: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) list_kind: Box<str>,
}

/// A version's schema: its packed text, and its compiled form while cached.
#[derive(Debug)]
pub(crate) struct SchemaSource {
    names: TypeNames,
    text: Packed,
    /// Whether the schema is applied to objects, which are kept unchanged otherwise.
    applies_schema: bool,
    cached: Mutex<Option<Arc<Compiled>>>,
    /// Held during compilation, so that a schema is compiled once.
    compile_lock: Mutex<()>,
    /// The use counter's value at the last use.
    used: AtomicU64,
    compilations: Arc<SchemaCache>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SchemaSource {
    /// `applies_schema`: objects are kept unchanged otherwise.
    pub(crate) fn new(
        names: TypeNames,
        schema: &Value,
        applies_schema: bool,
        compilations: &Arc<SchemaCache>,
    ) -> Arc<Self> {
        Arc::new(Self {
            names,
            text: Packed::alone(schema.to_string().as_bytes()),
            applies_schema: applies_schema && schema.is_object(),
            cached: Mutex::default(),
            compile_lock: Mutex::default(),
            used: AtomicU64::default(),
            compilations: compilations.clone(),
        })
    }

    /// The schema as given.
    pub(crate) fn schema(&self) -> Value {
        serde_json::from_slice(&self.text.text()).unwrap_or_default()
    }

    /// Whether the schema is applied to objects.
    pub(crate) fn applies_schema(&self) -> bool {
        self.applies_schema
    }

    /// Returns the compiled schema and compiles it if needed. An evicted schema lives while a caller holds it.
    pub(crate) fn compiled(self: &Arc<Self>) -> Arc<Compiled> {
        self.used.store(self.compilations.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let cached = || locked(&self.cached).clone();
        if let Some(compiled) = cached() {
            return compiled;
        }
        let _guard = locked(&self.compile_lock);
        if let Some(compiled) = cached() {
            return compiled;
        }
        let compiled = Arc::new(self.compile_now());
        *locked(&self.cached) = Some(compiled.clone());
        self.compilations.insert_and_evict(self);
        compiled
    }

    fn compile_now(&self) -> Compiled {
        self.compilations.compiled.fetch_add(1, Ordering::Relaxed);
        let given = self.schema();
        let (schema, wrong) = match self.applies_schema.then(|| compile(&given)) {
            None => (None, None),
            Some(Ok(schema)) => (Some(Arc::new(schema)), None),
            Some(Err(why)) => (None, Some(why.to_string())),
        };
        let types = self.types(&given, schema.clone());
        let bytes = types.own_bytes() + schema.as_deref().map_or(0, weight::of);
        Compiled { schema, wrong, types, bytes }
    }

    /// The types of the schema; those of an untyped object if the schema yields none.
    fn types(&self, given: &Value, schema: Option<Arc<Schema>>) -> SharedType {
        let TypeNames { group, version, kind, list_kind } = &self.names;
        let of = GroupVersionKind { group, version, kind };
        let reader: Arc<dyn Unstructured> = Arc::new(SchemaReader(schema));
        let types_of = |schema: &Value| custom(built_in(), of, list_kind, schema, Some(reader.clone()));
        let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        types_of(if given.is_object() { given } else { &anything })
            .or_else(|_| types_of(&anything))
            .expect("anything has types")
    }

    fn bytes(&self) -> usize {
        locked(&self.cached).as_ref().map_or(0, |compiled| compiled.bytes)
    }
}

/// The types of a source.
#[derive(Debug)]
pub(crate) struct SourceTypes(pub(crate) Arc<SchemaSource>);

impl TypeSource for SourceTypes {
    fn hold(&self) -> SharedType {
        self.0.compiled().types.clone()
    }
}

/// Applies a version's schema to objects.
#[derive(Debug)]
struct SchemaReader(Option<Arc<Schema>>);

impl Unstructured for SchemaReader {
    fn coerce(&self, object: &mut Value, nulls: Nulls) -> Result<Vec<String>, String> {
        let Some(schema) = &self.0 else { return Ok(Vec::new()) };
        let mut taken = prune(object, schema);
        if nulls == Nulls::Drop {
            drop_nulls(object, Some(schema));
        }
        taken.extend(embedded::coerce(object, schema, false).map_err(|wrong| wrong.to_string())?);
        Ok(taken)
    }

    fn default(&self, object: &mut Value) {
        if let Some(schema) = &self.0 {
            fill(object, schema);
        }
    }
}

/// The sources that have a compiled form.
fn cached_sources(held: &[Weak<SchemaSource>]) -> Vec<Arc<SchemaSource>> {
    held.iter().filter_map(Weak::upgrade).filter(|source| source.bytes() > 0).collect()
}

/// The cache of compiled schemas, with its bound.
#[derive(Debug)]
pub struct SchemaCache {
    bytes_max: usize,
    /// Sources that have a compiled form.
    cached: Mutex<Vec<Weak<SchemaSource>>>,
    uses: AtomicU64,
    /// The use counter's value at the last [`rest`](Self::rest).
    evicted_before: AtomicU64,
    compiled: AtomicU64,
}

impl Default for SchemaCache {
    fn default() -> Self {
        Self::new(COMPILED_BYTES_MAX)
    }
}

impl SchemaCache {
    /// Creates a cache with a bound in bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            cached: Mutex::default(),
            uses: AtomicU64::new(1),
            evicted_before: AtomicU64::default(),
            compiled: AtomicU64::default(),
        }
    }

    /// Evicts the least recently used schemas until the cache is within the bound.
    fn insert_and_evict(&self, new: &Arc<SchemaSource>) {
        // The lock is held throughout: a concurrent call would write a list that lacks the other call's source.
        let mut known = locked(&self.cached);
        let mut held = cached_sources(&known);
        held.retain(|source| !Arc::ptr_eq(source, new));
        held.sort_by_key(|source| std::cmp::Reverse(source.used.load(Ordering::Relaxed)));
        let mut bytes = new.bytes();
        held.retain(|source| {
            let with = bytes + source.bytes();
            if with > self.bytes_max {
                *locked(&source.cached) = None;
                return false;
            }
            bytes = with;
            true
        });
        held.push(new.clone());
        *known = held.iter().map(Arc::downgrade).collect();
    }

    fn sources(&self) -> Vec<Arc<SchemaSource>> {
        cached_sources(&locked(&self.cached))
    }

    /// Evicts schemas that have not been used since the previous call.
    pub fn rest(&self) {
        let before = self.evicted_before.swap(self.uses.load(Ordering::Relaxed), Ordering::Relaxed);
        for source in self.sources().iter().filter(|source| source.used.load(Ordering::Relaxed) < before) {
            *locked(&source.cached) = None;
        }
    }

    /// The estimated size of the cache, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sources().iter().map(|source| source.bytes()).sum()
    }

    /// The number of compilations.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ResourceInfo;
    use crate::apiextensions::custom::resources;

    /// A schema as generators write it: descriptions for each field, bounds and patterns for some, a few rules.
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

    fn served(name: &str, schema: &Value, compilations: &Arc<SchemaCache>) -> ResourceInfo {
        let names = json!({"plural": name, "singular": name, "kind": "Thing", "listKind": "ThingList"});
        let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
        let definition = json!({"metadata": {"name": format!("{name}.x.example")},
            "status": {"acceptedNames": names, "storedVersions": ["v1"]},
            "spec": {"group": "x.example", "scope": "Namespaced", "names": names, "versions": [version]}});
        resources(&definition, false, compilations).unwrap().remove(0)
    }

    fn source(resource: &ResourceInfo) -> Arc<SchemaSource> {
        let custom = resource.custom.as_ref().unwrap();
        custom.definition.versions[custom.version].source().clone()
    }

    /// The size of a compiled schema is proportional to its text, which bounds the memory.
    #[test]
    fn a_compiled_schema_is_proportional_to_its_text() {
        let schema = schema(50);
        let text = schema.to_string().len();
        let compilations = Arc::default();
        let resource = served("things", &schema, &compilations);
        let source = source(&resource);
        let rests = source.text.packed_len() + size_of::<SchemaSource>();
        assert!(rests * 2 < text, "{rests} bytes rest of a schema of {text}");
        assert_eq!(source.bytes(), 0, "an unused schema is not compiled");
        let made = source.compiled();
        assert!(made.bytes < 4 * text, "{} bytes for a schema of {text}", made.bytes);
        assert_eq!(source.schema(), schema);
    }

    #[test]
    fn definitions_that_rest_take_nothing_and_those_in_use_stay_within_a_bound() {
        const DEFINITIONS: usize = 30;
        let schema = schema(10);
        let one = source(&served("one", &schema, &Arc::default())).compiled().bytes;
        let bound = 7 * one;
        let compilations = Arc::new(SchemaCache::new(bound));
        let served: Vec<ResourceInfo> =
            (0..DEFINITIONS).map(|n| served(&format!("things{n}"), &schema, &compilations)).collect();
        assert_eq!((compilations.bytes(), compilations.made()), (0, 0));
        let held = source(&served[0]).compiled();
        for resource in &served {
            drop(resource.schema.hold());
            assert!(compilations.bytes() <= bound);
        }
        assert_eq!(compilations.made(), DEFINITIONS as u64);
        for resource in &served[DEFINITIONS - 5..] {
            drop(resource.schema.hold());
        }
        assert_eq!(compilations.made(), DEFINITIONS as u64, "those used last are still there");
        assert!(held.schema().is_some(), "an evicted schema lives while held");
        drop(served[0].schema.hold());
        assert_eq!(compilations.made(), DEFINITIONS as u64 + 1, "the least recently used schema is compiled again");
        compilations.rest();
        drop(served[0].schema.hold());
        compilations.rest();
        assert_eq!((compilations.bytes(), source(&served[0]).bytes()), (one, one), "unused schemas are evicted");
        compilations.rest();
        assert_eq!(compilations.bytes(), 0);
        for _ in 0..3 {
            served[..2].iter().for_each(|resource| drop(resource.schema.hold()));
            assert_eq!(compilations.bytes(), 2 * one, "a recompiled schema counts once");
            compilations.rest();
            compilations.rest();
        }
    }

    #[test]
    fn an_oversized_schema_is_compiled_once_for_its_current_users() {
        let compilations = Arc::new(SchemaCache::new(1));
        let (a, b) = (served("a", &schema(2), &compilations), served("b", &schema(2), &compilations));
        for _ in 0..3 {
            drop((a.schema.hold(), a.schema.hold()));
        }
        assert_eq!(compilations.made(), 1);
        drop((b.schema.hold(), a.schema.hold()));
        assert_eq!(compilations.made(), 3, "each has the place of the other");
    }

    /// A schema that an earlier release accepted and this one doesn't: writes are rejected with the reason.
    #[test]
    fn a_schema_that_cannot_be_used_lets_nothing_be_written() {
        let wrong = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "["}}});
        let resource = served("things", &wrong, &Arc::default());
        let context = crate::Context::of_server(jiff::Timestamp::UNIX_EPOCH);
        let mut errors = crate::field::ErrorList::new();
        resource.strategy.validate(&context, &json!({"metadata": {"name": "x"}}), None, &mut errors);
        assert!(
            errors.shown()[0].message.contains("the schema can't be used: must be a valid regular expression"),
            "{errors:?}"
        );
    }
}
