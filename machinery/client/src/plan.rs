//! What a decision asks for, as data: a test asserts on it, the log prints it, the driver performs it.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

use crate::object::{Kind, Object, Scope, Typed, key_of, value_of};
use crate::question::{Memory, Question};
use crate::request::PatchType;
use machinery_api::ObjectKey;

/// A decision. Its actions are performed in order; the first that fails ends the pass, and the key comes back later.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// When to look at the key again even if nothing changes.
    pub requeue_at: Option<Timestamp>,
    /// What has to be known first: where anything is asked, nothing is done, and the decision is made again with the answers.
    pub questions: Vec<Question>,
    /// What is remembered of the key from now on (without: nothing); where something is asked, what the next round is told.
    pub memory: Option<Memory>,
    /// Whether it only writes how far something has come that goes on by itself, so that more is to be said soon: the driver
    /// may then wait a tenth of a second for it. What others act on (completion, failure, a new generation) doesn't wait.
    pub may_wait: bool,
}

impl Plan {
    /// Nothing to do.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Asks to be called again at `at`; the earliest such wish holds.
    pub fn revisit(&mut self, at: Timestamp) {
        self.requeue_at = Some(self.requeue_at.map_or(at, |known| known.min(at)));
    }

    /// Asks to be called again after `wait`.
    pub fn requeue_after(&mut self, now: Timestamp, wait: Duration) {
        self.revisit(now.saturating_add(wait).unwrap_or(Timestamp::MAX));
    }
}

impl From<Vec<Action>> for Plan {
    fn from(actions: Vec<Action>) -> Self {
        Self { actions, ..Self::default() }
    }
}

/// What happens to an object's dependents when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// They are deleted afterwards.
    Background,
    /// They are deleted first.
    Foreground,
    /// They stay, with no owner.
    Orphan,
}

