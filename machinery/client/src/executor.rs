//! Performs a plan's actions and effects through the API; the only module that sends a controller's requests.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use machinery_env::Env;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::effect::Effect;
use crate::events::Recorder;
use crate::object::Kind;
use crate::pass::EffectResult;
use crate::pending::PendingWrite;
use crate::plan::{Action, EventRecord, Failure, OutcomeEvents};
use crate::request::{ApiClient, status_code};
use machinery_api::ObjectKey;

/// Concurrent requests of one plan: enough to load a server, few enough not to starve other clients.
const CONCURRENT_REQUESTS_MAX: usize = 64;
/// Concurrent effects of one decision.
const CONCURRENT_EFFECTS_MAX: usize = 8;
/// Timeout of one effect; metrics of nodes take ten seconds at most.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Lists after a plan with creates without a response, to find the objects that they may have created, and the pause after a
/// failed list.
const OUTCOME_TRIES: u32 = 3;
const OUTCOME_PAUSE: Duration = Duration::from_millis(50);

/// Performs plans with one client, as one controller.
#[derive(Clone)]
pub(super) struct Executor {
    pub(super) api: ApiClient,
    pub(super) recorder: Recorder,
    pub(super) env: Env,
}

impl Executor {
    /// Performs the actions in order. Returns the writes even if a later action failed.
    pub(super) async fn perform(&self, actions: Vec<Action>) -> (Vec<PendingWrite>, Result<(), Failure>) {
        let mut wrote = Vec::new();
        for action in actions {
            let done = self.perform_action(action).await;
            wrote.extend(done.wrote);
            if done.result.is_err() {
                if let Some(create) = done.unanswered {
                    wrote.extend(self.newest_like(create).await);
                }
                return (wrote, done.result);
            }
        }
        (wrote, Ok(()))
    }

    /// Runs effects, some at once, each with a timeout of [`EFFECT_TIMEOUT`].
    pub(super) async fn run_effects(&self, effects: Vec<Effect>) -> Vec<(Effect, EffectResult)> {
        let mut answers = Vec::with_capacity(effects.len());
        let mut rest = effects.into_iter().peekable();
        while rest.peek().is_some() {
            let batch = rest.by_ref().take(CONCURRENT_EFFECTS_MAX).map(|effect| async {
                let answered = self.env.timeout(EFFECT_TIMEOUT, self.run_effect(&effect)).await;
                let answer = answered.unwrap_or_else(|_| {
                    let message = format!("no answer within {} s", EFFECT_TIMEOUT.as_secs());
                    let (verb, resource, reason) = ("get", String::new(), String::new());
                    Err(Failure { verb, resource, code: 0, reason, message })
                });
                (effect, answer)
            });
            answers.extend(join_all(batch.collect::<Vec<_>>()).await);
        }
        answers
    }

    async fn run_effect(&self, effect: &Effect) -> EffectResult {
        let (verb, answer) = match effect {
            Effect::Get(path) => ("get", self.api.get_path::<Value>(path).await),
            Effect::Put(path, object) => ("update", self.api.put_path::<Value>(path, object).await),
        };
        answer.map(Arc::new).map_err(|error| RequestFailure::new(verb, String::new(), &error).failure)
    }

