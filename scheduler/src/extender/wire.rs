//! What is said to extenders and what they answer: the types of upstream's `extender/v1`, whose names are Go's. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use k8s_openapi::api::core::v1::Node;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a reason may have that an extender gives for one node: it goes into the pod's condition.
const REASON_BYTES_MAX: usize = 256;

/// `ExtenderArgs`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Arguments<'a> {
    /// The pod, whole.
    pub pod: &'a Value,
    /// The nodes, for one that doesn't know them.
    pub nodes: Option<NodeList<'a>>,
    /// Their names, for one that does.
    pub node_names: Option<Vec<&'a str>>,
}

/// A list of nodes.
#[derive(Debug, Serialize)]
pub struct NodeList<'a> {
    metadata: BTreeMap<(), ()>,
    items: Vec<&'a Node>,
}

impl<'a> NodeList<'a> {
    /// Of these.
    #[must_use]
    pub fn new(items: Vec<&'a Node>) -> Self {
        Self { metadata: BTreeMap::new(), items }
    }
}

/// `ExtenderBindingArgs`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Binding<'a> {
    /// The pod's name.
    pub pod_name: &'a str,
    /// Its namespace.
    pub pod_namespace: &'a str,
    /// Its uid.
    #[serde(rename = "PodUID")]
    pub pod_uid: &'a str,
    /// The node.
    pub node: &'a str,
}

/// `ExtenderPreemptionArgs`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptionArguments<'a> {
    /// The pod, whole.
    pub pod: &'a Value,
    /// Who would go by node, for one that doesn't know the pods.
    pub node_name_to_victims: Option<BTreeMap<&'a str, VictimsSaid<Value>>>,
    /// Their uids, for one that does.
    pub node_name_to_meta_victims: Option<BTreeMap<&'a str, VictimsSaid<MetaPod<'a>>>>,
}

/// `Victims` and `MetaVictims`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VictimsSaid<T> {
    /// The pods.
    pub pods: Vec<T>,
    /// How many of them would go against a disruption budget.
    #[serde(rename = "NumPDBViolations")]
    pub violations: i64,
}

/// `MetaPod`.
#[derive(Debug, Serialize)]
pub struct MetaPod<'a> {
    /// Its uid.
    #[serde(rename = "UID")]
    pub uid: &'a str,
}

/// Who would go from a node, by uid, and how many of them against a disruption budget.
pub type MetaVictims = (Vec<String>, i64);

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct PreemptionResult {
    #[serde(alias = "nodeNameToMetaVictims", alias = "nodenametometavictims")]
    node_name_to_meta_victims: Option<BTreeMap<String, Option<MetaVictimsRead>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct MetaVictimsRead {
    #[serde(alias = "pods")]
    pods: Option<Vec<Option<MetaPodRead>>>,
    #[serde(rename = "NumPDBViolations", alias = "numPDBViolations", alias = "numpdbviolations")]
    violations: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MetaPodRead {
    #[serde(rename = "UID", alias = "uid")]
    uid: String,
}

// Go reads names in any case: extenders write them as they like.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct FilterResult {
    #[serde(alias = "nodes")]
    nodes: Option<NodesRead>,
    #[serde(alias = "nodeNames", alias = "nodenames")]
    node_names: Option<Vec<String>>,
    #[serde(alias = "failedNodes", alias = "failednodes")]
    failed_nodes: Option<BTreeMap<String, String>>,
    #[serde(alias = "failedAndUnresolvableNodes", alias = "failedandunresolvablenodes")]
    failed_and_unresolvable_nodes: Option<BTreeMap<String, String>>,
    #[serde(alias = "error")]
    error: Option<String>,
}

// Of the nodes themselves only the names say which.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodesRead {
    items: Option<Vec<Named>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
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

/// Which nodes an extender leaves, and what it says of others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filtered {
    /// Those that will do.
    pub left: HashSet<String>,
    /// Those that won't, and why.
    pub failed: BTreeMap<String, String>,
    /// Those that won't whoever goes.
    pub unresolvable: BTreeMap<String, String>,
}

/// Reads `ExtenderFilterResult`.
///
/// # Errors
/// The extender says that it failed, names nodes that it wasn't asked about, or can't be understood.
pub fn filtered(answer: &[u8], url: &str, by_name: bool, asked: &BTreeSet<String>) -> Result<Filtered, String> {
    let read: FilterResult = first(answer, url)?.unwrap_or_default();
    if let Some(error) = read.error.filter(|error| !error.is_empty()) {
        return Err(error);
    }
    let items = || read.nodes.and_then(|nodes| nodes.items).unwrap_or_default();
    let left = match read.node_names.filter(|_| by_name) {
        Some(names) => names,
        None => items().into_iter().map(|node| node.metadata.name).collect(),
    };
    if let Some(other) = left.iter().find(|name| !asked.contains(*name)) {
        return Err(format!(
            "extender {url:?} claims a filtered node {other:?} which is not found in the input node list"
        ));
    }
    let bounded = |said: Option<BTreeMap<String, String>>| {
        let of = |(node, mut why): (String, String)| {
            why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
            (node, why)
        };
        said.unwrap_or_default().into_iter().filter(|(node, _)| asked.contains(node)).map(of).collect()
    };
    Ok(Filtered {
        left: left.into_iter().collect(),
        failed: bounded(read.failed_nodes),
        unresolvable: bounded(read.failed_and_unresolvable_nodes),
    })
}

/// The first value of an answer: Go's decoder, which upstream reads with, looks at nothing behind it.
fn first<T: DeserializeOwned>(answer: &[u8], url: &str) -> Result<Option<T>, String> {
    let mut values = serde_json::Deserializer::from_slice(answer).into_iter::<Option<T>>();
    let value = values.next().unwrap_or_else(|| Err(serde_json::Error::custom("it is empty")));
    value.map_err(|error| format!("the answer of extender {url:?} can't be read: {error}"))
}

/// Reads `HostPriorityList`.
///
/// # Errors
/// It can't be understood.
pub fn priorities(answer: &[u8], url: &str) -> Result<Vec<(String, i64)>, String> {
    let read: Option<Vec<Priority>> = first(answer, url)?;
    Ok(read.unwrap_or_default().into_iter().map(|Priority { host, score }| (host, score)).collect())
}

/// Reads `ExtenderPreemptionResult`: who would go, by node.
///
/// # Errors
/// It can't be understood.
pub fn meta_victims(answer: &[u8], url: &str) -> Result<BTreeMap<String, MetaVictims>, String> {
    let read: Option<PreemptionResult> = first(answer, url)?;
    let nodes = read.and_then(|read| read.node_name_to_meta_victims).unwrap_or_default();
    let victims = |read: Option<MetaVictimsRead>| {
        let MetaVictimsRead { pods, violations } = read.unwrap_or_default();
        (pods.unwrap_or_default().into_iter().flatten().map(|pod| pod.uid).collect(), violations)
    };
    Ok(nodes.into_iter().map(|(node, read)| (node, victims(read))).collect())
}

/// Reads `ExtenderBindingResult`.
///
/// # Errors
/// The extender says that it failed, or can't be understood.
pub fn bound(answer: &[u8], url: &str) -> Result<(), String> {
    let read: Option<BindingResult> = first(answer, url)?;
    read.and_then(|result| result.error).filter(|error| !error.is_empty()).map_or(Ok(()), Err)
}
