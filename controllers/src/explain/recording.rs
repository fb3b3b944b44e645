//! What a decision reads, as a file: an object, the lists of the kinds that its controllers watch, the responses to
//! their requests, and the time. Replayed without a cluster, it gives the same plans. Files are untrusted input. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use machinery_api::ObjectKey;
use machinery_client::object::{Decode, decode_metadata};
use machinery_client::simulate::held_by;
use machinery_client::{Change, Context, Controller, Input, Kind, Object, ObjectCache, Pass, ReconcilerCache};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kinds::{label, of_controllers};
use super::{ControllerPlan, Decision, Explanation, PlanText, Responses, decide, unknown_input};
use crate::{CONTROLLERS, Settings};

/// The version of the file format. Other versions are rejected.
const KIND: &str = "ReconcileRecord";
const FORM: u32 = 1;
/// Takes the place of a Secret's values: "hidden" in base64.
const HIDDEN: &str = "aGlkZGVu";
/// Values of Secrets that a decision reads and that are no secrets.
const NOT_SECRET: &[&str] = &["expiration"];

/// Why a recording can't be made or explained.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file isn't a recording.
    #[error("{0}")]
    File(#[from] serde_json::Error),
    /// The file has another format.
    #[error("it is no {KIND} of the form {FORM}: record it again with this version")]
    Form,
    /// An object can't be read.
    #[error("{kind} {key}: {error}")]
    Object {
        /// The kind.
        kind: String,
        /// The object.
        key: ObjectKey,
        /// The reason.
        error: serde_json::Error,
    },
    /// The subject isn't among the objects.
    #[error("{0} is not among the objects")]
    NoSubject(String),
    /// There is no controller of that name.
    #[error("there is no controller {0:?}; these watch {1}: {2}")]
    NoController(String, String, String),
    /// No controller reconciles the object by its own name.
    #[error("{0}")]
    NotReconciled(String),
    /// A response is missing.
    #[error("the response to GET {0} is missing: record it again")]
    NoResponse(String),
}

/// A kind in a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RecordedKind {
    group: String,
    version: String,
    plural: String,
    kind: String,
    namespaced: bool,
}

impl RecordedKind {
    fn of(kind: &Kind) -> Self {
        Self {
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            plural: kind.plural.to_string(),
            kind: kind.kind.to_string(),
            namespaced: kind.namespaced,
        }
    }

    fn kind(&self) -> Kind {
        Kind {
            group: self.group.clone().into(),
            version: self.version.clone().into(),
            plural: self.plural.clone().into(),
            kind: self.kind.clone().into(),
            namespaced: self.namespaced,
        }
    }
}

/// The objects of one kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RecordedList {
    of: RecordedKind,
    /// Whether the objects have metadata alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    metadata_only: bool,
    objects: Vec<Value>,
}

/// A recording of what an object's controllers read. Values of Secrets are replaced.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recording {
    kind: String,
    form: u32,
    /// The time of the decision.
    now: Timestamp,
    of: RecordedKind,
    #[serde(default)]
    namespace: String,
    name: String,
    /// The only controller; none for all that reconcile the object by its own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    controller: Option<String>,
    lists: Vec<RecordedList>,
    #[serde(default)]
    responses: Responses,
}

/// The lists that a recording needs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecordingInputs {
    /// Kinds with whole objects.
    pub kinds: Vec<Kind>,
    /// Whether the metadata of every other kind is read, too.
    pub everything: bool,
    /// The namespace of namespaced objects; empty for all.
    pub namespace: String,
}

