//! Arguments and results of plugin calls, as JSON of the types of `scheduler/wit/plugin.wit`. Pure. Results are
//! untrusted.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Candidate, Failure, SCORE_MAX};

pub const OPEN: &str = "coracle:scheduler/plugin/instance.open";
pub const SET_NODES: &str = "coracle:scheduler/plugin/instance.set-nodes";
pub const REMOVE_NODES: &str = "coracle:scheduler/plugin/instance.remove-nodes";
pub const FILTER: &str = "coracle:scheduler/plugin/instance.filter";
pub const SCORE: &str = "coracle:scheduler/plugin/instance.score";
/// The interface, without the last part of its version: later patch versions only add functions.
pub const INTERFACE: &str = "coracle:scheduler/plugin@0.1.";

/// The approximate size of a call's nodes in bytes.
const NODES_BYTES: usize = 512 << 10;
/// The maximum length of a reason in characters: a condition's message contains many.
const REASON_CHARS_MAX: usize = 256;
/// The maximum number of different reasons in one answer: each is part of one message.
const REASONS_MAX: usize = 64;

#[derive(Serialize)]
struct Open<'a> {
    config: &'a str,
}

#[derive(Serialize)]
struct SetNodes<'a> {
    #[serde(rename = "self")]
    this: &'a str,
    nodes: &'a [NodeRecord],
}

#[derive(Serialize)]
struct NodeRecord {
    name: String,
    object: String,
}

#[derive(Serialize)]
struct RemoveNodes<'a> {
    #[serde(rename = "self")]
    this: &'a str,
    names: Vec<&'a str>,
}

#[derive(Serialize)]
struct RequestRecord<'a> {
    #[serde(rename = "self")]
    this: &'a str,
    pod: &'a str,
    candidates: Vec<CandidateRecord<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct CandidateRecord<'a> {
    node: &'a str,
    pods: u32,
    cpu_millis: i64,
    memory_bytes: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum GuestResult<T> {
    Ok(T),
    Err(String),
}

/// A node that a plugin rejects.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// The index of the candidate.
    pub candidate: usize,
    /// The plugin's reason.
    pub reason: String,
    /// Preemption can't help.
    pub unresolvable: bool,
}

fn text(value: &impl Serialize) -> Vec<u8> {
    // Serialization of these types can't fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// The arguments that open an instance.
#[must_use]
pub fn open(config: &str) -> Vec<u8> {
    text(&Open { config })
}

/// The arguments for the first of the new or changed nodes, and their number. Size is limited per call; the caller
/// sends the rest in further calls.
#[must_use]
pub fn set_nodes(this: &str, nodes: &[&Candidate]) -> (Vec<u8>, usize) {
    let (mut records, mut bytes) = (Vec::new(), 0);
    for candidate in nodes {
        let node = &*candidate.node;
        let object = if node.metadata.managed_fields.is_none() {
            serde_json::to_string(node)
        } else {
            let mut bare = node.clone();
            bare.metadata.managed_fields = None;
            serde_json::to_string(&bare)
        };
        let record = NodeRecord { name: candidate.name().to_owned(), object: object.unwrap_or_default() };
        bytes += record.object.len();
        records.push(record);
        if bytes > NODES_BYTES {
            break;
        }
    }
    (text(&SetNodes { this, nodes: &records }), records.len())
}

/// The arguments that drop nodes.
#[must_use]
pub fn remove_nodes(this: &str, names: &[String]) -> Vec<u8> {
    text(&RemoveNodes { this, names: names.iter().map(String::as_str).collect() })
}

/// The arguments for a pod and its candidates.
#[must_use]
pub fn request(this: &str, pod: &str, candidates: &[&Candidate]) -> Vec<u8> {
    let records = candidates.iter().map(|candidate| CandidateRecord {
        node: candidate.name(),
        pods: candidate.load.pods,
        cpu_millis: candidate.load.cpu_millis,
        memory_bytes: candidate.load.memory_bytes,
    });
    text(&RequestRecord { this, pod, candidates: records.collect() })
}

fn read<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Failure> {
    let read = serde_json::from_slice::<GuestResult<T>>(answer);
    match read.map_err(|error| malformed(format!("an answer that can't be understood: {error}")))? {
        GuestResult::Ok(value) => Ok(value),
        GuestResult::Err(why) => Err(Failure::new("error", single_line(&why))),
    }
}

fn malformed(why: String) -> Failure {
    Failure::new("answer", why)
}

/// A plugin's text on a single line.
#[must_use]
pub fn single_line(words: &str) -> String {
    let line = words.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = line.take(REASON_CHARS_MAX + 1).collect();
    if let Some((at, _)) = short.char_indices().nth(REASON_CHARS_MAX) {
        short.truncate(at);
        short.push('…');
    }
    short
}

/// Parses the handle of an instance.
///
/// # Errors
/// The plugin rejects its configuration.
pub fn opened(answer: &[u8]) -> Result<String, Failure> {
    read(answer)
}

/// Parses the rejections of `count` candidates.
///
/// # Errors
/// The plugin reports an error, or the answer is malformed.
pub fn refusals(answer: &[u8], count: usize) -> Result<Vec<Refusal>, Failure> {
    let mut refusals: Vec<Refusal> = read(answer)?;
    let (mut seen, mut reasons) = (BTreeSet::new(), BTreeSet::new());
    for refusal in &mut refusals {
        let at = refusal.candidate;
        if at >= count {
            return Err(malformed(format!("candidate {at} is refused, of {count}")));
        }
        if !seen.insert(at) {
            return Err(malformed(format!("candidate {at} is refused twice")));
        }
        if refusal.reason.trim().is_empty() {
            return Err(malformed(format!("candidate {at} is refused for no reason")));
        }
        refusal.reason = single_line(&refusal.reason);
        reasons.insert(refusal.reason.clone());
        if reasons.len() > REASONS_MAX {
            return Err(malformed(format!("more than {REASONS_MAX} different reasons are given")));
        }
    }
    Ok(refusals)
}

/// Parses the scores of `count` candidates.
///
/// # Errors
/// The plugin reports an error, or the answer is malformed.
pub fn scores(answer: &[u8], count: usize) -> Result<Vec<i64>, Failure> {
    let scores: Vec<i64> = read(answer)?;
    if scores.len() != count {
        return Err(malformed(format!("{} scores are given for {count} candidates", scores.len())));
    }
    match scores.iter().find(|score| !(0..=SCORE_MAX).contains(*score)) {
        // With upstream's text.
        Some(score) => Err(malformed(format!(
            "returns an invalid score {score}, it should in the range of [0, {SCORE_MAX}] after normalizing"
        ))),
        None => Ok(scores),
    }
}