impl Propagation {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

/// One change to the cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// POST. An answer that the namespace is being terminated counts as done.
    Create {
        /// The kind.
        kind: Kind,
        /// The object, with a name or a `generateName`.
        object: Value,
        /// Events about it.
        notes: OutcomeEvents,
    },
    /// PUT. The object carries the resourceVersion that it was read at.
    Update {
        /// The kind.
        kind: Kind,
        /// The whole object.
        object: Value,
        /// `status`, `finalize` or the like; none for the object itself.
        subresource: Option<&'static str>,
    },
    /// PATCH. Put `metadata.uid` and, where it matters, `metadata.resourceVersion` into it as preconditions (in a JSON
    /// patch, as tests).
    Patch {
        /// The kind.
        kind: Kind,
        /// The object.
        key: ObjectKey,
        /// The patch.
        patch: Value,
        /// How it is meant.
        patch_type: PatchType,
        /// `status` or the like; none for the object itself.
        subresource: Option<&'static str>,
    },
    /// DELETE. An object that is gone already counts as done.
    Delete {
        /// The kind.
        kind: Kind,
        /// The object.
        key: ObjectKey,
        /// Only if it has this uid.
        uid: Option<String>,
        /// Only if it has this version.
        resource_version: Option<String>,
        /// What happens to dependents; none leaves it to the server.
        propagation: Option<Propagation>,
        /// The grace period; none leaves it to the object.
        grace_seconds: Option<u32>,
        /// Events about it.
        notes: OutcomeEvents,
    },
    /// DELETE of all of a kind in a namespace.
    DeleteCollection {
        /// The kind.
        kind: Kind,
        /// The namespace.
        namespace: String,
    },
    /// Asks the server, not the view, whether a namespace still holds objects of a kind, and fails if it does.
    ExpectNone {
        /// The kind.
        kind: Kind,
        /// The namespace.
        namespace: String,
    },
    /// Asks the server, not the view, whether an object is gone, and fails if it is there.
    ExpectGone {
        /// The kind.
        kind: Kind,
        /// The object.
        key: ObjectKey,
        /// Its uid, where another object of the same name doesn't count.
        uid: Option<String>,
    },
    /// Asks the server, not the view, which objects a selector chooses, and fails if there is one that isn't known. What
    /// was written just before an object (pods that a new ReplicaSet shall adopt) comes over another watch, and later.
    RequireFreshCache {
        /// The kind.
        kind: Kind,
        /// The namespace.
        namespace: String,
        /// The label selector, as requests carry it.
        selector: String,
        /// The uids of those that are known.
        known: BTreeSet<String>,
    },
    /// Asks the server, not the view, which objects of a kind name an owner, and fails if there is one that isn't known: the
    /// watch of the kind may be behind that of the owner's.
    RequireDependents {
        /// The kind.
        kind: Kind,
        /// The namespace; empty: all.
        namespace: String,
        /// The owner's uid.
        owner_uid: String,
        /// The uids of those that are known.
        known: BTreeSet<String>,
    },
    /// POST to a subresource (a token, an eviction).
    Post {
        /// The kind.
        kind: Kind,
        /// The object.
        key: ObjectKey,
        /// The subresource.
        subresource: &'static str,
        /// The body.
        body: Value,
    },
    /// Asks the server who may (specs of SubjectAccessReviews), in order, and does what stands beside the first that is
    /// allowed. It fails where none is: grants come and go, and nothing tells.
    FirstAllowed(Vec<(Value, Self)>),
    /// An event, written beside: it never fails a plan.
    Event(EventRecord),
    /// Independent actions of one kind, in batches of 1, 2, 4, …: a batch with a failure is the last, so that what
    /// fails for a common reason (a quota) is not tried hundreds of times.
    SlowStart(Vec<Action>),
    /// Independent actions, all at once.
    Concurrent(Vec<Action>),
    /// An action, and what a status says where it fails: that is written in the failing pass itself, where the error is
    /// at hand, so that the next one needs no memory of it. The pass fails all the same.
    Reporting {
        /// What to do.
        tried: Box<Action>,
        /// An update or a patch for when that fails (but not for a conflict, which only has to be tried again).
        otherwise: Box<Action>,
        /// Where in the update's object or the patch the error goes: a JSON pointer to a text, in which `{error}` stands
        /// for what the server said.
        message_at: String,
    },
}

impl Action {
    /// Creates an object.
    pub fn create<K: Typed>(object: &K) -> Self
    where
        K::Scope: Scope,
    {
        Self::Create { kind: Kind::of::<K>(), object: value_of(object), notes: OutcomeEvents::default() }
    }

    /// Replaces an object that was read before.
    pub fn update<K: Typed>(object: &K) -> Self {
        Self::Update { kind: Kind::of::<K>(), object: value_of(object), subresource: None }
    }

    /// Replaces an object's status.
    pub fn update_status<K: Typed>(object: &K) -> Self {
        Self::Update { kind: Kind::of::<K>(), object: value_of(object), subresource: Some("status") }
    }

    /// Merges into an object, lists whole.
    pub fn patch<K: Typed>(object: &K, patch: Value) -> Self {
        Self::patch_as(object, PatchType::Merge, patch)
    }

    /// Patches an object: strategically, where only some elements of a list (a condition) are to change.
    pub fn patch_as<K: Typed>(object: &K, patch_type: PatchType, patch: Value) -> Self {
        let (kind, key) = (Kind::of::<K>(), key_of(Object::metadata(object)));
        Self::Patch { kind, key, patch, patch_type, subresource: None }
    }

    /// The same of a subresource. Only updates and patches have any.
    #[must_use]
    pub fn on(mut self, name: &'static str) -> Self {
        if let Self::Update { subresource, .. } | Self::Patch { subresource, .. } = &mut self {
            *subresource = Some(name);
        }
        self
    }

    /// Deletes exactly this object.
    pub fn delete<K: Typed>(object: &K) -> Self {
        Self::Delete {
            kind: Kind::of::<K>(),
            key: key_of(Object::metadata(object)),
            uid: Object::metadata(object).uid.clone(),
            resource_version: None,
            propagation: None,
            grace_seconds: None,
            notes: OutcomeEvents::default(),
        }
    }

