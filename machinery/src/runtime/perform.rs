//! Performs actions: the one place where a plan meets the server.

use futures::future::{BoxFuture, join_all};
use http::{Method, Request, header::CONTENT_TYPE};
use kube::Client;
use serde_json::{Value, json};

use super::events::Recorder;
use super::object::Kind;
use super::plan::{Action, Failure, Note, Notes};
use super::view::View;
use crate::api::ObjectKey;

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
/// Requests at once within one plan: enough to fill a server, few enough not to crowd out others.
const TOGETHER_MAX: usize = 64;

/// What was written, to be seen in the view before the key is looked at again.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wrote {
    /// A kind's version.
    Version(Kind, u64),
    /// An object that is gone or going.
    Gone(Kind, ObjectKey, Option<String>),
}

impl Wrote {
    /// Whether the view shows it.
    pub(super) fn seen(&self, view: &View) -> bool {
        match self {
            Self::Version(kind, version) => view.seen(kind).is_none_or(|seen| seen >= *version),
            Self::Gone(kind, key, uid) => view
                .metadata(kind, key)
                .is_none_or(|known| known.deletion_timestamp.is_some() || uid.is_some() && known.uid != *uid),
        }
    }
}

/// Performs plans with one client, in the name of one controller.
#[derive(Clone)]
pub(super) struct Performer {
    pub(super) client: Client,
    pub(super) recorder: Recorder,
}

impl Performer {
    /// Performs the actions in order. What was written is told even where a later action failed.
    pub(super) async fn perform(&self, actions: Vec<Action>) -> (Vec<Wrote>, Result<(), Failure>) {
        let mut wrote = Vec::new();
        for action in actions {
            let (more, result) = self.one(action).await;
            wrote.extend(more);
            if result.is_err() {
                return (wrote, result);
            }
        }
        (wrote, Ok(()))
    }

