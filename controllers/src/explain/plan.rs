//! A plan as text for people: a line for each action, with the fields that it changes. Pure.

use std::fmt;

use jiff::Timestamp;
use machinery_api::ObjectKey;
use machinery_client::plan::OutcomeEvents;
use machinery_client::simulate::patched;
use machinery_client::{Action, Effect, EventRecord, Kind, ObjectCache, Plan};
use serde::Serialize;
use serde_json::{Value, json};

use super::fields::{FieldChange, difference};

/// Maximum fields in the text of an action; the rest is counted.
const FIELDS_MAX: usize = 8;

/// A plan in readable form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanText {
    /// The actions, in order.
    pub actions: Vec<ActionText>,
    /// When the key is reconciled again even without a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requeue_at: Option<Timestamp>,
    /// Whether the driver may delay the plan to merge it with the next one.
    pub may_wait: bool,
    #[serde(skip)]
    now: Timestamp,
}

/// An action in readable form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionText {
    /// `create`, `update`, `patch`, `delete`, `event`, `check` or the name of a group of actions.
    pub verb: String,
    /// The kind.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The number of equal actions, one after the other.
    pub times: usize,
    /// `namespace/name`; a generated name ends with `*`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// `status` or the like.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
    /// The changed fields, or the fields of a new object.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChange>,
    /// Preconditions, or an event's message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The actions of a group, and those that depend on this action's outcome.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nested: Vec<Self>,
}

impl PlanText {
    /// Renders a plan that was decided on this view at this time.
    #[must_use]
    pub fn of(plan: &Plan, view: &ObjectCache, now: Timestamp) -> Self {
        let renderer = Renderer { view };
        let effects = plan.effects.iter().map(request);
        let actions = plan.actions.iter().map(|action| renderer.action(action));
        let actions = effects.chain(actions).collect();
        Self { actions, requeue_at: plan.requeue_at, may_wait: plan.may_wait, now }
    }
}

impl fmt::Display for PlanText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            action.write(f, 0)?;
        }
        if self.actions.is_empty() {
            writeln!(f, "nothing to do")?;
        }
        if self.may_wait && !self.actions.is_empty() {
            writeln!(f, "may be merged with the next pass: only progress is reported")?;
        }
        match self.requeue_at {
            Some(at) if at <= self.now => writeln!(f, "requeue at once"),
            Some(at) => writeln!(f, "requeue in {:#}", at.duration_since(self.now)),
            None => Ok(()),
        }
    }
}

impl Default for ActionText {
    fn default() -> Self {
        let (verb, kind, object, subresource, message) = Default::default();
        Self { verb, kind, times: 1, object, subresource, changes: Vec::new(), message, nested: Vec::new() }
    }
}

impl ActionText {
    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        write!(f, "{:indent$}", "", indent = depth * 2)?;
        if self.times > 1 {
            write!(f, "{} times: ", self.times)?;
        }
        write!(f, "{}", self.verb)?;
        for part in [&self.kind, &self.object, &self.subresource].into_iter().filter(|part| !part.is_empty()) {
            write!(f, " {part}")?;
        }
        let (is_new, is_status) = (self.verb == "create", self.subresource == "status");
        let mut details: Vec<String> =
            self.changes.iter().take(FIELDS_MAX).map(|change| change.text(is_new, is_status)).collect();
        if self.changes.len() > FIELDS_MAX {
            details.push(format!("{} more fields", self.changes.len() - FIELDS_MAX));
        }
        if !self.message.is_empty() {
            details.insert(0, self.message.clone());
        }
        if !details.is_empty() {
            write!(f, ": {}", details.join("; "))?;
        }
        writeln!(f)?;
        self.nested.iter().try_for_each(|action| action.write(f, depth + 1))
    }

    /// A group; equal actions in a row are counted.
    fn group(verb: &str, actions: impl IntoIterator<Item = Self>) -> Self {
        let mut nested: Vec<Self> = Vec::new();
        for action in actions {
            match nested.last_mut() {
                Some(last) if (Self { times: 1, ..last.clone() }) == action => last.times += 1,
                _ => nested.push(action),
            }
        }
        Self { verb: verb.into(), nested, ..Self::default() }
    }
}

