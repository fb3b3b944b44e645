//! Performs actions: the one place where a plan meets the server.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::events::Recorder;
use crate::object::Kind;
use crate::pass::Answer;
use crate::pending::PendingWrite;
use crate::plan::{Action, EventRecord, Failure, OutcomeEvents};
use crate::question::Question;
use crate::request::{ApiClient, status_code};
use machinery_api::ObjectKey;

/// Requests at once within one plan: enough to fill a server, few enough not to crowd out others.
const TOGETHER_MAX: usize = 64;
/// Questions of one decision that are asked at once.
const QUESTIONS_AT_ONCE: usize = 8;
/// Who doesn't answer by then has not answered; figures of nodes take ten seconds at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the objects are listed among which one may be whose creation got no answer, and the pause after a list that failed.
const OUTCOME_TRIES: u32 = 3;
const OUTCOME_PAUSE: Duration = Duration::from_millis(50);

/// Performs plans with one client, in the name of one controller.
#[derive(Clone)]
pub(super) struct Executor {
    pub(super) api: ApiClient,
    pub(super) recorder: Recorder,
}

impl Executor {
    /// Performs the actions in order. What was written is told even where a later action failed.
    pub(super) async fn perform(&self, actions: Vec<Action>) -> (Vec<PendingWrite>, Result<(), Failure>) {
        let mut wrote = Vec::new();
        for action in actions {
            let done = self.one(action).await;
            wrote.extend(done.wrote);
            if done.result.is_err() {
                return (wrote, done.result);
            }
        }
        (wrote, Ok(()))
    }