    fn one(&self, action: Action) -> BoxFuture<'_, (Vec<Wrote>, Result<(), Failure>)> {
        Box::pin(async move {
            match action {
                Action::Event(note) => {
                    self.recorder.record(note);
                    (Vec::new(), Ok(()))
                }
                Action::Together(actions) => self.batches(actions, TOGETHER_MAX).await,
                Action::SlowStart(actions) => self.batches(actions, 1).await,
                single => match self.single(single).await {
                    Ok(wrote) => (wrote.into_iter().collect(), Ok(())),
                    Err(failure) => (Vec::new(), Err(failure)),
                },
            }
        })
    }

    /// Batches of doubling size, from `size`; a batch with a failure is the last.
    async fn batches(&self, actions: Vec<Action>, mut size: usize) -> (Vec<Wrote>, Result<(), Failure>) {
        let mut wrote = Vec::new();
        let mut rest = actions.into_iter().peekable();
        while rest.peek().is_some() {
            let batch: Vec<_> = rest.by_ref().take(size).map(|action| self.one(action)).collect();
            let mut failed = Ok(());
            for (more, result) in join_all(batch).await {
                wrote.extend(more);
                failed = failed.and(result);
            }
            if failed.is_err() {
                return (wrote, failed);
            }
            size = (size * 2).min(TOGETHER_MAX);
        }
        (wrote, Ok(()))
    }

    async fn single(&self, action: Action) -> Result<Option<Wrote>, Failure> {
        match action {
            Action::Create { kind, object, notes } => {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                let path = kind.collection_path(namespace);
                let made = self.send(Method::POST, &path, JSON, &object, "create", &kind).await;
                if let Err(failure) = &made
                    && failure.ending
                {
                    return Ok(None);
                }
                let name = |v: &Value| v["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                self.tell(notes, made.as_ref().map(name).map_err(|f| &f.failure));
                made.map(|object| written(kind, &object)).map_err(|f| f.failure)
            }
            Action::Update { kind, object, subresource } => {
                let metadata = &object["metadata"];
                let part = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
                let path = sub(&kind, &ObjectKey::new(part("namespace"), part("name")), subresource);
                let answer = self.send(Method::PUT, &path, JSON, &object, "update", &kind).await;
                unless_gone(answer).map(|object| object.and_then(|object| written(kind, &object)))
            }
            Action::Patch { kind, key, patch, subresource } => {
                let path = sub(&kind, &key, subresource);
                let answer = self.send(Method::PATCH, &path, MERGE_PATCH, &patch, "patch", &kind).await;
                unless_gone(answer).map(|object| object.and_then(|object| written(kind, &object)))
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
                let answer = self.send(Method::DELETE, &kind.path(&key), JSON, &options, "delete", &kind).await;
                match answer {
                    Ok(_) => self.tell(notes, Ok(key.name.clone())),
                    Err(failed) if failed.failure.code == 404 => {}
                    Err(failed) => {
                        self.tell(notes, Err(&failed.failure));
                        return Err(failed.failure);
                    }
                }
                Ok(Some(Wrote::Gone(kind, key, uid)))
            }
            Action::DeleteCollection { kind, namespace } => {
                let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
                let path = kind.collection_path(&namespace);
                let answer = self.send(Method::DELETE, &path, JSON, &options, "delete", &kind).await;
                unless_gone(answer).map(|_| None)
            }
            Action::ExpectNone { kind, namespace } => {
                let path = format!("{}?limit=1", kind.collection_path(&namespace));
                let answer = self.send(Method::GET, &path, JSON, &Value::Null, "list", &kind).await;
                match unless_gone(answer)? {
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
            Action::ExpectGone { kind, key, uid } => {
                let answer = self.send(Method::GET, &kind.path(&key), JSON, &Value::Null, "get", &kind).await;
                match unless_gone(answer)? {
                    Some(object) if uid.as_ref().is_none_or(|uid| object["metadata"]["uid"] == **uid) => Err(Failure {
                        verb: "get",
                        code: 200,
                        reason: "Exists".into(),
                        message: format!("{} {key} is there; the view is behind", kind.resource()),
                        resource: kind.resource(),
                    }),
                    _ => Ok(None),
                }
            }
            Action::ExpectKnown { kind, namespace, selector, known } => {
                let query = super::follow::form_urlencoded(&[("labelSelector", &selector)]);
                let path = format!("{}?{query}", kind.collection_path(&namespace));
                let answer = self.send(Method::GET, &path, JSON, &Value::Null, "list", &kind).await;
                let list = unless_gone(answer)?.unwrap_or_default();
                let mut uids = list["items"].as_array().into_iter().flatten().map(|item| &item["metadata"]["uid"]);
                if uids.all(|uid| uid.as_str().is_some_and(|uid| known.contains(uid))) {
                    return Ok(None);
                }
                Err(Failure {
                    verb: "list",
                    code: 409,
                    reason: "Unseen".into(),
                    message: format!("there are {} that the view doesn't show yet", kind.resource()),
                    resource: kind.resource(),
                })
            }
            Action::Post { kind, key, subresource, body } => {
                let path = sub(&kind, &key, Some(subresource));
                let answer = self.send(Method::POST, &path, JSON, &body, "post", &kind).await;
                unless_gone(answer).map(|_| None)
            }
            Action::Event(_) | Action::Together(_) | Action::SlowStart(_) => Ok(None),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: &Value,
        verb: &'static str,
        kind: &Kind,
    ) -> Result<Value, Failed> {
        let failed = |code: u16, reason: String, message: String, ending: bool| Failed {
            failure: Failure { verb, resource: kind.resource(), code, reason, message },
            ending,
        };
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, content_type)
            .body(bytes)
            .map_err(|e| failed(0, String::new(), e.to_string(), false))?;
        match self.client.request::<Value>(request).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) => {
                let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
                let ending = causes.iter().any(|c| c.reason == "NamespaceTerminating");
                Err(failed(status.code, status.reason.clone(), status.message.clone(), ending))
            }
            Err(other) => Err(failed(0, String::new(), other.to_string(), false)),
        }
    }

    fn tell(&self, notes: Notes, outcome: Result<String, &Failure>) {
        let told = match outcome {
            Ok(name) => notes.done.map(|n| Note { message: n.message.replace("{name}", &name), ..n }),
            Err(failure) => notes.failed.map(|n| Note { message: n.message.replace("{error}", &failure.message), ..n }),
        };
        if let Some(note) = told {
            self.recorder.record(note);
        }
    }
}

struct Failed {
    failure: Failure,
    /// The namespace is being terminated: nothing can be made in it, and nothing needs to be.
    ending: bool,
}

/// What is gone needs no change.
fn unless_gone(answer: Result<Value, Failed>) -> Result<Option<Value>, Failure> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(failed) if failed.failure.code == 404 => Ok(None),
        Err(failed) => Err(failed.failure),
    }
}

fn written(kind: Kind, object: &Value) -> Option<Wrote> {
    let version = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
    Some(Wrote::Version(kind, version))
}

fn sub(kind: &Kind, key: &ObjectKey, subresource: Option<&str>) -> String {
    match subresource {
        Some(subresource) => format!("{}/{subresource}", kind.path(key)),
        None => kind.path(key),
    }
}