/// Renders actions with the view that they were decided on, for the fields' values before.
struct Renderer<'a> {
    view: &'a ObjectCache,
}

impl Renderer<'_> {
    fn action(&self, action: &Action) -> ActionText {
        match action {
            Action::Create { kind, object, notes } => {
                let changes = difference(&Value::Null, &without_secrets(kind, object.clone()));
                ActionText { changes, nested: outcome(notes), ..on("create", kind, &new_key(object)) }
            }
            Action::Update { kind, object, subresource } => {
                let key = key_in(object);
                let old = self.object(kind, &key);
                let changes = difference(&part(&old, *subresource), &part(object, *subresource));
                let changes = hide_secrets(kind, changes);
                ActionText { changes, subresource: text(*subresource), ..on("update", kind, &key) }
            }
            Action::Patch { kind, key, patch, patch_type, subresource } => {
                let old = self.object(kind, key);
                // A patch that can't be applied here is shown as it is.
                let new = patched(&old, *patch_type, patch).unwrap_or_else(|_| json!({"patch": patch}));
                let changes = hide_secrets(kind, difference(&old, &new));
                ActionText { changes, subresource: text(*subresource), ..on("patch", kind, key) }
            }
            Action::Delete { kind, key, resource_version, propagation, grace_seconds, notes, uid: _ } => {
                let mut how = Vec::new();
                how.extend(resource_version.as_ref().map(|_| "only at this version".to_owned()));
                how.extend(propagation.map(|how| format!("propagation {}", how.as_str())));
                how.extend(grace_seconds.map(|seconds| format!("grace period {seconds} s")));
                ActionText { message: how.join("; "), nested: outcome(notes), ..on("delete", kind, key) }
            }
            Action::DeleteCollection { kind, namespace } => {
                ActionText { verb: "delete all".into(), ..collection(kind, namespace, "") }
            }
            Action::ExpectNone { kind, namespace } => collection(kind, namespace, "the server has none"),
            Action::ExpectGone { kind, key, .. } => check(kind, key, "the server no longer has it"),
            Action::ExpectLive { kind, key, .. } => check(kind, key, "the server has it, and it isn't being deleted"),
            Action::RequireFreshCache { kind, namespace, selector, known } => {
                collection(kind, namespace, &format!("the server has none with {selector}{}", but(known.len())))
            }
            Action::RequireDependents { kind, namespace, known, .. } => {
                collection(kind, namespace, &format!("the server has no dependents{}", but(known.len())))
            }
            Action::Post { kind, key, subresource, body } => {
                let changes = difference(&Value::Null, body);
                ActionText { changes, subresource: (*subresource).into(), ..on("create", kind, key) }
            }
            Action::FirstAllowed(attempts) => {
                let attempts = attempts.iter().map(|(_, action)| self.action(action));
                ActionText::group("the first that an access review allows", attempts)
            }
            Action::Event(event) => event_text("event", event),
            Action::SlowStart(actions) => self.group("in batches of 1, 2, 4, ... until one fails", actions),
            Action::Concurrent(actions) => self.group("at once", actions),
            Action::Reporting { tried, otherwise, .. } => {
                let (mut tried, mut report) = (self.action(tried), self.action(otherwise));
                report.verb = format!("on failure: {}", report.verb);
                tried.nested.push(report);
                tried
            }
        }
    }

    fn group(&self, verb: &str, actions: &[Action]) -> ActionText {
        ActionText::group(verb, actions.iter().map(|action| self.action(action)))
    }

    /// The object before the action; null if the view lacks it.
    fn object(&self, kind: &Kind, key: &ObjectKey) -> Value {
        self.view.object(kind, key).map_or(Value::Null, |object| object.to_value())
    }
}