    fn perform_action(&self, action: Action) -> BoxFuture<'_, ActionOutcome> {
        Box::pin(async move {
            match action {
                Action::Event(note) => {
                    self.recorder.record(note);
                    Ok(None).into()
                }
                Action::Create { kind, object, notes } => self.create(kind, object, notes).await,
                Action::Concurrent(actions) => self.batches(actions, CONCURRENT_REQUESTS_MAX).await,
                Action::SlowStart(actions) => self.batches(actions, 1).await,
                Action::Reporting { tried, otherwise, message_at } => {
                    let mut done = self.perform_action(*tried).await;
                    if let Err(failure) = &done.result
                        && failure.code != 409
                    {
                        let reported = self.perform_action(otherwise.with_error(&message_at, &failure.message)).await;
                        done.wrote.extend(reported.wrote);
                        if let Err(error) = reported.result {
                            tracing::debug!(%error, %failure, "a failure was not reported; the next pass reports it");
                        }
                    }
                    done
                }
                Action::FirstAllowed(attempts) => {
                    for (spec, action) in attempts {
                        match self.allowed(spec).await {
                            Ok(true) => return self.perform_action(action).await,
                            Ok(false) => {}
                            Err(failure) => return Err(failure).into(),
                        }
                    }
                    Err(not_allowed()).into()
                }
                single => self.single(single).await.into(),
            }
        })
    }

    /// Creates a SubjectAccessReview and returns whether it is allowed.
    async fn allowed(&self, spec: Value) -> Result<bool, Failure> {
        let kind = access_review_kind();
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let answer = self.api.create::<Value>(&kind, "", &review).await;
        match answer.map_err(|error| RequestFailure::of("create", &kind, &error)) {
            Ok(answer) => Ok(answer["status"]["allowed"].as_bool().unwrap_or(false)),
            Err(failed) => Err(failed.failure),
        }
    }

    /// Batches of doubling size, from `size`; a batch with a failure is the last. Creates in a namespace that was
    /// reported as terminating are skipped: a set of a thousand is woken by each of its deleted pods.
    async fn batches(&self, actions: Vec<Action>, mut size: usize) -> ActionOutcome {
        let mut done = ActionOutcome::default();
        let mut rest = actions.into_iter().peekable();
        while rest.peek().is_some() {
            let wanted =
                |action: &Action| !matches!(action, Action::Create { object, .. } if done.is_terminating(object));
            let batch: Vec<_> =
                rest.by_ref().filter(wanted).take(size).map(|action| self.perform_action(action)).collect();
            for one in join_all(batch).await {
                done.wrote.extend(one.wrote);
                done.result = done.result.and(one.result);
                done.terminating = done.terminating.or(one.terminating);
                done.unanswered = done.unanswered.or(one.unanswered);
            }
            if done.result.is_err() {
                break;
            }
            size = (size * 2).min(CONCURRENT_REQUESTS_MAX);
        }
        done
    }

    async fn create(&self, kind: Kind, object: Value, notes: OutcomeEvents) -> ActionOutcome {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let made = self.api.create::<WriteResponse>(&kind, namespace, &object).await;
        let made = made.map_err(|error| RequestFailure::of("create", &kind, &error));
        if made.as_ref().is_err_and(|failed| failed.terminating) {
            return ActionOutcome { terminating: Some(namespace.to_owned()), ..ActionOutcome::default() };
        }
        self.record_outcome(
            notes,
            made.as_ref().map(|made| made.metadata.name.clone()).map_err(|failed| &failed.failure),
        );
        match made {
            Ok(made) => Ok(made.into_pending(kind)).into(),
            Err(RequestFailure { failure, .. }) => {
                let unanswered = UnansweredCreate::of(kind, &object).filter(|_| outcome_is_unknown(&failure));
                ActionOutcome { unanswered, ..Err(failure).into() }
            }
        }
    }

    /// The newest version among the objects with the labels of a create without a response. The server may have created
    /// the object under an unknown generated name. The next pass waits until the cache shows that version, else it
    /// would create a second one. If every list fails, the next pass uses the cache as it is, as upstream's controllers
    /// always do.
    async fn newest_like(&self, create: UnansweredCreate) -> Option<PendingWrite> {
        let UnansweredCreate { kind, namespace, selector } = create;
        for _ in 0..OUTCOME_TRIES {
            if let Ok(list) = self.api.list::<VersionList>(&kind, &namespace, &[("labelSelector", &selector)]).await {
                let versions = list.items.into_iter().filter_map(|item| item.metadata.resource_version.parse().ok());
                return versions.max().map(|newest| PendingWrite::Version(kind, newest));
            }
            self.env.sleep(OUTCOME_PAUSE).await;
        }
        None
    }

    async fn single(&self, action: Action) -> Result<Option<PendingWrite>, Failure> {
        match action {
            Action::Update { kind, object, subresource } => {
                let metadata = &object["metadata"];
                let part = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
                let key = ObjectKey::new(part("namespace"), part("name"));
                let answer = self.api.update(&kind, &key, subresource, &object).await;
                let object: Option<WriteResponse> = ignore_not_found("update", &kind, answer)?;
                Ok(object.and_then(|object| object.into_pending(kind)))
            }
            Action::Patch { kind, key, patch, patch_type, subresource } => {
                let answer = self.api.patch(&kind, &key, subresource, patch_type, &patch).await;
                let object: Option<WriteResponse> = ignore_not_found("patch", &kind, answer)?;
                Ok(object.and_then(|object| object.into_pending(kind)))
            }
            Action::Delete { kind, key, uid, resource_version, propagation, grace_seconds, notes } => {
                let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
                if let Some(uid) = &uid {
                    options["preconditions"]["uid"] = json!(uid);
                }
                if let Some(version) = &resource_version {
                    options["preconditions"]["resourceVersion"] = json!(version);
                }
                if let Some(how) = propagation {
                    options["propagationPolicy"] = json!(how.as_str());
                }
                if let Some(seconds) = grace_seconds {
                    options["gracePeriodSeconds"] = json!(seconds);
                }
                let answer = self.api.delete::<Value>(&kind, &key, &options).await;
                match answer.map_err(|error| RequestFailure::of("delete", &kind, &error)) {
                    Ok(_) => self.record_outcome(notes, Ok(key.name.clone())),
                    Err(failed) if failed.failure.code == 404 => {}
                    Err(failed) => {
                        self.record_outcome(notes, Err(&failed.failure));
                        return Err(failed.failure);
                    }
                }
                Ok(Some(PendingWrite::Gone(kind, key, uid)))
            }
            Action::DeleteCollection { kind, namespace } => {
                let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
                let answer = self.api.delete_collection::<Value>(&kind, &namespace, &options).await;
                ignore_not_found("delete", &kind, answer).map(|_| None)
            }
            Action::ExpectNone { kind, namespace } => {
                let answer = self.api.list::<Value>(&kind, &namespace, &[("limit", "1")]).await;
                match ignore_not_found("list", &kind, answer)? {
                    Some(list) if list["items"].as_array().is_some_and(|items| !items.is_empty()) => Err(Failure {
                        verb: "list",
                        code: 200,
                        reason: "NotEmpty".into(),
                        message: format!("{} are left in {namespace}", kind.resource()),
                        resource: kind.resource(),
                    }),
                    _ => Ok(None),
                }
            }
            Action::ExpectGone { kind, key, uid } => match self.api.get::<Value>(&kind, &key).await {
                Ok(object) if uid.as_ref().is_none_or(|uid| object["metadata"]["uid"] == **uid) => Err(Failure {
                    verb: "get",
                    code: 200,
                    reason: "Exists".into(),
                    message: format!("{} {key} exists; the cache is stale", kind.resource()),
                    resource: kind.resource(),
                }),
                Ok(_) => Ok(None),
                Err(error) if is_not_found_for(&error, &key) => Ok(None),
                Err(error) => Err(RequestFailure::of("get", &kind, &error).failure),
            },
            Action::ExpectLive { kind, key, uid } => {
                let metadata = match self.api.get::<Value>(&kind, &key).await {
                    Ok(mut object) => object["metadata"].take(),
                    Err(error) if is_not_found_for(&error, &key) => Value::Null,
                    Err(error) => return Err(RequestFailure::of("get", &kind, &error).failure),
                };
                let same = !metadata.is_null() && uid.as_ref().is_none_or(|uid| metadata["uid"] == **uid);
                if same && metadata["deletionTimestamp"].is_null() {
                    return Ok(None);
                }
                let message = format!("{} {key} is gone or terminating; the cache is stale", kind.resource());
                Err(Failure { verb: "get", code: 409, reason: "Unseen".into(), message, resource: kind.resource() })
            }
            Action::RequireFreshCache { kind, namespace, selector, known } => {
                let answer = self.api.list::<Value>(&kind, &namespace, &[("labelSelector", &selector)]).await;
                let list = ignore_not_found("list", &kind, answer)?.unwrap_or_default();
                let mut uids = list["items"].as_array().into_iter().flatten().map(|item| &item["metadata"]["uid"]);
                if uids.all(|uid| uid.as_str().is_some_and(|uid| known.contains(uid))) {
                    return Ok(None);
                }
                Err(stale_cache_failure(&kind))
            }
            Action::RequireDependents { kind, namespace, owner_uid, known } => {
                let answer = self.api.list::<OwnerList>(&kind, &namespace, &[]).await;
                let Some(list) = ignore_not_found("list", &kind, answer)? else { return Ok(None) };
                let owned = |item: &&OwnerListItem| item.metadata.owner_references.iter().any(|o| o.uid == owner_uid);
                let mut uids = list.items.iter().filter(owned).map(|item| &item.metadata.uid);
                if uids.all(|uid| known.contains(uid)) { Ok(None) } else { Err(stale_cache_failure(&kind)) }
            }
            Action::Post { kind, key, subresource, body } => {
                let answer = self.api.post::<Value>(&kind, &key, subresource, &body).await;
                ignore_not_found("post", &kind, answer).map(|_| None)
            }
            Action::Event(_)
            | Action::Create { .. }
            | Action::Concurrent(_)
            | Action::FirstAllowed(_)
            | Action::SlowStart(_)
            | Action::Reporting { .. } => Ok(None),
        }
    }

    fn record_outcome(&self, notes: OutcomeEvents, outcome: Result<String, &Failure>) {
        let emitted = match outcome {
            Ok(name) => notes.done.map(|n| EventRecord { message: n.message.replace("{name}", &name), ..n }),
            Err(failure) => {
                notes.failed.map(|n| EventRecord { message: n.message.replace("{error}", &failure.message), ..n })
            }
        };
        if let Some(note) = emitted {
            self.recorder.record(note);
        }
    }
}

