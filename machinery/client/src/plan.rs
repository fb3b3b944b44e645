//! A decision as data: tests assert on it, the log prints it, the driver performs it.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

use crate::effect::{Effect, ReconcilerState};
use crate::object::{Kind, Object, Scope, Typed, key_of, value_of};
use crate::request::PatchType;
use machinery_api::ObjectKey;

/// A decision. Its actions are performed in order; the first failure ends the pass, and the key is requeued.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The actions, in order.
    pub actions: Vec<Action>,
    /// When to requeue the key even without a change.
    pub requeue_at: Option<Timestamp>,
    /// Requests that have to be run first. With effects no action is performed: the decision is repeated with the
    /// results.
    pub effects: Vec<Effect>,
    /// The key's cached state from now on (`None`: nothing); in a plan with effects, the scratch state of the next
    /// round.
    pub state: Option<ReconcilerState>,
    /// Whether the plan only writes the progress of something that continues by itself. The driver may delay such a
    /// write by 100 ms to merge it with the next one. Completion, failure and a new generation are not delayed.
    pub may_wait: bool,
}

impl Plan {
    /// An empty plan.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Requeues the key at `at`; the earliest time wins.
    pub fn revisit(&mut self, at: Timestamp) {
        self.requeue_at = Some(self.requeue_at.map_or(at, |known| known.min(at)));
    }

    /// Requeues the key after `wait`.
    pub fn requeue_after(&mut self, now: Timestamp, wait: Duration) {
        self.revisit(now.saturating_add(wait).unwrap_or(Timestamp::MAX));
    }
}

impl From<Vec<Action>> for Plan {
    fn from(actions: Vec<Action>) -> Self {
        Self { actions, ..Self::default() }
    }
}

/// The deletion propagation policy of an object's dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents are deleted afterwards.
    Background,
    /// Dependents are deleted first.
    Foreground,
    /// Dependents stay, without an owner.
    Orphan,
}

impl Propagation {
    /// The value in `DeleteOptions`.
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
    /// POST. An answer that the namespace is being terminated counts as success.
    Create {
        /// The kind.
        kind: Kind,
        /// The object, with a name or a `generateName`.
        object: Value,
        /// Events about the outcome.
        notes: OutcomeEvents,
    },
    /// PUT. The object carries the resourceVersion at which it was read.
    Update {
        /// The kind.
        kind: Kind,
        /// The whole object.
        object: Value,
        /// `status`, `finalize` or the like; none for the object itself.
        subresource: Option<&'static str>,
    },
    /// PATCH. Include `metadata.uid` and, where it matters, `metadata.resourceVersion` as preconditions (as tests in a
    /// JSON patch).
    Patch {
        /// The kind.
        kind: Kind,
        /// The object.
        key: ObjectKey,
        /// The patch.
        patch: Value,
        /// The patch's content type.
        patch_type: PatchType,
        /// `status` or the like; none for the object itself.
        subresource: Option<&'static str>,
    },
    /// DELETE. An object that is already gone counts as success.
    Delete {
        /// The kind.
        kind: Kind,
        /// The object.
        key: ObjectKey,
        /// Precondition: the uid.
        uid: Option<String>,
        /// Precondition: the resourceVersion.
        resource_version: Option<String>,
        /// The dependents' fate; `None` leaves it to the server.
        propagation: Option<Propagation>,
        /// The grace period in seconds; `None` leaves it to the object.
        grace_seconds: Option<u32>,
        /// Events about the outcome.
        notes: OutcomeEvents,
    },
    /// DELETE of all objects of a kind in a namespace.
    DeleteCollection {
        /// The kind.
        kind: Kind,
        /// The namespace.
        namespace: String,
    },
    /// Fails if the server, not the cache, still has objects of a kind in a namespace.
    ExpectNone {
        /// The kind.
        kind: Kind,
        /// The namespace.
        namespace: String,
    },
    /// Fails if the server, not the cache, still has an object.
    ExpectGone {
        /// The kind.
        kind: Kind,
        /// The object.
        key: ObjectKey,
        /// The uid; another object of the same name doesn't count.
        uid: Option<String>,
    },
    /// Fails unless the server, not the cache, has an object that isn't terminating. What is done on behalf of the object
    /// (an adoption) would outlive it.
    ExpectLive {
        /// The kind.
        kind: Kind,
        /// The object.
        key: ObjectKey,
        /// The uid; another object of the same name doesn't count.
        uid: Option<String>,
    },
    /// Fails if the server, not the cache, has an object that a selector matches and `known` lacks. Objects created
    /// just before (pods that a new ReplicaSet shall adopt) arrive over another watch, and later.
    RequireFreshCache {
        /// The kind.
        kind: Kind,
        /// The namespace.
        namespace: String,
        /// The label selector in the syntax of requests.
        selector: String,
        /// The uids in the cache.
        known: BTreeSet<String>,
    },
    /// Fails if the server, not the cache, has a dependent of an owner that `known` lacks: the watch of the dependents'
    /// kind may be behind that of the owner.
    RequireDependents {
        /// The kind.
        kind: Kind,
        /// The namespace; empty for all.
        namespace: String,
        /// The owner's uid.
        owner_uid: String,
        /// The uids in the cache.
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
    /// Sends specs of SubjectAccessReviews in order and performs the action beside the first allowed one. It fails if
    /// none is allowed: grants change without a notification.
    FirstAllowed(Vec<(Value, Self)>),
    /// An event, recorded asynchronously: it never fails a plan.
    Event(EventRecord),
    /// Independent actions of one kind, in batches of 1, 2, 4, …: a batch with a failure is the last. A failure with a
    /// common cause (a quota) is not repeated hundreds of times.
    SlowStart(Vec<Action>),
    /// Independent actions, all at once.
    Concurrent(Vec<Action>),
    /// An action and the status write on its failure. The failing pass itself writes the status, so that the next pass
    /// needs no memory of the error. The pass still fails.
    Reporting {
        /// The action.
        tried: Box<Action>,
        /// The update or patch on failure (not on a conflict, which is only retried).
        otherwise: Box<Action>,
        /// Location of the error in the update's object or the patch: a JSON pointer to a text, in which `{error}`
        /// stands for the server's message.
        message_at: String,
    },
}

impl Action {
    /// A create.
    pub fn create<K: Typed>(object: &K) -> Self
    where
        K::Scope: Scope,
    {
        Self::Create { kind: Kind::of::<K>(), object: value_of(object), notes: OutcomeEvents::default() }
    }