    /// Asks, some at once, and waits no longer than [`ANSWER_TIMEOUT`] for each.
    pub(super) async fn ask(&self, questions: Vec<Question>) -> Vec<(Question, Answer)> {
        let mut answers = Vec::with_capacity(questions.len());
        let mut rest = questions.into_iter().peekable();
        while rest.peek().is_some() {
            let batch = rest.by_ref().take(QUESTIONS_AT_ONCE).map(|question| async {
                let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.answer(&question)).await;
                let answer = answered.unwrap_or_else(|_| {
                    let message = format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
                    let (verb, resource, reason) = ("get", String::new(), String::new());
                    Err(Failure { verb, resource, code: 0, reason, message })
                });
                (question, answer)
            });
            answers.extend(join_all(batch.collect::<Vec<_>>()).await);
        }
        answers
    }

    async fn answer(&self, question: &Question) -> Answer {
        let (verb, answer) = match question {
            Question::Get(path) => ("get", self.api.get_path::<Value>(path).await),
            Question::Put(path, object) => ("update", self.api.put_path::<Value>(path, object).await),
        };
        answer.map(Arc::new).map_err(|error| Failed::told(verb, String::new(), &error).failure)
    }

    fn one(&self, action: Action) -> BoxFuture<'_, Performed> {
        Box::pin(async move {
            match action {
                Action::Event(note) => {
                    self.recorder.record(note);
                    Ok(None).into()
                }
                Action::Create { kind, object, notes } => self.create(kind, object, notes).await,
                Action::Concurrent(actions) => self.batches(actions, TOGETHER_MAX).await,
                Action::SlowStart(actions) => self.batches(actions, 1).await,
                Action::Reporting { tried, otherwise, message_at } => {
                    let mut done = self.one(*tried).await;
                    if let Err(failure) = &done.result
                        && failure.code != 409
                    {
                        let reported = self.one(otherwise.with_error(&message_at, &failure.message)).await;
                        done.wrote.extend(reported.wrote);
                        if let Err(error) = reported.result {
                            tracing::debug!(%error, %failure, "a failure was not reported; the next one is");
                        }
                    }
                    done
                }
                Action::FirstAllowed(attempts) => {
                    for (spec, action) in attempts {
                        match self.allowed(spec).await {
                            Ok(true) => return self.one(action).await,
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

    /// What the server says to the spec of a SubjectAccessReview.
    async fn allowed(&self, spec: Value) -> Result<bool, Failure> {
        let kind = reviews();
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let answer = self.api.create::<Value>(&kind, "", &review).await;
        match answer.map_err(|error| Failed::of("create", &kind, &error)) {
            Ok(answer) => Ok(answer["status"]["allowed"].as_bool().unwrap_or(false)),
            Err(failed) => Err(failed.failure),
        }
    }

    /// Batches of doubling size, from `size`; a batch with a failure is the last. What would be made in a namespace that was told
    /// to be going is not asked for any more: a set of a thousand is woken by each of its pods that goes.
    async fn batches(&self, actions: Vec<Action>, mut size: usize) -> Performed {
        let mut done = Performed::default();
        let mut rest = actions.into_iter().peekable();
        while rest.peek().is_some() {
            let wanted = |action: &Action| !matches!(action, Action::Create { object, .. } if done.ends(object));
            let batch: Vec<_> = rest.by_ref().filter(wanted).take(size).map(|action| self.one(action)).collect();
            for one in join_all(batch).await {
                done.wrote.extend(one.wrote);
                done.result = done.result.and(one.result);
                done.ending = done.ending.or(one.ending);
            }
            if done.result.is_err() {
                break;
            }
            size = (size * 2).min(TOGETHER_MAX);
        }
        done
    }

    async fn create(&self, kind: Kind, object: Value, notes: OutcomeEvents) -> Performed {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let made = self.api.create::<Written>(&kind, namespace, &object).await;
        let made = made.map_err(|error| Failed::of("create", &kind, &error));
        if made.as_ref().is_err_and(|failed| failed.ending) {
            return Performed { ending: Some(namespace.to_owned()), ..Performed::default() };
        }
        self.tell(notes, made.as_ref().map(|made| made.metadata.name.clone()).map_err(|failed| &failed.failure));
        match made {
            Ok(made) => Ok(made.pending(kind)).into(),
            Err(Failed { failure, .. }) => {
                let created = if outcome_is_unknown(&failure) { self.newest_like(kind, &object).await } else { None };
                Performed { wrote: created.into_iter().collect(), ..Err(failure).into() }
            }
        }
    }

    /// The newest version among the objects with the labels of one whose creation got no answer. The server may have created it, under a name that
    /// nobody knows yet: the next pass waits until the cache shows that version, or it would create a second one. Where the list
    /// fails as often as it is tried, the next pass works with the cache as it is, as upstream's controllers always do.
    async fn newest_like(&self, kind: Kind, object: &Value) -> Option<PendingWrite> {
        let metadata = &object["metadata"];
        // With a name of its own it would not be created twice.
        metadata["generateName"].as_str()?;
        let labels = metadata["labels"].as_object()?.iter();
        let labels: Vec<String> =
            labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        let (namespace, selector) = (metadata["namespace"].as_str().unwrap_or_default(), labels.join(","));
        for _ in 0..OUTCOME_TRIES {
            if let Ok(list) = self.api.list::<Versions>(&kind, namespace, &[("labelSelector", &selector)]).await {
                let versions = list.items.into_iter().filter_map(|item| item.metadata.resource_version.parse().ok());
                return versions.max().map(|newest| PendingWrite::Version(kind, newest));
            }
            tokio::time::sleep(OUTCOME_PAUSE).await;
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
                let object: Option<Written> = unless_gone("update", &kind, answer)?;
                Ok(object.and_then(|object| object.pending(kind)))
            }
            Action::Patch { kind, key, patch, patch_type, subresource } => {
                let answer = self.api.patch(&kind, &key, subresource, patch_type, &patch).await;
                let object: Option<Written> = unless_gone("patch", &kind, answer)?;
                Ok(object.and_then(|object| object.pending(kind)))
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
                match answer.map_err(|error| Failed::of("delete", &kind, &error)) {
                    Ok(_) => self.tell(notes, Ok(key.name.clone())),
                    Err(failed) if failed.failure.code == 404 => {}
                    Err(failed) => {
                        self.tell(notes, Err(&failed.failure));
                        return Err(failed.failure);
                    }
                }
                Ok(Some(PendingWrite::Gone(kind, key, uid)))
            }
            Action::DeleteCollection { kind, namespace } => {
                let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
                let answer = self.api.delete_collection::<Value>(&kind, &namespace, &options).await;
                unless_gone("delete", &kind, answer).map(|_| None)
            }
            Action::ExpectNone { kind, namespace } => {
                let answer = self.api.list::<Value>(&kind, &namespace, &[("limit", "1")]).await;
                match unless_gone("list", &kind, answer)? {
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
                    message: format!("{} {key} is there; the view is behind", kind.resource()),
                    resource: kind.resource(),
                }),
                Ok(_) => Ok(None),
                Err(error) if names_as_gone(&error, &key) => Ok(None),
                Err(error) => Err(Failed::of("get", &kind, &error).failure),
            },
            Action::RequireFreshCache { kind, namespace, selector, known } => {
                let answer = self.api.list::<Value>(&kind, &namespace, &[("labelSelector", &selector)]).await;
                let list = unless_gone("list", &kind, answer)?.unwrap_or_default();
                let mut uids = list["items"].as_array().into_iter().flatten().map(|item| &item["metadata"]["uid"]);
                if uids.all(|uid| uid.as_str().is_some_and(|uid| known.contains(uid))) {
                    return Ok(None);
                }
                Err(unseen(&kind))
            }
            Action::RequireDependents { kind, namespace, owner_uid, known } => {
                let answer = self.api.list::<Owned>(&kind, &namespace, &[]).await;
                let Some(list) = unless_gone("list", &kind, answer)? else { return Ok(None) };
                let owned = |item: &&OwnedItem| item.metadata.owner_references.iter().any(|o| o.uid == owner_uid);
                let mut uids = list.items.iter().filter(owned).map(|item| &item.metadata.uid);
                if uids.all(|uid| known.contains(uid)) { Ok(None) } else { Err(unseen(&kind)) }
            }
            Action::Post { kind, key, subresource, body } => {
                let answer = self.api.post::<Value>(&kind, &key, subresource, &body).await;
                unless_gone("post", &kind, answer).map(|_| None)
            }
            Action::Event(_)
            | Action::Create { .. }
            | Action::Concurrent(_)
            | Action::FirstAllowed(_)
            | Action::SlowStart(_)
            | Action::Reporting { .. } => Ok(None),
        }
    }

    fn tell(&self, notes: OutcomeEvents, outcome: Result<String, &Failure>) {
        let told = match outcome {
            Ok(name) => notes.done.map(|n| EventRecord { message: n.message.replace("{name}", &name), ..n }),
            Err(failure) => {
                notes.failed.map(|n| EventRecord { message: n.message.replace("{error}", &failure.message), ..n })
            }
        };
        if let Some(note) = told {
            self.recorder.record(note);
        }
    }
}

/// What came of an action.
struct Performed {
    wrote: Vec<PendingWrite>,
    result: Result<(), Failure>,
    /// A namespace in which nothing can be made any more, and nothing needs to be.
    ending: Option<String>,
}

impl Default for Performed {
    fn default() -> Self {
        Ok(None).into()
    }
}

impl From<Result<Option<PendingWrite>, Failure>> for Performed {
    fn from(single: Result<Option<PendingWrite>, Failure>) -> Self {
        let (wrote, result) = match single {
            Ok(wrote) => (wrote.into_iter().collect(), Ok(())),
            Err(failure) => (Vec::new(), Err(failure)),
        };
        Self { wrote, result, ending: None }
    }
}

impl Performed {
    /// Whether an object would be made where nothing can be.
    fn ends(&self, object: &Value) -> bool {
        self.ending.as_deref().is_some_and(|namespace| object["metadata"]["namespace"] == namespace)
    }
}

struct Failed {
    failure: Failure,
    /// The namespace is being terminated: nothing can be made in it, and nothing needs to be.
    ending: bool,
}

impl Failed {
    fn of(verb: &'static str, kind: &Kind, error: &kube::Error) -> Self {
        Self::told(verb, kind.resource(), error)
    }

    fn told(verb: &'static str, resource: String, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            let (reason, message) = (String::new(), error.to_string());
            return Self { failure: Failure { verb, resource, code: 0, reason, message }, ending: false };
        };
        let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
        let ending = causes.iter().any(|c| c.reason == "NamespaceTerminating");
        let (code, reason, message) = (status.code, status.reason.clone(), status.message.clone());
        Self { failure: Failure { verb, resource, code, reason, message }, ending }
    }
}

/// There is more than the view shows: it will in a moment.
fn unseen(kind: &Kind) -> Failure {
    let resource = kind.resource();
    let message = format!("there are {resource} that the view doesn't show yet");
    Failure { verb: "list", code: 409, reason: "Unseen".into(), message, resource }
}

crate::read_wire! { Owned }

/// A list, as far as it says who owns what.
#[derive(Deserialize)]
struct Owned {
    #[serde(default)]
    items: Vec<OwnedItem>,
}

#[derive(Deserialize)]
struct OwnedItem {
    metadata: OwnedMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnedMetadata {
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

/// Whether the server may have done what failed: it gave no answer, or gave up waiting for its store.
fn outcome_is_unknown(failure: &Failure) -> bool {
    matches!(failure.code, 0 | 500 | 504)
}

fn reviews() -> Kind {
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
        message: "who asked for it may not have it".into(),
        resource: reviews().resource(),
    }
}

/// What is gone needs no change.
fn unless_gone<T>(verb: &'static str, kind: &Kind, answer: Result<T, kube::Error>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if status_code(&error) == 404 => Ok(None),
        Err(error) => Err(Failed::of(verb, kind, &error).failure),
    }
}

/// Whether a server says of this very object that it isn't there. A 404 that names no object says that its kind isn't
/// served, perhaps not yet: nobody's dependents may be deleted for that.
fn names_as_gone(error: &kube::Error, key: &ObjectKey) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == key.name)
}

