//! Events as upstream's scheduler records them: `events.k8s.io/v1`, with an action and no count; the same again within six
//! minutes becomes a series.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use jiff::Timestamp;
use kube::Client;
use machinery::api::time::micros;
use machinery::env::Env;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::pod::PodInfo;

/// Events that wait to be written; more are dropped: the pods' conditions tell the same.
const WAITING_MAX: usize = 4096;
/// Written at once.
const WRITES_MAX: usize = 16;
/// Matters that are remembered to be counted on.
const REMEMBERED_MAX: usize = 4096;
/// How long a matter is the same series (client-go's).
const SERIES_GAP: Duration = Duration::from_secs(6 * 60);
/// How often a series is written: its count is current enough then.
const SERIES_WRITE_EVERY: Duration = Duration::from_secs(30);
/// Bytes of a note, as upstream's limit.
const NOTE_BYTES_MAX: usize = 1024;

/// An event to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The pod's namespace, name and uid.
    pub pod: (String, String, String),
    /// Its resourceVersion.
    pub version: String,
    /// `Warning`, else `Normal`.
    pub warning: bool,
    /// CamelCase.
    pub reason: &'static str,
    /// What was tried.
    pub action: &'static str,
    /// For a person.
    pub note: String,
}

impl Note {
    /// About a pod.
    #[must_use]
    pub fn about(pod: &PodInfo, version: &str, reason: &'static str, action: &'static str, note: String) -> Self {
        let pod = (pod.key.namespace.clone(), pod.key.name.clone(), pod.uid.to_string());
        let warning = reason == "FailedScheduling";
        Self { pod, version: version.to_owned(), warning, reason, action, note: shortened(note) }
    }
}

fn shortened(mut note: String) -> String {
    if note.len() > NOTE_BYTES_MAX {
        let suffix = " ...";
        let end = (0..=NOTE_BYTES_MAX - suffix.len()).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0);
        note.truncate(end);
        note.push_str(suffix);
    }
    note
}

/// Writes events until it is dropped.
#[derive(Debug, Clone)]
pub struct Recorder(mpsc::Sender<Note>);

struct Series {
    name: String,
    count: u32,
    seen: Timestamp,
    written: Timestamp,
}

/// What to do about a note: pure.
#[derive(Debug, PartialEq)]
enum Write {
    Create(Value),
    Patch(String, Value),
    Nothing,
}

struct Memory {
    controller: String,
    instance: String,
    series: HashMap<(String, &'static str, String), Series>,
    order: VecDeque<(String, &'static str, String)>,
}

impl Recorder {
    /// Starts writing in the name of a scheduler.
    #[must_use]
    pub fn start(client: Client, env: Env, controller: &str, instance: &str, stop: &CancellationToken) -> Self {
        let (sender, mut notes) = mpsc::channel::<Note>(WAITING_MAX);
        let mut memory = Memory {
            controller: controller.into(),
            instance: instance.into(),
            series: HashMap::new(),
            order: VecDeque::new(),
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            let writes = Arc::new(Semaphore::new(WRITES_MAX));
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    next = notes.recv() => next,
                };
                let Some(note) = next else { return };
                let write = memory.decide(&note, env.now());
                let Ok(permit) = writes.clone().acquire_owned().await else { return };
                let client = client.clone();
                tokio::spawn(async move {
                    if let Err(error) = send(&client, &note.pod.0, write).await {
                        tracing::debug!(reason = note.reason, %error, "an event is lost");
                    }
                    drop(permit);
                });
            }
        });
        Self(sender)
    }

    /// Records an event; never waits.
    pub fn record(&self, note: Note) {
        let _ = self.0.try_send(note);
    }
}

async fn send(client: &Client, namespace: &str, write: Write) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let (method, path, content_type, body) = match write {
        Write::Nothing => return Ok(()),
        Write::Create(event) => (Method::POST, path, "application/json", event),
        Write::Patch(name, patch) => {
            (Method::PATCH, format!("{path}/{name}"), "application/strategic-merge-patch+json", patch)
        }
    };
    let request = Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, content_type);
    client.request::<Value>(request.body(serde_json::to_vec(&body)?)?).await?;
    Ok(())
}

impl Memory {
    fn decide(&mut self, note: &Note, at: Timestamp) -> Write {
        let (namespace, name, uid) = &note.pod;
        let matter = (uid.clone(), note.reason, note.note.clone());
        if let Some(series) = self.series.get_mut(&matter)
            && at.duration_since(series.seen).unsigned_abs() < SERIES_GAP
        {
            series.count += 1;
            series.seen = at;
            if series.count > 2 && at.duration_since(series.written).unsigned_abs() < SERIES_WRITE_EVERY {
                return Write::Nothing;
            }
            series.written = at;
            let patch = json!({"series": {"count": series.count, "lastObservedTime": micros(at)}});
            return Write::Patch(series.name.clone(), patch);
        }
        while self.order.len() >= REMEMBERED_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.series.remove(&oldest);
        }
        let event = format!("{name}.{:x}", at.as_nanosecond());
        let series = Series { name: event.clone(), count: 1, seen: at, written: at };
        if self.series.insert(matter.clone(), series).is_none() {
            self.order.push_back(matter);
        }
        Write::Create(json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": event, "namespace": namespace},
            "eventTime": micros(at),
            "reportingController": self.controller, "reportingInstance": self.instance,
            "action": note.action, "reason": note.reason, "note": note.note,
            "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid,
                "resourceVersion": note.version},
            "type": if note.warning { "Warning" } else { "Normal" },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_again_is_a_series() {
        let (controller, instance) = ("default-scheduler".into(), "x".into());
        let mut memory = Memory { controller, instance, series: HashMap::new(), order: VecDeque::new() };
        let pod = ("a".to_owned(), "p".to_owned(), "u".to_owned());
        let version = "7".to_owned();
        let note =
            Note { pod, version, warning: true, reason: "FailedScheduling", action: "Scheduling", note: "no".into() };
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let Write::Create(event) = memory.decide(&note, at(100)) else { panic!("the first is new") };
        assert_eq!(event["eventTime"], "1970-01-01T00:01:40.000000Z");
        let Write::Patch(name, patch) = memory.decide(&note, at(101)) else { panic!("the second makes a series") };
        assert_eq!(
            (name.as_str(), &patch["series"]["count"]),
            (event["metadata"]["name"].as_str().unwrap(), &json!(2))
        );
        assert_eq!(memory.decide(&note, at(102)), Write::Nothing);
        assert!(matches!(memory.decide(&note, at(140)), Write::Patch(..)));
        assert!(matches!(memory.decide(&note, at(140 + 360)), Write::Create(_)));
    }

    #[test]
    fn long_notes_are_cut_between_characters() {
        let note = shortened("ä".repeat(1000));
        assert!(note.len() <= NOTE_BYTES_MAX && note.ends_with("ä ..."));
    }
}