/// Outcome of an action.
struct ActionOutcome {
    wrote: Vec<PendingWrite>,
    result: Result<(), Failure>,
    /// A terminating namespace, in which creates fail and aren't needed.
    terminating: Option<String>,
    /// The first create without a response: one list for each plan, as all its creates may fail at once.
    unanswered: Option<UnansweredCreate>,
}

/// A create that the server may have done, of an object with a generated name.
struct UnansweredCreate {
    kind: Kind,
    namespace: String,
    /// The object's labels.
    selector: String,
}

impl UnansweredCreate {
    /// `None` for an object with a fixed name, which can't be created twice, or without labels.
    fn of(kind: Kind, object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        metadata["generateName"].as_str()?;
        let labels = metadata["labels"].as_object()?.iter();
        let labels: Vec<String> =
            labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        let namespace = metadata["namespace"].as_str().unwrap_or_default().to_owned();
        Some(Self { kind, namespace, selector: labels.join(",") })
    }
}

impl Default for ActionOutcome {
    fn default() -> Self {
        Ok(None).into()
    }
}

impl From<Result<Option<PendingWrite>, Failure>> for ActionOutcome {
    fn from(single: Result<Option<PendingWrite>, Failure>) -> Self {
        let (wrote, result) = match single {
            Ok(wrote) => (wrote.into_iter().collect(), Ok(())),
            Err(failure) => (Vec::new(), Err(failure)),
        };
        Self { wrote, result, terminating: None, unanswered: None }
    }
}

