//! WebAssembly plugins: components that filter and score nodes, with the world in `scheduler/wit/plugin.wit`.
//! Configuration and answers are data here; the caller provides a [`PluginHost`], which runs components.

mod calls;
mod guest;
pub mod wire;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};

pub use self::calls::{PluginRequest, call_plugins, filter_candidates};
pub use self::guest::Guest;
use crate::extender::{Verdict, Verdicts};
use crate::refusal::{Reasons, Refusal};

/// The maximum score.
pub const SCORE_MAX: i64 = 100;

/// The configuration of a plugin in one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WasmPlugin {
    /// The name in the profile, messages and metrics.
    pub name: &'static str,
    /// The path of the component.
    pub module: PathBuf,
    /// The plugin's own configuration.
    pub config: String,
    /// What happens to a pod when the plugin fails.
    pub failure_policy: FailurePolicy,
    /// The timeout of a call.
    pub timeout: Duration,
    /// The memory limit in bytes.
    pub memory_bytes: u64,
    /// The fuel of a call; none: limited by the timeout alone.
    pub fuel: Option<u64>,
    /// Whether it filters.
    pub filters: bool,
    /// The weight of its scores; none: it doesn't score.
    pub weight: Option<i64>,
}

/// What happens to a pod when a plugin fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// The pod is retried.
    #[default]
    Fail,
    /// The decision ignores the plugin.
    Ignore,
}

/// The extension point of a call, with upstream's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallPoint {
    Filter,
    Score,
}

impl CallPoint {
    /// The label value of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "Filter",
            Self::Score => "Score",
        }
    }
}

/// Runs plugins: each call with limits of time, memory and fuel, on threads that are used for nothing else.
pub trait PluginHost: Send + Sync + std::fmt::Debug {
    /// Compiles and loads a plugin's component, or returns why it is invalid.
    fn load<'a>(&'a self, plugin: &'a WasmPlugin) -> BoxFuture<'a, Result<Arc<dyn PluginModule>, String>>;
}

/// A loaded component.
pub trait PluginModule: Send + Sync {
    /// Calls a function of the instance `session`, which is created if it doesn't exist. Arguments and results are JSON
    /// of the component's types. A failed call ends the instance.
    fn call<'a>(
        &'a self,
        session: &'a str,
        function: &'static str,
        arguments: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, CallError>>;
}

/// Metrics of plugin calls.
pub trait PluginMetrics: Send + Sync {
    /// A call ended, with upstream's status.
    fn observe_call(&self, plugin: &'static str, at: CallPoint, status: &'static str, took: Duration);

    /// A plugin failed, with the reason as a label value.
    fn observe_failure(&self, plugin: &'static str, reason: &'static str);
}

/// The error of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// The arguments don't match the function's types, for instance a handle of an instance that is gone.
    Arguments(String),
    /// The guest failed.
    Failed(Failure),
}

/// A failure of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The label value of metrics: `trap`, `memory`, `fuel`, `timeout`, `answer`, `load` and the like.
    pub kind: &'static str,
    /// The message.
    pub why: String,
}

impl Failure {
    #[must_use]
    pub fn new(kind: &'static str, why: impl Into<String>) -> Self {
        Self { kind, why: why.into() }
    }
}

/// A node in a question.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The Node object.
    pub node: Arc<Node>,
    pub load: Load,
}

/// The load of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// The number of pods.
    pub pods: u32,
    /// The requests of the pods, in thousandths of a core.
    pub cpu_millis: i64,
    /// The requests of the pods, in bytes.
    pub memory_bytes: i64,
}

impl Candidate {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }
}

/// The answers of a profile's plugins for a pod. Recordings store them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Answers {
    /// The nodes that the plugins were called for.
    #[serde(rename = "asked")]
    pub candidates: BTreeSet<String>,
    /// The rejected ones.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, NodeRejection>,
    /// The scores of the others, by plugin.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<Scored>,
    /// The plugins that failed and were ignored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<Failed>,
}

/// The rejection of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeRejection {
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's reason.
    pub reason: String,
    /// Preemption can't help.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unresolvable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Scored {
    /// The plugin's name.
    pub plugin: String,
    /// By node.
    pub nodes: BTreeMap<String, i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Failed {
    /// The plugin's name.
    pub plugin: String,
    pub extension_point: String,
    pub why: String,
    /// Whether the plugin was called, and not skipped because of its back-off.
    #[serde(skip)]
    pub was_called: bool,
}

impl Answers {
    /// The verdicts of the answers. A recording may name plugins that the profile lacks, or scores out of range: those
    /// are ignored.
    #[must_use]
    pub fn verdicts(&self, plugins: &[Arc<WasmPlugin>]) -> Verdicts {
        let mut verdicts = Verdicts::new(self.candidates.iter().cloned());
        for (node, refused) in &self.refused {
            let Some(by) = filter_of(plugins, refused) else { continue };
            let NodeRejection { reason, unresolvable, .. } = refused.clone();
            verdicts.refuse(node, Verdict::Refused { by, why: Some(reason), unresolvable });
        }
        for (_, weight, scores) in self.counting(plugins) {
            scores.into_iter().for_each(|(node, score)| verdicts.add(node, weight.saturating_mul(score)));
        }
        verdicts
    }

    /// The rejection of a node.
    #[must_use]
    pub fn refusal(&self, plugins: &[Arc<WasmPlugin>], node: &str) -> Option<(&'static str, Refusal)> {
        let refused = self.refused.get(node)?;
        let reasons = Reasons::Many(vec![refused.reason.clone().into()]);
        Some((filter_of(plugins, refused)?, Refusal { reasons, unresolvable: refused.unresolvable }))
    }

    /// The plugins whose scores count, with weight and scores.
    pub(crate) fn counting<'a>(
        &'a self,
        plugins: &'a [Arc<WasmPlugin>],
    ) -> impl Iterator<Item = (&'static str, i64, BTreeMap<&'a str, i64>)> {
        self.scores.iter().filter_map(|scored| {
            let plugin = plugins.iter().find(|plugin| plugin.name == scored.plugin)?;
            let scores = scored.nodes.iter().map(|(node, score)| (node.as_str(), (*score).clamp(0, SCORE_MAX)));
            Some((plugin.name, plugin.weight?, scores.collect()))
        })
    }
}

fn filter_of(plugins: &[Arc<WasmPlugin>], refused: &NodeRejection) -> Option<&'static str> {
    plugins.iter().find(|plugin| plugin.name == refused.plugin && plugin.filters).map(|plugin| plugin.name)
}