/// What is read of the answer to a write: the view shows the rest.
#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    metadata: WrittenMetadata,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct WrittenMetadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: String,
}

/// A list, as far as it says how new its objects are.
#[derive(Deserialize)]
struct Versions {
    #[serde(default)]
    items: Vec<Written>,
}

crate::read_wire! { Versions }
crate::read_wire! { Written }

impl Written {
    fn pending(self, kind: Kind) -> Option<PendingWrite> {
        Some(PendingWrite::Version(kind, self.metadata.resource_version.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Full};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;
    use machinery_env::Env;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::in_process;

    /// Refuses creates with a code, and keeps what else is written.
    fn refusing(code: u16, written: &Arc<Mutex<Vec<Value>>>) -> Executor {
        let written = written.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let written = written.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let (code, answer) = if head.method == "POST" {
                    let says = json!({"kind": "Status", "status": "Failure", "code": code, "message": "not allowed"});
                    (code, Bytes::from(says.to_string()))
                } else {
                    written.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                    (200, body)
                };
                Ok::<_, Infallible>(Response::builder().status(code).body(Full::new(answer)).unwrap())
            }
        });
        let client = in_process(service, |request| request);
        let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
        Executor { api: client.into(), recorder }
    }

    /// The failing pass itself writes why it failed: the next one has no memory of it. A conflict is only tried again.
    #[tokio::test]
    async fn what_fails_is_reported_in_the_same_pass() {
        for (code, reports) in [(403, 1), (409, 0)] {
            let written = Arc::default();
            let performer = refusing(code, &written);
            let map: ConfigMap = serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "x"}})).unwrap();
            let report = Action::patch(&map, json!({"data": {"why": "it says: {error}"}}));
            let tried = Action::SlowStart(vec![Action::create(&map); 3]).reporting(report, "/data/why".into());
            let (_, result) = performer.perform(vec![tried, Action::update(&map)]).await;
            assert_eq!(result.unwrap_err().code, code, "the pass fails all the same, and its rest is left");
            let expected = vec![json!({"data": {"why": "it says: not allowed"}}); reports];
            assert_eq!(*written.lock().unwrap(), expected);
        }
    }

    /// An owner may go only when the view shows all that the server has of its dependents.
    #[tokio::test]
    async fn dependents_that_only_the_server_knows_of_fail_the_pass() {
        let service = tower::service_fn(|request: Request<kube::client::Body>| {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/a/configmaps");
            let item = |uid: &str, owner: &str| json!({"metadata": {"uid": uid, "ownerReferences": [{"uid": owner}]}});
            let free = json!({"metadata": {"uid": "free"}});
            let list = json!({"items": [item("known", "o"), item("new", "o"), item("others", "p"), free]});
            let body = Full::new(Bytes::from(list.to_string()));
            async move { Ok::<_, Infallible>(Response::builder().status(200).body(body).unwrap()) }
        });
        let client = in_process(service, |request| request);
        let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
        let executor = Executor { api: client.into(), recorder };
        for (known, code) in [(vec!["known"], Some(409)), (vec!["known", "new"], None)] {
            let check = Action::RequireDependents {
                kind: Kind::of::<ConfigMap>(),
                namespace: "a".into(),
                owner_uid: "o".into(),
                known: known.iter().map(|uid| (*uid).to_owned()).collect(),
            };
            let (_, result) = executor.perform(vec![check]).await;
            assert_eq!(result.err().map(|failure| failure.code), code);
        }
    }

    /// Each pod of a set that goes with its namespace wakes the set: tens of thousands of creates that can't be for a set of a few
    /// hundred pods, if each of them asked for all that are missing.
    #[tokio::test]
    async fn one_answer_tells_that_nothing_is_made_in_a_namespace_any_more() {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let seen = asked.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            seen.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
            let going = request.uri().path().contains("/namespaces/going/") && request.method() == "POST";
            let cause = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]);
            let says = json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "it is being terminated",
                "details": {"causes": cause}});
            let made = json!({"metadata": {"name": "x", "resourceVersion": "7"}});
            let (code, answer) = if going { (403, says) } else { (201, made) };
            let answer = Full::new(Bytes::from(answer.to_string()));
            async move { Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap()) }
        });
        let client = in_process(service, |request| request);
        let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
        let executor = Executor { api: client.into(), recorder };
        let map = |namespace: &str| -> ConfigMap {
            serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": "x"}})).unwrap()
        };
        let mut actions = vec![Action::create(&map("going")); 500];
        actions.extend([Action::create(&map("stays")), Action::update(&map("going"))]);
        let (wrote, result) = executor.perform(vec![Action::SlowStart(actions), Action::update(&map("stays"))]).await;
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(wrote.len(), 3, "what is elsewhere or is there already is done as it was to be");
        let asked = asked.lock().unwrap();
        assert_eq!(asked.iter().filter(|asked| asked.starts_with("POST")).count(), 2, "{asked:?}");
    }

    /// A pod whose creation got no answer may be there under a name that nobody knows: the next pass waits until the cache shows it.
    #[tokio::test]
    async fn a_create_without_an_answer_waits_for_what_may_have_been_created() {
        for (metadata, lists, wrote) in [
            (json!({"namespace": "a", "generateName": "web-", "labels": {"app": "web"}}), 3, vec![9]),
            (json!({"namespace": "a", "name": "web", "labels": {"app": "web"}}), 0, vec![]),
        ] {
            let listed = Arc::<Mutex<u32>>::default();
            let seen = listed.clone();
            let service = tower::service_fn(move |request: Request<kube::client::Body>| {
                let tries = (request.method() == "GET").then(|| {
                    let mut listed = seen.lock().unwrap();
                    assert_eq!(request.uri().query(), Some("labelSelector=app%3Dweb"));
                    *listed += 1;
                    *listed
                });
                async move {
                    let item = |version: &str| json!({"metadata": {"name": "x", "resourceVersion": version}});
                    let list = json!({"items": [item("8"), item("9"), item("7")]});
                    match tries {
                        Some(3) => {
                            Ok(Response::builder().status(200).body(Full::new(Bytes::from(list.to_string()))).unwrap())
                        }
                        _ => Err(std::io::Error::other("the connection ended")),
                    }
                }
            });
            let client = in_process(service, |request| request);
            let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
            let executor = Executor { api: client.into(), recorder };
            let map: ConfigMap = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            let (pending, result) = executor.perform(vec![Action::create(&map)]).await;
            assert_eq!(result.unwrap_err().code, 0);
            let expected: Vec<_> =
                wrote.into_iter().map(|version| PendingWrite::Version(Kind::of::<ConfigMap>(), version)).collect();
            assert_eq!((pending, *listed.lock().unwrap()), (expected, lists));
        }
    }

    #[test]
    fn only_a_404_that_names_the_object_says_that_it_is_gone() {
        let error = |status: Value| kube::Error::Api(Box::new(serde_json::from_value::<Status>(status).unwrap()));
        let gone = error(json!({"code": 404, "reason": "NotFound", "message": "configmaps \"x\" not found",
            "details": {"name": "x", "kind": "configmaps"}}));
        let unserved = error(json!({"code": 404, "reason": "NotFound", "details": {},
            "message": "the server could not find the requested resource"}));
        let key = ObjectKey::new("a", "x");
        assert!(names_as_gone(&gone, &key));
        assert!(!names_as_gone(&unserved, &key) && !names_as_gone(&gone, &ObjectKey::new("a", "y")));
    }
}
