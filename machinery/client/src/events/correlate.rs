//! Maps a recorded event to a write, as client-go's `EventCorrelator`: equal events are counted on one object, similar
//! ones are aggregated, and floods from one object are dropped. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::queue::EventWrite;
use crate::object::value_of;
use crate::plan::EventRecord;
use machinery_api::ObjectKey;
use machinery_api::time::micros;

/// Entries of each LRU cache (client-go's `maxLruCacheEntries`).
const REMEMBERED_MAX: usize = 4096;
/// Burst and refill interval of the token bucket of one object (client-go: 25, one per 300 s).
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// This many different messages of one reason within this time are aggregated (client-go: 10 in 600 s).
const SIMILAR_MAX: usize = 10;
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
const COMBINED_PREFIX: &str = "(combined from similar events): ";
/// Maximum gap within one series (client-go's `finishTime`).
const SERIES_GAP: Duration = Duration::from_secs(6 * 60);
/// Interval of a series' writes.
const SERIES_WRITE_EVERY: Duration = Duration::from_secs(30);
/// Maximum bytes of a message (upstream's limit of `events.k8s.io/v1` notes).
const MESSAGE_BYTES_MAX: usize = 1024;

/// The API of an event, which determines how repetitions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventApi {
    /// `v1`: a count.
    Core,
    /// `events.k8s.io/v1`: a series.
    Series,
}

/// The reporting component.
#[derive(Debug, Clone)]
pub(super) struct EventReporter {
    pub(super) api: EventApi,
    pub(super) component: String,
    /// The host of a node's component, or the instance of a controller.
    pub(super) instance: String,
}

/// Identity of an event: recorded events of one key are one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EventKey {
    uid: String,
    name: String,
    /// The part of the object, such as a container; `None` for aggregated messages, of whatever part (as upstream).
    field_path: Option<String>,
    component: String,
    reason: &'static str,
    warning: bool,
    /// `None` for aggregated messages.
    message: Option<String>,
}

/// An event that was written before.
#[derive(Debug, Clone)]
struct WrittenEvent {
    name: String,
    first: Timestamp,
    count: u32,
    last: Timestamp,
    written: Timestamp,
}

/// Recent distinct messages of one reason.
#[derive(Debug)]
struct SimilarMessages {
    messages: BTreeSet<String>,
    last: Timestamp,
}

/// The token bucket of one object.
#[derive(Debug)]
struct TokenBucket {
    left: f64,
    at: Timestamp,
}

/// The correlator of one recorder.
#[derive(Debug)]
pub(super) struct Correlator {
    source: EventReporter,
    known: LruMap<EventKey, WrittenEvent>,
    similar: LruMap<EventKey, SimilarMessages>,
    budgets: LruMap<String, TokenBucket>,
    /// The last number used in a name. Names carry the time of the first event; two of one instant still differ.
    named: i128,
}

impl Correlator {
    pub(super) fn new(source: EventReporter) -> Self {
        let (known, similar, budgets) = (LruMap::default(), LruMap::default(), LruMap::default());
        Self { source, known, similar, budgets, named: 0 }
    }

    /// The write for an event recorded at `at`, if any.
    pub(super) fn correlate(&mut self, note: &EventRecord, action: &'static str, at: Timestamp) -> Option<EventWrite> {
        match self.source.api {
            EventApi::Core => self.counted(note, at),
            EventApi::Series => self.series(note, action, at),
        }
    }

    fn key(&self, note: &EventRecord) -> EventKey {
        EventKey {
            uid: note.about.uid.clone().unwrap_or_default(),
            name: note.about.name.clone().unwrap_or_default(),
            field_path: note.about.field_path.clone(),
            component: note.source.unwrap_or(&self.source.component).to_owned(),
            reason: note.reason,
            warning: note.warning,
            message: Some(match self.source.api {
                EventApi::Core => note.message.clone(),
                EventApi::Series => shortened(&note.message),
            }),
        }
    }