    /// A replacement of an object that was read before.
    pub fn update<K: Typed>(object: &K) -> Self {
        Self::Update { kind: Kind::of::<K>(), object: value_of(object), subresource: None }
    }

    /// A replacement of an object's status.
    pub fn update_status<K: Typed>(object: &K) -> Self {
        Self::Update { kind: Kind::of::<K>(), object: value_of(object), subresource: Some("status") }
    }

    /// A JSON merge patch: lists are replaced whole.
    pub fn patch<K: Typed>(object: &K, patch: Value) -> Self {
        Self::patch_as(object, PatchType::Merge, patch)
    }

    /// A patch of another type: strategic, if only some elements of a list (a condition) change.
    pub fn patch_as<K: Typed>(object: &K, patch_type: PatchType, patch: Value) -> Self {
        let (kind, key) = (Kind::of::<K>(), key_of(Object::metadata(object)));
        Self::Patch { kind, key, patch, patch_type, subresource: None }
    }

    /// Directs the action at a subresource. Updates and patches only.
    #[must_use]
    pub fn on(mut self, name: &'static str) -> Self {
        if let Self::Update { subresource, .. } | Self::Patch { subresource, .. } = &mut self {
            *subresource = Some(name);
        }
        self
    }

    /// A delete of exactly this object (uid precondition).
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

    /// Deletes the object only at the version that was read: what was decided on may have changed. Deletes only.
    #[must_use]
    pub fn at_version<K: Typed>(mut self, object: &K) -> Self {
        if let Self::Delete { resource_version, .. } = &mut self {
            resource_version.clone_from(&Object::metadata(object).resource_version);
        }
        self
    }

    /// The check of an adopter: see [`Action::ExpectLive`].
    pub fn expect_live<K: Typed>(object: &K) -> Self {
        let metadata = Object::metadata(object);
        Self::ExpectLive { kind: Kind::of::<K>(), key: key_of(metadata), uid: metadata.uid.clone() }
    }

    /// Adds a status write on failure: see [`Action::Reporting`].
    #[must_use]
    pub fn reporting(self, otherwise: Self, message_at: String) -> Self {
        Self::Reporting { tried: Box::new(self), otherwise: Box::new(otherwise), message_at }
    }

    /// Inserts the server's message into a status write.
    pub(crate) fn with_error(mut self, message_at: &str, error: &str) -> Self {
        if let Self::Update { object: body, .. } | Self::Patch { patch: body, .. } = &mut self
            && let Some(Value::String(text)) = body.pointer_mut(message_at)
        {
            *text = text.replace("{error}", error);
        }
        self
    }

    /// Adds events about the outcome. Creates and deletes only.
    #[must_use]
    pub fn noted(mut self, done: Option<EventRecord>, failed: Option<EventRecord>) -> Self {
        if let Self::Create { notes, .. } | Self::Delete { notes, .. } = &mut self {
            *notes = OutcomeEvents { done, failed };
        }
        self
    }

    /// Sets the propagation policy. Deletes only.
    #[must_use]
    pub fn propagating(mut self, how: Propagation) -> Self {
        if let Self::Delete { propagation, .. } = &mut self {
            *propagation = Some(how);
        }
        self
    }
}

/// Events about an action's outcome. In their messages `{name}` stands for the object's final name, `{error}` for the
/// server's message.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutcomeEvents {
    /// Recorded on success.
    pub done: Option<EventRecord>,
    /// Recorded on failure.
    pub failed: Option<EventRecord>,
}

/// An event to record.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// The regarding object.
    pub about: ObjectReference,
    /// `Warning`, else `Normal`.
    pub warning: bool,
    /// CamelCase, machine-readable.
    pub reason: &'static str,
    /// Human-readable.
    pub message: String,
    /// The reporting component, if it isn't the controller itself.
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

    /// Sets another reporting component than the controller.
    #[must_use]
    pub fn from(self, source: &'static str) -> Self {
        Self { source: Some(source), ..self }
    }
}

/// A reference to an object in the form of events.
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

/// The owner reference with `controller: true` for `owner`.
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
    /// The resource: `pods`, `deployments.apps`.
    pub resource: String,
    /// The HTTP status; 0 without a response.
    pub code: u16,
    /// The Status' reason; empty without a response.
    pub reason: String,
    /// The server's message, or why there was no response.
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
    fn the_error_is_written_only_at_the_reports_pointer() {
        let patch = json!({"status": {"name": "{error}", "conditions": [{"message": "it failed: {error}"}]}});
        let report = Action::patch(&ConfigMap::default(), patch);
        let Action::Patch { patch, .. } = report.with_error("/status/conditions/0/message", "no {error}") else {
            unreachable!("it stays a patch")
        };
        let wanted = json!({"status": {"name": "{error}", "conditions": [{"message": "it failed: no {error}"}]}});
        assert_eq!(patch, wanted);
    }
}
