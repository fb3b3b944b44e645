//! What is said to a plugin and what it answers, as JSON of the types of `scheduler/wit/plugin.wit`. Pure; whatever a plugin
//! answers is read as a stranger's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Candidate, Failure, SCORE_MAX};

/// `open`.
pub const OPEN: &str = "coracle:scheduler/plugin/instance.open";
/// `set-nodes`.
pub const SET_NODES: &str = "coracle:scheduler/plugin/instance.set-nodes";
/// `remove-nodes`.
pub const REMOVE_NODES: &str = "coracle:scheduler/plugin/instance.remove-nodes";
/// `filter`.
pub const FILTER: &str = "coracle:scheduler/plugin/instance.filter";
/// `score`.
pub const SCORE: &str = "coracle:scheduler/plugin/instance.score";
/// The interface, without the last part of its version: later ones of the same first two parts have more and nothing else.
pub const INTERFACE: &str = "coracle:scheduler/plugin@0.1.";

/// Nodes of one call have about so many bytes.
const NODES_BYTES: usize = 512 << 10;
/// Characters of a reason: a condition's sentence has many.
const REASON_CHARS_MAX: usize = 256;
/// Different reasons of one answer: each is a part of one sentence.
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
struct Ask<'a> {
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
enum Answer<T> {
    Ok(T),
    Err(String),
}

/// A node that a plugin refuses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// Its place among those that were asked about.
    pub candidate: usize,
    /// In the plugin's words.
    pub reason: String,
    /// No other pod's going would help.
    pub unresolvable: bool,
}

fn text(value: &impl Serialize) -> Vec<u8> {
    // Nothing of these can't be written.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Opens an instance.
#[must_use]
pub fn open(config: &str) -> Vec<u8> {
    text(&Open { config })
}

/// The first of some nodes that are new or have changed, and how many those are: what one call says of them is bounded, and the next is
/// made when that is done.
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

/// Nodes that are asked about no more.
#[must_use]
pub fn remove_nodes(this: &str, names: &[String]) -> Vec<u8> {
    text(&RemoveNodes { this, names: names.iter().map(String::as_str).collect() })
}

/// Asks about a pod and nodes.
#[must_use]
pub fn question(this: &str, pod: &str, candidates: &[&Candidate]) -> Vec<u8> {
    let records = candidates.iter().map(|candidate| CandidateRecord {
        node: candidate.name(),
        pods: candidate.load.pods,
        cpu_millis: candidate.load.cpu_millis,
        memory_bytes: candidate.load.memory_bytes,
    });
    text(&Ask { this, pod, candidates: records.collect() })
}

fn read<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Failure> {
    let read = serde_json::from_slice::<Answer<T>>(answer);
    match read.map_err(|error| rubbish(format!("an answer that can't be understood: {error}")))? {
        Answer::Ok(value) => Ok(value),
        Answer::Err(why) => Err(Failure::new("error", shown(&why))),
    }
}

fn rubbish(why: String) -> Failure {
    Failure::new("answer", why)
}

/// A plugin's words in one line of ours.
#[must_use]
pub fn shown(words: &str) -> String {
    let line = words.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = line.take(REASON_CHARS_MAX + 1).collect();
    if let Some((at, _)) = short.char_indices().nth(REASON_CHARS_MAX) {
        short.truncate(at);
        short.push('…');
    }
    short
}

/// What stands for the instance in later calls.
///
/// # Errors
/// The plugin doesn't take what it is told.
pub fn opened(answer: &[u8]) -> Result<String, Failure> {
    read(answer)
}

/// Which of `asked` nodes won't do.
///
/// # Errors
/// The plugin says that it failed, or what is none of the answers that there are.
pub fn refusals(answer: &[u8], asked: usize) -> Result<Vec<Refusal>, Failure> {
    let mut refusals: Vec<Refusal> = read(answer)?;
    let (mut seen, mut reasons) = (BTreeSet::new(), BTreeSet::new());
    for refusal in &mut refusals {
        let at = refusal.candidate;
        if at >= asked {
            return Err(rubbish(format!("candidate {at} is refused, of {asked}")));
        }
        if !seen.insert(at) {
            return Err(rubbish(format!("candidate {at} is refused twice")));
        }
        if refusal.reason.trim().is_empty() {
            return Err(rubbish(format!("candidate {at} is refused for no reason")));
        }
        refusal.reason = shown(&refusal.reason);
        reasons.insert(refusal.reason.clone());
        if reasons.len() > REASONS_MAX {
            return Err(rubbish(format!("more than {REASONS_MAX} different reasons are given")));
        }
    }
    Ok(refusals)
}

/// The scores of `asked` nodes.
///
/// # Errors
/// The plugin says that it failed, or what is none of the answers that there are.
pub fn scores(answer: &[u8], asked: usize) -> Result<Vec<i64>, Failure> {
    let scores: Vec<i64> = read(answer)?;
    if scores.len() != asked {
        return Err(rubbish(format!("{} scores are given for {asked} candidates", scores.len())));
    }
    match scores.iter().find(|score| !(0..=SCORE_MAX).contains(*score)) {
        // In upstream's words.
        Some(score) => Err(rubbish(format!(
            "returns an invalid score {score}, it should in the range of [0, {SCORE_MAX}] after normalizing"
        ))),
        None => Ok(scores),
    }
}