/// The exception of a check: the objects that the view has.
fn but(known: usize) -> String {
    if known == 0 { String::new() } else { format!(" but the {known} known ones") }
}

fn text(subresource: Option<&str>) -> String {
    subresource.unwrap_or_default().to_owned()
}

fn on(verb: &str, kind: &Kind, key: &ObjectKey) -> ActionText {
    ActionText { verb: verb.into(), kind: kind.kind.to_string(), object: key.to_string(), ..ActionText::default() }
}

fn check(kind: &Kind, key: &ObjectKey, message: &str) -> ActionText {
    ActionText { message: message.into(), ..on("check", kind, key) }
}

fn collection(kind: &Kind, namespace: &str, message: &str) -> ActionText {
    let object = if namespace.is_empty() { String::new() } else { format!("in {namespace}") };
    let (verb, kind) = ("check".into(), kind.plural.to_string());
    ActionText { verb, kind, object, message: message.into(), ..ActionText::default() }
}

fn event_text(verb: &str, event: &EventRecord) -> ActionText {
    let about = &event.about;
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let object = ObjectKey::new(part(&about.namespace), part(&about.name)).to_string();
    let severity = if event.warning { "Warning" } else { "Normal" };
    let verb = format!("{verb} {severity} {} on", event.reason);
    ActionText { verb, kind: part(&about.kind), object, message: event.message.clone(), ..ActionText::default() }
}

fn outcome(notes: &OutcomeEvents) -> Vec<ActionText> {
    let done = notes.done.iter().map(|event| event_text("on success: event", event));
    done.chain(notes.failed.iter().map(|event| event_text("on failure: event", event))).collect()
}

/// A request that has to be run before the decision can be made.
fn request(effect: &Effect) -> ActionText {
    let (verb, path, changes) = match effect {
        Effect::Get(path) => ("request GET", path, Vec::new()),
        Effect::Put(path, body) => ("request PUT", path, difference(&Value::Null, body)),
    };
    ActionText { verb: verb.into(), object: path.clone(), changes, ..ActionText::default() }
}

fn key_in(object: &Value) -> ObjectKey {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    ObjectKey::new(text("namespace"), text("name"))
}

/// The key of a new object; a generated name ends with `*`.
fn new_key(object: &Value) -> ObjectKey {
    let key = key_in(object);
    match object["metadata"]["generateName"].as_str() {
        Some(prefix) if key.name.is_empty() => ObjectKey::new(key.namespace, format!("{prefix}*")),
        _ => key,
    }
}

/// The part of an object that an update writes.
fn part(object: &Value, subresource: Option<&str>) -> Value {
    match subresource {
        // As upstream: annotations are written too.
        Some("status") => {
            json!({"metadata": {"annotations": object["metadata"]["annotations"]}, "status": object["status"]})
        }
        Some("approval") => json!({"status": object["status"]}),
        _ => {
            let mut object = object.clone();
            if let Some(fields) = object.as_object_mut() {
                fields.remove("status");
            }
            object
        }
    }
}

const HIDDEN: &str = "(hidden)";

/// A Secret without its values.
fn without_secrets(kind: &Kind, mut object: Value) -> Value {
    if kind.kind == "Secret" {
        for field in ["data", "stringData"] {
            let values = object.get_mut(field).and_then(Value::as_object_mut);
            values.into_iter().flatten().for_each(|(_, value)| *value = HIDDEN.into());
        }
    }
    object
}

fn hide_secrets(kind: &Kind, mut changes: Vec<FieldChange>) -> Vec<FieldChange> {
    let is_value = |field: &str| ["data", "stringData"].iter().any(|name| field.starts_with(name));
    for change in changes.iter_mut().filter(|change| kind.kind == "Secret" && is_value(&change.field)) {
        for value in [&mut change.from, &mut change.to].into_iter().flatten() {
            *value = HIDDEN.into();
        }
    }
    changes
}