impl ActionOutcome {
    /// Whether an object's namespace is known to be terminating.
    fn is_terminating(&self, object: &Value) -> bool {
        self.terminating.as_deref().is_some_and(|namespace| object["metadata"]["namespace"] == namespace)
    }
}

struct RequestFailure {
    failure: Failure,
    /// Whether the namespace is being terminated: creates fail in it and aren't needed.
    terminating: bool,
}

impl RequestFailure {
    fn of(verb: &'static str, kind: &Kind, error: &kube::Error) -> Self {
        Self::new(verb, kind.resource(), error)
    }

    fn new(verb: &'static str, resource: String, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            let (reason, message) = (String::new(), error.to_string());
            return Self { failure: Failure { verb, resource, code: 0, reason, message }, terminating: false };
        };
        let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
        let terminating = causes.iter().any(|c| c.reason == "NamespaceTerminating");
        let (code, reason, message) = (status.code, status.reason.clone(), status.message.clone());
        Self { failure: Failure { verb, resource, code, reason, message }, terminating }
    }
}

/// The failure for a cache that lacks objects of the server; a retry succeeds once it has caught up.
fn stale_cache_failure(kind: &Kind) -> Failure {
    let resource = kind.resource();
    let message = format!("there are {resource} that the cache doesn't have yet");
    Failure { verb: "list", code: 409, reason: "Unseen".into(), message, resource }
}