impl Recording {
    /// A recording of one object at a time; its lists are added with [`Recording::add`].
    #[must_use]
    pub fn new(now: Timestamp, kind: &Kind, object: Value, controller: Option<&str>) -> Self {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let mut this = Self {
            kind: KIND.into(),
            form: FORM,
            now,
            of: RecordedKind::of(kind),
            namespace: text("namespace"),
            name: text("name"),
            controller: controller.map(str::to_owned),
            lists: Vec::new(),
            responses: Responses::new(),
        };
        this.add(kind, vec![object], false);
        this
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it isn't a recording of this version.
    pub fn parse(text: &str) -> Result<Self, RecordingError> {
        let this: Self = serde_json::from_str(text)?;
        if this.kind == KIND && this.form == FORM { Ok(this) } else { Err(RecordingError::Form) }
    }

    /// Sets the objects of a kind, as the API returned them.
    pub fn add(&mut self, kind: &Kind, mut objects: Vec<Value>, metadata_only: bool) {
        for object in objects.iter_mut().filter(|object| object.is_object()) {
            object["apiVersion"] = kind.api_version().into();
            object["kind"] = kind.kind.as_ref().into();
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            hide_secret(object);
        }
        let of = RecordedKind::of(kind);
        self.lists.retain(|list| list.of != of);
        self.lists.push(RecordedList { of, metadata_only, objects });
    }

    /// Adds the response to a GET.
    pub fn respond(&mut self, path: &str, response: super::Response) {
        self.responses.insert(format!("GET {path}"), response);
    }

    /// The lists that the object's controllers read.
    ///
    /// # Errors
    /// If no controller reconciles the object.
    pub fn inputs(&self) -> Result<RecordingInputs, RecordingError> {
        let rows = match &self.controller {
            Some(name) => vec![self.named(name)?],
            None => self.chosen(&self.view()?)?.into_iter().map(|(row, _)| row).collect(),
        };
        let mut inputs = RecordingInputs { namespace: self.scope(), ..RecordingInputs::default() };
        for row in rows {
            inputs.everything |= row.inputs.iter().any(|input| input.kind().is_none());
            inputs.kinds.extend(row.inputs.iter().filter_map(Input::kind));
        }
        inputs.kinds.sort();
        inputs.kinds.dedup();
        Ok(inputs)
    }

    /// Paths of objects that the decisions still need.
    ///
    /// # Errors
    /// If no controller reconciles the object, or an object can't be read.
    pub fn missing(&self) -> Result<Vec<String>, RecordingError> {
        let view = self.view()?;
        let mut missing = Vec::new();
        for (row, key) in self.chosen(&view)? {
            if let Decision::Needs(paths) = self.decide(row, &view, &key) {
                missing.extend(paths);
            }
        }
        missing.sort();
        missing.dedup();
        Ok(missing)
    }

    /// The plans of the object's controllers.
    ///
    /// # Errors
    /// If no controller reconciles the object, an object can't be read, or a response is missing.
    pub fn explain(&self) -> Result<Explanation, RecordingError> {
        let view = self.view()?;
        let mut plans = Vec::new();
        let chosen = self.chosen(&view)?;
        for (row, key) in &chosen {
            let plan = match self.decide(row, &view, key) {
                Decision::Plan(plan) => PlanText::of(&plan, &view, self.now),
                Decision::Needs(paths) => {
                    return Err(RecordingError::NoResponse(paths.into_iter().next().unwrap_or_default()));
                }
            };
            plans.push(ControllerPlan {
                controller: row.name,
                key: key.to_string(),
                unknown: unknown_input(row.name),
                plan,
            });
        }
        let kind = self.of.kind();
        let is_chosen = |row: &&Controller<Settings>| chosen.iter().any(|(other, _)| other.name == row.name);
        let others = watchers(&kind).filter(|row| !is_chosen(row)).map(|row| row.name).collect();
        let object = format!("{} {}", kind.kind, self.key());
        Ok(Explanation { object, now: self.now, controllers: plans, others })
    }

    fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.clone(), self.name.clone())
    }

    /// The namespace of all that the decisions read: a controller with a namespaced key reads no other one, and those
    /// of a Namespace read that one.
    fn scope(&self) -> String {
        if self.of.kind == "Namespace" { self.name.clone() } else { self.namespace.clone() }
    }

    fn decide(&self, row: &Controller<Settings>, view: &ObjectCache, key: &ObjectKey) -> Decision {
        let (settings, pass, reconciler_cache) = (Settings::default(), Pass::default(), ReconcilerCache::new());
        let context = Context {
            now: self.now,
            elapsed: Duration::ZERO,
            settings: &settings,
            pass: &pass,
            reconciler_cache: &reconciler_cache,
        };
        decide(row, view, key, &context, &self.responses)
    }

    /// The cache of a controller that has just started.
    fn view(&self) -> Result<ObjectCache, RecordingError> {
        let typed = held_by(CONTROLLERS);
        let mut view = ObjectCache::default();
        typed.iter().for_each(|(kind, _)| drop(view.replace(kind, Vec::new(), 0)));
        for list in &self.lists {
            let kind = list.of.kind();
            let whole = typed.iter().find(|(known, _)| *known == kind && !list.metadata_only);
            let decode = whole.map_or(decode_metadata as Decode, |(_, decode)| *decode);
            let read = |object: &Value| {
                decode(&kind, &object.to_string()).map_err(|error| {
                    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                    RecordingError::Object {
                        kind: kind.kind.to_string(),
                        key: ObjectKey::new(text("namespace"), text("name")),
                        error,
                    }
                })
            };
            let objects: Vec<Arc<dyn Object>> = list.objects.iter().map(read).collect::<Result<_, _>>()?;
            view.replace(&kind, objects, 0);
        }
        Ok(view)
    }

    /// The subject as a new object, which maps to the keys of its controllers.
    fn change(&self, view: &ObjectCache) -> Result<Change, RecordingError> {
        let (kind, key) = (self.of.kind(), self.key());
        let object = view.object(&kind, &key).cloned();
        let object = object.ok_or_else(|| RecordingError::NoSubject(format!("{} {key}", kind.kind)))?;
        Ok(Change { kind, key: key.into(), old: None, new: Some(object) })
    }

    /// The controllers with their keys.
    fn chosen(&self, view: &ObjectCache) -> Result<Vec<(&'static Controller<Settings>, ObjectKey)>, RecordingError> {
        let change = self.change(view)?;
        let keys = |row: &Controller<Settings>| {
            let mut keys: Vec<ObjectKey> = row.inputs.iter().flat_map(|input| input.keys(view, &change)).collect();
            keys.sort();
            keys.dedup();
            keys
        };
        let own = self.key();
        let Some(name) = &self.controller else {
            let rows = watchers(&change.kind).filter(|row| keys(row).contains(&own));
            let chosen: Vec<_> = rows.map(|row| (row, own.clone())).collect();
            return if chosen.is_empty() { Err(self.not_reconciled(&change.kind)) } else { Ok(chosen) };
        };
        let row = self.named(name)?;
        let uid = change.new.as_ref().and_then(|object| object.metadata().uid.clone()).unwrap_or_default();
        // The lists are of the subject's namespace alone.
        let is_near = |key: &ObjectKey| {
            own.namespace.is_empty() || key.namespace == own.namespace || *key == ObjectKey::cluster(&*uid)
        };
        let chosen: Vec<_> = keys(row).into_iter().filter(is_near).map(|key| (row, key)).collect();
        if chosen.is_empty() {
            let why = format!(
                "{} has nothing to decide about {} {own} now; these watch its kind: {}",
                row.name,
                change.kind.kind,
                names(watchers(&change.kind))
            );
            return Err(RecordingError::NotReconciled(why));
        }
        Ok(chosen)
    }

    /// The controller of a name, also without its `-controller`.
    fn named(&self, name: &str) -> Result<&'static Controller<Settings>, RecordingError> {
        let row = CONTROLLERS.iter().find(|row| row.name == name || row.name.strip_suffix("-controller") == Some(name));
        row.ok_or_else(|| {
            let kind = self.of.kind();
            RecordingError::NoController(name.to_owned(), label(&kind), names(watchers(&kind)))
        })
    }

    fn not_reconciled(&self, kind: &Kind) -> RecordingError {
        let watching = names(watchers(kind));
        RecordingError::NotReconciled(if watching.is_empty() {
            let kinds: Vec<String> = of_controllers().iter().map(label).collect();
            format!("no controller watches {}; kinds with a controller: {}", label(kind), kinds.join(", "))
        } else {
            format!(
                "no controller reconciles {} {} by its name; these watch it for other objects: {watching}; name one with \
                 --controller",
                kind.kind,
                self.key()
            )
        })
    }
}

/// The controllers that watch a kind by its type.
fn watchers(kind: &Kind) -> impl Iterator<Item = &'static Controller<Settings>> {
    CONTROLLERS.iter().filter(|row| row.inputs.iter().any(|input| input.kind().as_ref() == Some(kind)))
}

fn names(rows: impl Iterator<Item = &'static Controller<Settings>>) -> String {
    rows.map(|row| row.name).collect::<Vec<_>>().join(", ")
}

/// Replaces the values of a Secret.
fn hide_secret(object: &mut Value) {
    if object["kind"] != "Secret" {
        return;
    }
    let values = object.get_mut("data").and_then(Value::as_object_mut);
    for (_, value) in values.into_iter().flatten().filter(|(name, _)| !NOT_SECRET.contains(&name.as_str())) {
        *value = HIDDEN.into();
    }
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}
