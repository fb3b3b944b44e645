//! Events as client-go records them: repeated ones counted on one object, floods from one object cut.

use std::collections::HashMap;

use http::{Method, Request, header::CONTENT_TYPE};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::object::value_of;
use super::plan::Note;
use crate::env::Env;

/// Events that wait to be written; more are dropped, as they tell nothing that the objects' status doesn't.
const WAITING_MAX: usize = 1000;
/// Events that are remembered to be counted on (client-go's cache).
const REMEMBERED_MAX: usize = 4096;
/// Events about one object at once, and how fast this is filled up again (client-go: 25, one per 300 s).
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;

/// Records events in the name of one component.
#[derive(Debug, Clone)]
pub struct Recorder {
    notes: mpsc::Sender<(Note, Timestamp)>,
    env: Env,
}

/// What was written before about the same matter.
struct Known {
    namespace: String,
    name: String,
    count: u32,
    used: Timestamp,
}

/// How many events an object may still cause.
struct Budget {
    left: f64,
    at: Timestamp,
}

/// What an event is about: equal ones are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Matter {
    uid: String,
    name: String,
    reason: &'static str,
    message: String,
    warning: bool,
}

/// What to write for a note: pure.
#[derive(Debug, PartialEq)]
enum Write {
    /// A new event.
    Create(Value),
    /// One more of a known one: namespace, name, merge patch.
    Count(String, String, Value),
    /// Nothing: the object causes too many.
    Nothing,
}

/// What a recorder remembers.
struct Memory {
    component: &'static str,
    host: String,
    known: HashMap<Matter, Known>,
    budgets: HashMap<String, Budget>,
}

impl Recorder {
    /// Starts writing events with `client`, until `stop`.
    #[must_use]
    pub fn start(client: Client, env: Env, component: &'static str, stop: &CancellationToken) -> Self {
        Self::start_on(client, env, component, String::new(), stop)
    }

    /// The same for a component of one node, which its events name as their host.
    #[must_use]
    pub fn start_on(client: Client, env: Env, component: &'static str, host: String, stop: &CancellationToken) -> Self {
        let (notes, mut waiting) = mpsc::channel::<(Note, Timestamp)>(WAITING_MAX);
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut memory = Memory { component, host, known: HashMap::new(), budgets: HashMap::new() };
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    next = waiting.recv() => next,
                };
                let Some((note, at)) = next else { return };
                if let Err(error) = memory.write(&client, &note, at).await {
                    tracing::debug!(component, reason = note.reason, %error, "an event is lost");
                }
            }
        });
        Self { notes, env }
    }

    /// Records an event; never waits.
    pub fn record(&self, note: Note) {
        let _ = self.notes.try_send((note, self.env.now()));
    }
}

impl Memory {
    async fn write(&mut self, client: &Client, note: &Note, at: Timestamp) -> Result<(), kube::Error> {
        let (method, path, content_type, body) = match self.decide(note, at) {
            Write::Nothing => return Ok(()),
            Write::Create(event) => {
                let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
                (Method::POST, format!("/api/v1/namespaces/{namespace}/events"), "application/json", event)
            }
            Write::Count(namespace, name, patch) => {
                let path = format!("/api/v1/namespaces/{namespace}/events/{name}");
                (Method::PATCH, path, "application/merge-patch+json", patch)
            }
        };
        let counted = method == Method::PATCH;
        let answer = send(client, method, &path, content_type, &body).await;
        match answer {
            // The event that was counted on has expired meanwhile.
            Err(kube::Error::Api(status)) if counted && status.code == 404 => {
                self.known.remove(&matter(note));
                if let Write::Create(event) = self.decide(note, at) {
                    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
                    let path = format!("/api/v1/namespaces/{namespace}/events");
                    send(client, Method::POST, &path, "application/json", &event).await?;
                }
                Ok(())
            }
            answer => answer,
        }
    }

    fn decide(&mut self, note: &Note, at: Timestamp) -> Write {
        let stamp = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let matter = matter(note);
        if !self.may(&matter.uid, at) {
            return Write::Nothing;
        }
        if let Some(known) = self.known.get_mut(&matter) {
            known.count += 1;
            known.used = at;
            let patch = json!({"count": known.count, "lastTimestamp": stamp});
            return Write::Count(known.namespace.clone(), known.name.clone(), patch);
        }
        if self.known.len() >= REMEMBERED_MAX
            && let Some(oldest) = self.known.iter().min_by_key(|(_, k)| k.used).map(|(m, _)| m.clone())
        {
            self.known.remove(&oldest);
        }
        let namespace = note.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let name = format!("{}.{:x}", matter.name, at.as_nanosecond());
        let known = Known { namespace: namespace.clone(), name: name.clone(), count: 1, used: at };
        self.known.insert(matter, known);
        let component = note.source.unwrap_or(self.component);
        let source = if self.host.is_empty() {
            json!({"component": component})
        } else {
            json!({"component": component, "host": self.host})
        };
        Write::Create(json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": value_of(&note.about),
            "reason": note.reason, "message": note.message,
            "source": source, "reportingComponent": component, "reportingInstance": self.host,
            "firstTimestamp": stamp, "lastTimestamp": stamp, "count": 1,
            "type": if note.warning { "Warning" } else { "Normal" },
        }))
    }

    fn may(&mut self, uid: &str, at: Timestamp) -> bool {
        if self.budgets.len() >= REMEMBERED_MAX {
            self.budgets.retain(|_, b| (at.duration_since(b.at).as_secs_f64()) < BURST * REFILL_SECONDS);
            if self.budgets.len() >= REMEMBERED_MAX {
                self.budgets.clear();
            }
        }
        let budget = self.budgets.entry(uid.to_owned()).or_insert(Budget { left: BURST, at });
        let passed = at.duration_since(budget.at).as_secs_f64().max(0.0);
        budget.left = (budget.left + passed / REFILL_SECONDS).min(BURST);
        budget.at = at;
        if budget.left < 1.0 {
            return false;
        }
        budget.left -= 1.0;
        true
    }
}

fn matter(note: &Note) -> Matter {
    Matter {
        uid: note.about.uid.clone().unwrap_or_default(),
        name: note.about.name.clone().unwrap_or_default(),
        reason: note.reason,
        message: note.message.clone(),
        warning: note.warning,
    }
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &'static str,
    body: &Value,
) -> Result<(), kube::Error> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, content_type)
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request::<Value>(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;

    #[test]
    fn the_same_again_is_counted_and_a_flood_is_cut() {
        let mut memory = Memory { component: "x", host: String::new(), known: HashMap::new(), budgets: HashMap::new() };
        let about = ObjectReference { uid: Some("u".into()), name: Some("n".into()), ..ObjectReference::default() };
        let note = Note { about, warning: false, reason: "R", message: "m".into(), source: None };
        let at = Timestamp::from_second(1000).unwrap();
        let Write::Create(event) = memory.decide(&note, at) else { panic!("the first is new") };
        assert_eq!(event["metadata"]["namespace"], "default");
        let Write::Count(_, _, patch) = memory.decide(&note, at) else { panic!("the second is counted") };
        assert_eq!(patch["count"], 2);
        for _ in 0..23 {
            assert_ne!(memory.decide(&note, at), Write::Nothing);
        }
        assert_eq!(memory.decide(&note, at), Write::Nothing);
        let later = at.saturating_add(Duration::from_secs(301)).unwrap();
        assert_ne!(memory.decide(&note, later), Write::Nothing);
    }
}