crate::read_wire! { OwnerList }

/// A list reduced to uids and owner references.
#[derive(Deserialize)]
struct OwnerList {
    #[serde(default)]
    items: Vec<OwnerListItem>,
}

#[derive(Deserialize)]
struct OwnerListItem {
    metadata: OwnerListMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnerListMetadata {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    owner_references: Vec<OwnerUid>,
}

#[derive(Deserialize)]
struct OwnerUid {
    #[serde(default)]
    uid: String,
}

/// Whether the server may have done the failed write: it gave no response, or its store didn't acknowledge in time.
fn outcome_is_unknown(failure: &Failure) -> bool {
    matches!(failure.code, 0 | 500 | 503 | 504)
}

fn access_review_kind() -> Kind {
    Kind {
        group: "authorization.k8s.io".into(),
        plural: "subjectaccessreviews".into(),
        version: "v1".into(),
        kind: "SubjectAccessReview".into(),
        namespaced: false,
    }
}

fn not_allowed() -> Failure {
    Failure {
        verb: "create",
        code: 403,
        reason: "NotAllowed".into(),
        message: "the requester is not allowed to have it".into(),
        resource: access_review_kind().resource(),
    }
}

/// Maps a 404 to `None`: an object that is gone needs no change.
fn ignore_not_found<T>(verb: &'static str, kind: &Kind, answer: Result<T, kube::Error>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if status_code(&error) == 404 => Ok(None),
        Err(error) => Err(RequestFailure::of(verb, kind, &error).failure),
    }
}

/// Whether a 404 names this very object. A 404 without an object's name means that the kind isn't served, perhaps not
/// yet: that must not delete any dependents.
fn is_not_found_for(error: &kube::Error, key: &ObjectKey) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == key.name)
}

/// The fields read from the response to a write; the cache shows the rest.
#[derive(Deserialize)]
struct WriteResponse {
    #[serde(default)]
    metadata: WriteResponseMetadata,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct WriteResponseMetadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: String,
}

/// A list reduced to resource versions.
#[derive(Deserialize)]
struct VersionList {
    #[serde(default)]
    items: Vec<WriteResponse>,
}

crate::read_wire! { VersionList }
crate::read_wire! { WriteResponse }

impl WriteResponse {
    fn into_pending(self, kind: Kind) -> Option<PendingWrite> {
        Some(PendingWrite::Version(kind, self.metadata.resource_version.parse().ok()?))
    }
}

#[cfg(test)]
mod tests;
