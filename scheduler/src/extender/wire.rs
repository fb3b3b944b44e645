//! Wire types of extenders: upstream's `extender/v1`, with Go's field names. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use k8s_openapi::api::core::v1::Node;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The maximum length of an extender's reason for one node, in bytes: it becomes part of the pod's condition.
const REASON_BYTES_MAX: usize = 256;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Arguments<'a> {
    /// The whole pod.
    pub pod: &'a Value,
    /// The nodes, for an extender without a node cache.
    pub nodes: Option<NodeList<'a>>,
    /// The names of the nodes, for an extender with one.
    pub node_names: Option<Vec<&'a str>>,
}

#[derive(Debug, Serialize)]
pub struct NodeList<'a> {
    metadata: BTreeMap<(), ()>,
    items: Vec<&'a Node>,
}

impl<'a> NodeList<'a> {
    #[must_use]
    pub fn new(items: Vec<&'a Node>) -> Self {
        Self { metadata: BTreeMap::new(), items }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Binding<'a> {
    pub pod_name: &'a str,
    pub pod_namespace: &'a str,
    #[serde(rename = "PodUID")]
    pub pod_uid: &'a str,
    pub node: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptionArguments<'a> {
    /// The whole pod.
    pub pod: &'a Value,
    /// The victims by node, for an extender without a node cache.
    pub node_name_to_victims: Option<BTreeMap<&'a str, VictimsBody<Value>>>,
    /// The uids of the victims by node, for an extender with one.
    pub node_name_to_meta_victims: Option<BTreeMap<&'a str, VictimsBody<MetaPod<'a>>>>,
}

/// `Victims` and `MetaVictims`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VictimsBody<T> {
    pub pods: Vec<T>,
    /// The number of victims whose deletion violates a disruption budget.
    #[serde(rename = "NumPDBViolations")]
    pub violations: i64,
}

#[derive(Debug, Serialize)]
pub struct MetaPod<'a> {
    #[serde(rename = "UID")]
    pub uid: &'a str,
}

/// The uids of the victims on a node, and how many of them violate a disruption budget.
pub type MetaVictims = (Vec<String>, i64);

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct PreemptionResult {
    #[serde(alias = "nodeNameToMetaVictims", alias = "nodenametometavictims")]
    node_name_to_meta_victims: Option<BTreeMap<String, Option<MetaVictimsReply>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct MetaVictimsReply {
    #[serde(alias = "pods")]
    pods: Option<Vec<Option<MetaPodReply>>>,
    #[serde(rename = "NumPDBViolations", alias = "numPDBViolations", alias = "numpdbviolations")]
    violations: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MetaPodReply {
    #[serde(rename = "UID", alias = "uid")]
    uid: String,
}

// Go matches field names in any case, and extenders use any.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct FilterResult {
    #[serde(alias = "nodes")]
    nodes: Option<NodeListReply>,
    #[serde(alias = "nodeNames", alias = "nodenames")]
    node_names: Option<Vec<String>>,
    #[serde(alias = "failedNodes", alias = "failednodes")]
    failed_nodes: Option<BTreeMap<String, String>>,
    #[serde(alias = "failedAndUnresolvableNodes", alias = "failedandunresolvablenodes")]
    failed_and_unresolvable_nodes: Option<BTreeMap<String, String>>,
    #[serde(alias = "error")]
    error: Option<String>,
}

// Only the names of the nodes are read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeListReply {
    items: Option<Vec<NamedNode>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedNode {
    metadata: Name,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Name {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Priority {
    #[serde(alias = "host")]
    host: String,
    #[serde(alias = "score")]
    score: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct BindingResult {
    #[serde(alias = "error")]
    error: Option<String>,
}

/// The result of an extender's filter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filtered {
    /// The accepted nodes.
    pub left: HashSet<String>,
    /// The rejected nodes, with the reason.
    pub failed: BTreeMap<String, String>,
    /// The rejected nodes where preemption can't help.
    pub unresolvable: BTreeMap<String, String>,
}

/// Reads `ExtenderFilterResult`.
///
/// # Errors
/// The extender reports an error, returns a node that was not in the request, or the answer is malformed.
pub fn filtered(answer: &[u8], url: &str, by_name: bool, candidates: &BTreeSet<String>) -> Result<Filtered, String> {
    let read: FilterResult = first(answer, url)?.unwrap_or_default();
    if let Some(error) = read.error.filter(|error| !error.is_empty()) {
        return Err(error);
    }
    let items = || read.nodes.and_then(|nodes| nodes.items).unwrap_or_default();
    let left = match read.node_names.filter(|_| by_name) {
        Some(names) => names,
        None => items().into_iter().map(|node| node.metadata.name).collect(),
    };
    if let Some(other) = left.iter().find(|name| !candidates.contains(*name)) {
        return Err(format!(
            "extender {url:?} claims a filtered node {other:?} which is not found in the input node list"
        ));
    }
    let bounded = |reasons: Option<BTreeMap<String, String>>| {
        let of = |(node, mut why): (String, String)| {
            why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
            (node, why)
        };
        reasons.unwrap_or_default().into_iter().filter(|(node, _)| candidates.contains(node)).map(of).collect()
    };
    Ok(Filtered {
        left: left.into_iter().collect(),
        failed: bounded(read.failed_nodes),
        unresolvable: bounded(read.failed_and_unresolvable_nodes),
    })
}

/// The first JSON value of an answer: as Go's decoder, which upstream uses, ignores what follows it.
fn first<T: DeserializeOwned>(answer: &[u8], url: &str) -> Result<Option<T>, String> {
    let mut values = serde_json::Deserializer::from_slice(answer).into_iter::<Option<T>>();
    let value = values.next().unwrap_or_else(|| Err(serde_json::Error::custom("it is empty")));
    value.map_err(|error| format!("the answer of extender {url:?} can't be read: {error}"))
}

/// Reads `HostPriorityList`.
///
/// # Errors
/// The answer is malformed.
pub fn priorities(answer: &[u8], url: &str) -> Result<Vec<(String, i64)>, String> {
    let read: Option<Vec<Priority>> = first(answer, url)?;
    Ok(read.unwrap_or_default().into_iter().map(|Priority { host, score }| (host, score)).collect())
}

/// Reads `ExtenderPreemptionResult`: the victims by node.
///
/// # Errors
/// The answer is malformed.
pub fn meta_victims(answer: &[u8], url: &str) -> Result<BTreeMap<String, MetaVictims>, String> {
    let read: Option<PreemptionResult> = first(answer, url)?;
    let nodes = read.and_then(|read| read.node_name_to_meta_victims).unwrap_or_default();
    let victims = |read: Option<MetaVictimsReply>| {
        let MetaVictimsReply { pods, violations } = read.unwrap_or_default();
        (pods.unwrap_or_default().into_iter().flatten().map(|pod| pod.uid).collect(), violations)
    };
    Ok(nodes.into_iter().map(|(node, read)| (node, victims(read))).collect())
}

/// Reads `ExtenderBindingResult`.
///
/// # Errors
/// The extender reports an error, or the answer is malformed.
pub fn bound(answer: &[u8], url: &str) -> Result<(), String> {
    let read: Option<BindingResult> = first(answer, url)?;
    read.and_then(|result| result.error).filter(|error| !error.is_empty()).map_or(Ok(()), Err)
}
