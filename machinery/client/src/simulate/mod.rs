//! Applies plans to a cache as a server would: for tests and simulation of controllers without a server.
//!
//! It models generated names, uids, versions, generations, finalizers and status separation. It validates nothing.

mod patch;

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cache::ObjectCache;
use crate::driver::{Context, Controller, Input};
use crate::object::{Decode, Kind, decode_metadata, key_of};
use crate::pass::{Pass, ReconcilerCache};
use crate::plan::{Action, Plan, Propagation};
use crate::request::PatchType;
use machinery_api::{GroupVersion, ObjectKey};

/// A cache with a simulated server.
#[derive(Debug, Clone)]
pub struct Simulation {
    /// The controllers' cache.
    pub view: ObjectCache,
    /// The time stamp of writes.
    pub now: Timestamp,
    start: Timestamp,
    version: u64,
    held: Vec<(Kind, Decode)>,
    /// Results of effects, supplied by the test.
    pub pass: Pass,
    /// The cached state of the controller under test.
    pub reconciler_cache: ReconcilerCache,
}

/// The typed inputs of these controllers.
#[must_use]
pub fn held_by<S>(controllers: &[Controller<S>]) -> Vec<(Kind, Decode)> {
    let mut held: Vec<(Kind, Decode)> = controllers.iter().flat_map(|row| row.inputs).filter_map(Input::held).collect();
    held.sort_by(|a, b| a.0.cmp(&b.0));
    held.dedup_by(|a, b| a.0 == b.0);
    held
}

/// An object after a patch.
///
/// # Errors
/// If an operation of a JSON patch names a missing field, or a test fails.
pub fn patched(object: &Value, patch_type: PatchType, patch: &Value) -> Result<Value, String> {
    let mut object = object.clone();
    patch::apply(&mut object, patch_type, patch)?;
    Ok(object)
}

impl Simulation {
    /// An empty cluster in which these kinds are cached whole: see [`held_by`].
    #[must_use]
    pub fn new(held: Vec<(Kind, Decode)>, now: Timestamp) -> Self {
        let mut view = ObjectCache::default();
        held.iter().for_each(|(kind, _)| {
            view.replace(kind, Vec::new(), 0);
        });
        let (pass, reconciler_cache) = Default::default();
        Self { view, now, start: now, version: 0, held, pass, reconciler_cache }
    }