    fn counted(&mut self, note: &EventRecord, at: Timestamp) -> Option<EventWrite> {
        let (key, message) = self.aggregate(self.key(note), at);
        let known = self.upsert(&key, at, |known| known.count = known.count.saturating_add(1));
        // Counted first, as upstream: a dropped event is in the count of the next one written.
        if !self.take_token(&key, at) {
            return None;
        }
        let namespace = namespace_of(note);
        let (first, last) = (seconds(known.first), seconds(at));
        let patch = json!({"count": known.count, "lastTimestamp": last, "message": message});
        let (component, host) = (&key.component, &self.source.instance);
        let source = if host.is_empty() {
            json!({"component": component})
        } else {
            json!({"component": component, "host": host})
        };
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": known.name, "namespace": namespace},
            "involvedObject": value_of(&note.about),
            "reason": note.reason, "message": message,
            "source": source, "reportingComponent": component, "reportingInstance": host,
            "firstTimestamp": first, "lastTimestamp": last, "count": known.count,
            "type": if note.warning { "Warning" } else { "Normal" },
        });
        let patch = (known.count > 1).then_some(patch);
        Some(EventWrite { key: ObjectKey::new(namespace, known.name), event, patch, tries: 0 })
    }

    fn series(&mut self, note: &EventRecord, action: &'static str, at: Timestamp) -> Option<EventWrite> {
        let key = self.key(note);
        if self.known.get(&key).is_some_and(|known| at.duration_since(known.last).unsigned_abs() >= SERIES_GAP) {
            self.known.remove(&key);
        }
        let mut write = true;
        let known = self.upsert(&key, at, |known| {
            known.count = known.count.saturating_add(1);
            write = known.count <= 2 || at.duration_since(known.written).unsigned_abs() >= SERIES_WRITE_EVERY;
            if write {
                known.written = at;
            }
        });
        if !write {
            return None;
        }
        let namespace = namespace_of(note);
        let series = json!({"count": known.count, "lastObservedTime": micros(at)});
        let mut event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": known.name, "namespace": namespace},
            "eventTime": micros(known.first),
            "reportingController": key.component, "reportingInstance": self.source.instance,
            "action": action, "reason": note.reason, "note": key.message,
            "regarding": value_of(&note.about),
            "type": if note.warning { "Warning" } else { "Normal" },
        });
        let patch = (known.count > 1).then(|| json!({"series": series}));
        if patch.is_some() {
            event["series"] = series;
        }
        Some(EventWrite { key: ObjectKey::new(namespace, known.name), event, patch, tries: 0 })
    }

    /// The key and message of an event, or of its aggregate if there are many like it.
    fn aggregate(&mut self, key: EventKey, at: Timestamp) -> (EventKey, String) {
        let message = key.message.clone().unwrap_or_default();
        let group = EventKey { message: None, field_path: None, ..key.clone() };
        let similar =
            self.similar.get_or_insert_with(&group, || SimilarMessages { messages: BTreeSet::new(), last: at });
        if at.duration_since(similar.last).unsigned_abs() > SIMILAR_WITHIN {
            similar.messages.clear();
        }
        similar.last = at;
        similar.messages.insert(message.clone());
        if similar.messages.len() < SIMILAR_MAX {
            return (key, message);
        }
        similar.messages.pop_first();
        (group, format!("{COMBINED_PREFIX}{message}"))
    }

    /// The event of this key: changed if it is known, else a new one.
    fn upsert(&mut self, key: &EventKey, at: Timestamp, change: impl FnOnce(&mut WrittenEvent)) -> WrittenEvent {
        if let Some(known) = self.known.get(key) {
            change(known);
            known.last = at;
            return known.clone();
        }
        self.named = at.as_nanosecond().max(self.named + 1);
        let name = format!("{}.{:x}", key.name, self.named);
        let new = WrittenEvent { name, first: at, count: 1, last: at, written: at };
        self.known.get_or_insert_with(key, || new).clone()
    }

    fn take_token(&mut self, key: &EventKey, at: Timestamp) -> bool {
        let spender = format!("{} {}", key.component, key.uid);
        let budget = self.budgets.get_or_insert_with(&spender, || TokenBucket { left: BURST, at });
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

fn namespace_of(note: &EventRecord) -> String {
    note.about.namespace.clone().filter(|namespace| !namespace.is_empty()).unwrap_or_else(|| "default".into())
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn shortened(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let suffix = " ...";
    let end = (0..=MESSAGE_BYTES_MAX - suffix.len()).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{suffix}", &message[..end])
}

/// An LRU map.
#[derive(Debug)]
struct LruMap<K, V> {
    /// Keys are shared with the order of use.
    entries: HashMap<Arc<K>, (u64, V)>,
    order: BTreeMap<u64, Arc<K>>,
    clock: u64,
}

impl<K, V> Default for LruMap<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), clock: 0 }
    }
}

impl<K: Clone + Eq + Hash, V> LruMap<K, V> {
    fn get(&mut self, key: &K) -> Option<&mut V> {
        let (used, value) = self.entries.get_mut(key)?;
        self.clock += 1;
        if let Some(key) = self.order.remove(used) {
            self.order.insert(self.clock, key);
        }
        *used = self.clock;
        Some(value)
    }

    fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(key) {
            while self.entries.len() >= REMEMBERED_MAX {
                let Some((_, oldest)) = self.order.pop_first() else { break };
                self.entries.remove(&oldest);
            }
            self.clock += 1;
            let shared = Arc::new(key.clone());
            self.order.insert(self.clock, shared.clone());
            self.entries.insert(shared, (self.clock, make()));
        }
        self.get(key).expect("the entry was there or has just been made")
    }

    fn remove(&mut self, key: &K) {
        if let Some((used, _)) = self.entries.remove(key) {
            self.order.remove(&used);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;

    fn correlator(api: EventApi) -> Correlator {
        Correlator::new(EventReporter { api, component: "x".into(), instance: String::new() })
    }

    fn note(message: &str) -> EventRecord {
        let about = ObjectReference { uid: Some("u".into()), name: Some("n".into()), ..ObjectReference::default() };
        EventRecord { about, warning: false, reason: "R", message: message.into(), source: None }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn the_same_again_is_counted_and_a_flood_is_cut() {
        let mut correlator = correlator(EventApi::Core);
        let first = correlator.correlate(&note("m"), "", at(1000)).unwrap();
        assert_eq!((first.key.namespace.as_str(), first.patch), ("default", None));
        let second = correlator.correlate(&note("m"), "", at(1000)).unwrap();
        assert_eq!((&second.key, &second.patch.unwrap()["count"]), (&first.key, &json!(2)));
        for _ in 0..23 {
            assert!(correlator.correlate(&note("m"), "", at(1000)).is_some());
        }
        assert_eq!(correlator.correlate(&note("m"), "", at(1000)), None);
        let later = correlator.correlate(&note("m"), "", at(1301)).unwrap();
        assert_eq!(later.event["count"], 27, "what was cut is counted");
        assert_eq!(later.event["firstTimestamp"], "1970-01-01T00:16:40Z");
    }

    #[test]
    fn each_part_of_an_object_has_its_own() {
        let mut correlator = correlator(EventApi::Core);
        let mut of = |part: &str| {
            let mut note = note("m");
            note.about.field_path = Some(part.into());
            correlator.correlate(&note, "", at(1000)).unwrap()
        };
        let (first, other, again) = (of("spec.containers{a}"), of("spec.containers{b}"), of("spec.containers{a}"));
        assert!(first.key != other.key && first.key == again.key);
        assert_eq!((other.patch, again.patch.unwrap()["count"].as_i64()), (None, Some(2)));
    }

    #[test]
    fn the_tenth_message_of_one_reason_is_combined_with_later_ones() {
        let mut correlator = correlator(EventApi::Core);
        let mut written: Vec<EventWrite> = (0..12)
            .map(|nth| correlator.correlate(&note(&format!("failed {nth}")), "", at(1000 + nth)).unwrap())
            .collect();
        let names: BTreeSet<&str> = written.iter().map(|write| write.key.name.as_str()).collect();
        assert_eq!(names.len(), 10);
        let last = written.pop().unwrap();
        assert_eq!(last.patch.unwrap()["message"], "(combined from similar events): failed 11");
        let later = correlator.correlate(&note("failed 12"), "", at(9000)).unwrap();
        assert_eq!(later.event["message"], "failed 12", "after ten quiet minutes");
    }

    #[test]
    fn the_same_again_is_a_series() {
        let mut correlator = correlator(EventApi::Series);
        let warning = EventRecord { warning: true, ..note("no") };
        let mut record = |seconds| correlator.correlate(&warning, "Scheduling", at(seconds));
        let first = record(100).unwrap();
        assert_eq!((&first.event["eventTime"], &first.patch), (&json!("1970-01-01T00:01:40.000000Z"), &None));
        assert_eq!((&first.event["action"], &first.event["note"]), (&json!("Scheduling"), &json!("no")));
        let second = record(101).unwrap();
        assert_eq!((&second.key, &second.patch.unwrap()["series"]["count"]), (&first.key, &json!(2)));
        assert_eq!(record(102), None);
        assert_eq!(record(140).unwrap().patch.unwrap()["series"]["count"], 4);
        assert_ne!(record(140 + 360).unwrap().key, first.key);
    }

    #[test]
    fn remembered_events_are_bounded() {
        let mut correlator = correlator(EventApi::Core);
        for nth in 0..REMEMBERED_MAX + 10 {
            let mut note = note("m");
            note.about.uid = Some(format!("u{nth}"));
            correlator.correlate(&note, "", at(1000)).unwrap();
        }
        assert_eq!(correlator.known.entries.len(), REMEMBERED_MAX);
        assert_eq!(correlator.known.order.len(), REMEMBERED_MAX);
        assert_eq!(correlator.budgets.entries.len(), REMEMBERED_MAX);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let message = shortened(&"ä".repeat(1000));
        assert!(message.len() <= MESSAGE_BYTES_MAX && message.ends_with("ä ..."));
    }
}