    /// The same with a status that says that it failed: see [`Action::Reporting`].
    #[must_use]
    pub fn reporting(self, otherwise: Self, message_at: String) -> Self {
        Self::Reporting { tried: Box::new(self), otherwise: Box::new(otherwise), message_at }
    }

    /// Puts what the server said into a report.
    pub(crate) fn with_error(mut self, message_at: &str, error: &str) -> Self {
        if let Self::Update { object: body, .. } | Self::Patch { patch: body, .. } = &mut self
            && let Some(Value::String(text)) = body.pointer_mut(message_at)
        {
            *text = text.replace("{error}", error);
        }
        self
    }

    /// The same with events about its outcome. Only creates and deletes have any.
    #[must_use]
    pub fn noted(mut self, done: Option<EventRecord>, failed: Option<EventRecord>) -> Self {
        if let Self::Create { notes, .. } | Self::Delete { notes, .. } = &mut self {
            *notes = OutcomeEvents { done, failed };
        }
        self
    }

    /// The same with the dependents' fate. Only deletes have any.
    #[must_use]
    pub fn propagating(mut self, how: Propagation) -> Self {
        if let Self::Delete { propagation, .. } = &mut self {
            *propagation = Some(how);
        }
        self
    }
}

/// The events that tell an action's outcome. In their messages `{name}` stands for the name that the object got,
/// `{error}` for what the server said.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutcomeEvents {
    /// When it was done.
    pub done: Option<EventRecord>,
    /// When it failed.
    pub failed: Option<EventRecord>,
}

/// An event to write.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// What it is about.
    pub about: ObjectReference,
    /// `Warning`, else `Normal`.
    pub warning: bool,
    /// CamelCase, for machines.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
    /// The component that says it, where that isn't the controller's own name.
    pub source: Option<&'static str>,
}

impl EventRecord {
    /// A normal event.
    pub fn normal<K: Typed>(about: &K, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about: reference_to(about), warning: false, reason, message: message.into(), source: None }
    }

    /// A warning.
    pub fn warning<K: Typed>(about: &K, reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, ..Self::normal(about, reason, message) }
    }

    /// The same, said by another component than the controller's name tells.
    #[must_use]
    pub fn from(self, source: &'static str) -> Self {
        Self { source: Some(source), ..self }
    }
}

/// A reference to an object, as events carry it.
pub fn reference_to<K: Typed>(object: &K) -> ObjectReference {
    let metadata = Object::metadata(object);
    ObjectReference {
        api_version: Some(K::API_VERSION.into()),
        kind: Some(K::KIND.into()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        field_path: None,
    }
}

/// The owner reference by which `owner` controls an object.
pub fn controlled_by<K: Typed>(owner: &K) -> OwnerReference {
    let metadata = Object::metadata(owner);
    OwnerReference {
        api_version: K::API_VERSION.into(),
        kind: K::KIND.into(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Why a pass failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `create`, `update`, `patch`, `delete`, `list`, `post`.
    pub verb: &'static str,
    /// Of which resource: `pods`, `deployments.apps`.
    pub resource: String,
    /// The HTTP status; 0 where there was no answer.
    pub code: u16,
    /// The Status' reason; empty where there was no answer.
    pub reason: String,
    /// What the server said, or why there was no answer.
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.verb, self.resource, self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_error_goes_only_where_the_report_says() {
        let patch = json!({"status": {"name": "{error}", "conditions": [{"message": "it failed: {error}"}]}});
        let report = Action::patch(&ConfigMap::default(), patch);
        let Action::Patch { patch, .. } = report.with_error("/status/conditions/0/message", "no {error}") else {
            unreachable!("it stays a patch")
        };
        let wanted = json!({"status": {"name": "{error}", "conditions": [{"message": "it failed: no {error}"}]}});
        assert_eq!(patch, wanted);
    }
}