    /// Monotonic time since the simulation's start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::try_from(self.now.duration_since(self.start)).unwrap_or_default()
    }

    /// The context of a decision at the present time.
    pub fn context<'a, S>(&'a self, settings: &'a S) -> Context<'a, S> {
        Context {
            now: self.now,
            elapsed: self.elapsed(),
            settings,
            pass: &self.pass,
            reconciler_cache: &self.reconciler_cache,
        }
    }

    /// A cluster with these objects (in wire form; missing uids and versions are generated).
    #[must_use]
    pub fn of(held: Vec<(Kind, Decode)>, now: Timestamp, objects: impl IntoIterator<Item = Value>) -> Self {
        let mut simulation = Self::new(held, now);
        for object in objects {
            let kind = simulation.kind_of(&object);
            simulation.create(&kind, object);
        }
        simulation
    }

    /// Applies a plan. Returns its failed actions: those on missing objects, or at another version.
    pub fn apply(&mut self, plan: Plan) -> Vec<String> {
        plan.actions.into_iter().flat_map(|action| self.apply_action(action)).collect()
    }

    fn apply_action(&mut self, action: Action) -> Vec<String> {
        match action {
            Action::Create { kind, object, .. } => {
                self.create(&kind, object);
            }
            Action::Update { kind, object, subresource } => {
                let key = key_in(&object);
                let Some(old) = self.view.object(&kind, &key).map(|o| o.to_value()) else {
                    return vec![format!("{} {key} is not there", kind.resource())];
                };
                let version = &object["metadata"]["resourceVersion"];
                if version.is_string() && *version != old["metadata"]["resourceVersion"] {
                    return vec![format!("{} {key} conflicts", kind.resource())];
                }
                let merged = match subresource {
                    // As upstream: annotations are written too, labels and spec aren't.
                    Some("status") => {
                        let mut merged = with(old, "status", object["status"].clone());
                        let annotations = object["metadata"]["annotations"].clone();
                        merged["metadata"] = with(merged["metadata"].take(), "annotations", annotations);
                        merged
                    }
                    // For a CertificateSigningRequest.
                    Some("approval") => with(old, "status", object["status"].clone()),
                    _ => with(object, "status", old["status"].clone()),
                };
                self.write(&kind, merged);
            }
            Action::Patch { kind, key, patch, patch_type, subresource: _ } => {
                let Some(mut object) = self.view.object(&kind, &key).map(|o| o.to_value()) else {
                    return vec![format!("{} {key} is not there", kind.resource())];
                };
                let version = &patch["metadata"]["resourceVersion"];
                if version.is_string() && *version != object["metadata"]["resourceVersion"] {
                    return vec![format!("{} {key} conflicts", kind.resource())];
                }
                if let Err(problem) = patch::apply(&mut object, patch_type, &patch) {
                    return vec![format!("{} {key}: {problem}", kind.resource())];
                }
                self.write(&kind, object);
            }
            Action::Delete { kind, key, uid, resource_version, propagation, .. } => {
                if !self.meets(&kind, &key, uid.as_deref(), resource_version.as_deref()) {
                    return vec![format!("{} {key} conflicts", kind.resource())];
                }
                self.delete(&kind, &key, propagation);
            }
            Action::DeleteCollection { kind, namespace } => self.delete_all(&kind, &namespace),
            Action::Concurrent(actions) | Action::SlowStart(actions) => {
                return actions.into_iter().flat_map(|action| self.apply_action(action)).collect();
            }
            // No simulated action fails with a server's error.
            Action::Reporting { tried, .. } => return self.apply_action(*tried),
            // Everything is allowed.
            Action::FirstAllowed(attempts) => {
                return attempts.into_iter().next().map_or_else(Vec::new, |(_, action)| self.apply_action(action));
            }
            // The simulated cache is never stale.
            Action::RequireFreshCache { .. }
            | Action::RequireDependents { .. }
            | Action::Post { .. }
            | Action::Event(_) => {}
            check @ (Action::ExpectNone { .. } | Action::ExpectGone { .. } | Action::ExpectLive { .. }) => {
                return self.failed_check(&check).into_iter().collect();
            }
        }
        Vec::new()
    }

    /// The reason why the plan must not go on.
    fn failed_check(&self, check: &Action) -> Option<String> {
        match check {
            Action::ExpectNone { kind, namespace } => {
                let left = self.view.metadata_of(kind, namespace).next().is_some();
                left.then(|| format!("{} are left in {namespace}", kind.resource()))
            }
            Action::ExpectGone { kind, key, uid } => {
                let there = self.view.metadata(kind, key).is_some_and(|there| uid.is_none() || there.uid == *uid);
                there.then(|| format!("{} {key} is there", kind.resource()))
            }
            Action::ExpectLive { kind, key, uid } => {
                let live = self
                    .view
                    .metadata(kind, key)
                    .is_some_and(|there| there.uid == *uid && there.deletion_timestamp.is_none());
                (!live).then(|| format!("{} {key} is not there, or terminating", kind.resource()))
            }
            _ => None,
        }
    }

    /// Whether an object meets the preconditions of a deletion; a missing one does.
    fn meets(&self, kind: &Kind, key: &ObjectKey, uid: Option<&str>, version: Option<&str>) -> bool {
        let same = |wanted: Option<&str>, is: Option<&str>| wanted.is_none() || wanted == is;
        self.view
            .metadata(kind, key)
            .is_none_or(|known| same(uid, known.uid.as_deref()) && same(version, known.resource_version.as_deref()))
    }

    /// The kind of an object by its `apiVersion` and `kind`.
    ///
    /// # Panics
    /// If one of them is missing.
    #[must_use]
    pub fn kind_of(&self, object: &Value) -> Kind {
        let api_version = object["apiVersion"].as_str().expect("a simulated object has an apiVersion").to_owned();
        let name = object["kind"].as_str().expect("a simulated object has a kind").to_owned();
        let is_named = |kind: &&Kind| kind.api_version() == api_version && kind.kind == name;
        self.held.iter().map(|(kind, _)| kind).find(is_named).cloned().unwrap_or_else(|| {
            let GroupVersion { group, version } = GroupVersion::parse(&api_version);
            Kind {
                group: group.to_owned().into(),
                version: version.to_owned().into(),
                plural: format!("{}s", name.to_lowercase()).into(),
                kind: name.into(),
                namespaced: object["metadata"]["namespace"].is_string(),
            }
        })
    }

    /// Adds an object, as a create would.
    pub fn create(&mut self, kind: &Kind, mut object: Value) -> ObjectKey {
        self.version += 1;
        let number = self.version;
        let now = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let metadata = &mut object["metadata"];
        if metadata["name"].is_null() {
            metadata["name"] = json!(format!("{}{number:05}", metadata["generateName"].as_str().unwrap_or_default()));
        }
        for (field, value) in [("uid", json!(format!("uid-{number}"))), ("creationTimestamp", json!(now))] {
            if metadata[field].is_null() {
                metadata[field] = value;
            }
        }
        if metadata["generation"].is_null() {
            metadata["generation"] = json!(1);
        }
        if kind.kind == "Namespace" && object["spec"]["finalizers"].is_null() {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
        }
        let key = key_in(&object);
        self.write(kind, object);
        key
    }

    /// Stores an object with a new version.
    pub fn write(&mut self, kind: &Kind, mut object: Value) {
        self.version += 1;
        let key = key_in(&object);
        if let Some(old) = self.view.object(kind, &key).map(|o| o.to_value()) {
            let stamp = |v: &Value| v["metadata"]["resourceVersion"].clone();
            let unchanged = with_version(old.clone(), Value::Null) == with_version(object.clone(), Value::Null);
            if unchanged {
                object["metadata"]["resourceVersion"] = stamp(&old);
                return;
            }
            if old["spec"] != object["spec"] {
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(1) + 1;
                object["metadata"]["generation"] = json!(generation);
            }
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let going = !object["metadata"]["deletionTimestamp"].is_null();
        let held = |v: &Value| v.as_array().is_some_and(|f| !f.is_empty());
        let version = self.version;
        if going && !held(&object["metadata"]["finalizers"]) && !held(&object["spec"]["finalizers"]) {
            self.view.set_elapsed(self.elapsed());
            self.view.remove(kind, &key, version);
            return;
        }
        let text = object.to_string();
        let held = self.held.iter().find(|(held, _)| held == kind);
        let read = held.map_or(decode_metadata as Decode, |(_, read)| *read);
        match read(kind, &text) {
            Ok(object) => {
                self.view.set_elapsed(self.elapsed());
                self.view.put(kind, object);
            }
            Err(error) => panic!("a plan wrote {}, which is no {}: {error}", text, kind.kind),
        }
    }

    fn delete_all(&mut self, kind: &Kind, namespace: &str) {
        let keys: Vec<ObjectKey> = self.view.metadata_of(kind, namespace).map(key_of).collect();
        keys.iter().for_each(|key| self.delete(kind, key, None));
    }

    fn delete(&mut self, kind: &Kind, key: &ObjectKey, propagation: Option<Propagation>) {
        let Some(mut object) = self.view.object(kind, key).map(|o| o.to_value()) else { return };
        let finalizer = match propagation {
            Some(Propagation::Foreground) => Some("foregroundDeletion"),
            Some(Propagation::Orphan) => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let metadata = &mut object["metadata"];
            match metadata["finalizers"].as_array_mut() {
                Some(list) => list.push(json!(finalizer)),
                None => metadata["finalizers"] = json!([finalizer]),
            }
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        self.write(kind, object);
    }
}

fn key_in(object: &Value) -> ObjectKey {
    let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    ObjectKey::new(part("namespace"), part("name"))
}

fn with(mut object: Value, field: &str, value: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        if value.is_null() {
            map.remove(field);
        } else {
            map.insert(field.to_owned(), value);
        }
    }
    object
}

fn with_version(mut object: Value, version: Value) -> Value {
    object["metadata"]["resourceVersion"] = version;
    object
}
