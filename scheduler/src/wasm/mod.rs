//! Plugins as WebAssembly components: which nodes won't do for a pod, and how good others are, by the world in
//! `scheduler/wit/plugin.wit`. What they are and what they have said is data; who runs them is handed in ([`PluginHost`]).

mod ask;
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

pub use self::ask::{Question, ask, refused_of};
pub use self::guest::Guest;
use crate::extender::{Verdict, Verdicts};
use crate::refusal::{Reasons, Refusal};

/// The best score.
pub const SCORE_MAX: i64 = 100;

/// One plugin of one profile, as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WasmPlugin {
    /// Its name in the profile, in messages and figures.
    pub name: &'static str,
    /// The component's file.
    pub module: PathBuf,
    /// What it is told, as it takes it.
    pub config: String,
    /// What becomes of a pod where it fails.
    pub failure_policy: FailurePolicy,
    /// For how long each call may take.
    pub timeout: Duration,
    /// What it may hold.
    pub memory_bytes: u64,
    /// What each call may use; none: as much as its time allows.
    pub fuel: Option<u64>,
    /// It is asked which nodes won't do.
    pub filters: bool,
    /// It is asked how good nodes are, and this is what its scores count for.
    pub weight: Option<i64>,
}

/// What becomes of a pod where a plugin fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// It is tried again later.
    #[default]
    Fail,
    /// It is decided without the plugin.
    Ignore,
}

/// Where a plugin is asked, in upstream's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    /// Which nodes won't do.
    Filter,
    /// How good they are.
    Score,
}

impl At {
    /// As figures have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "Filter",
            Self::Score => "Score",
        }
    }
}

/// Runs plugins: each call within its limits of time, memory and fuel, on threads that are nobody else's.
pub trait PluginHost: Send + Sync + std::fmt::Debug {
    /// Compiles and loads a plugin's component; or says why it can't be one.
    fn load<'a>(&'a self, plugin: &'a WasmPlugin) -> BoxFuture<'a, Result<Arc<dyn PluginModule>, String>>;
}

/// A component that was loaded.
pub trait PluginModule: Send + Sync {
    /// Calls a function of the instance that `session` names, which is made where there is none. Arguments and results are JSON
    /// by the component's own types. A call that fails ends the instance.
    fn call<'a>(
        &'a self,
        session: &'a str,
        function: &'static str,
        arguments: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, CallError>>;
}

/// Takes down how plugins do.
pub trait Figures: Send + Sync {
    /// A plugin was asked, and how that ended, in upstream's words.
    fn asked(&self, plugin: &'static str, at: At, status: &'static str, took: Duration);

    /// It failed, and why in a word.
    fn failed(&self, plugin: &'static str, reason: &'static str);
}

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// The arguments aren't what the function takes; such as a resource of an instance that is gone.
    Arguments(String),
    /// The guest failed.
    Failed(Failure),
}

/// Why a plugin said nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In a word, for figures: `trap`, `memory`, `fuel`, `timeout`, `answer`, `load` and the like.
    pub kind: &'static str,
    /// For people.
    pub why: String,
}

impl Failure {
    /// See its fields.
    #[must_use]
    pub fn new(kind: &'static str, why: impl Into<String>) -> Self {
        Self { kind, why: why.into() }
    }
}

/// A node that is asked about.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its object.
    pub node: Arc<Node>,
    /// What is on it.
    pub load: Load,
}

/// What is on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Pods.
    pub pods: u32,
    /// What they request.
    pub cpu_millis: i64,
    /// The same.
    pub memory_bytes: i64,
}

impl Candidate {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }
}

/// What a profile's plugins said about a pod. It can be kept, and says the same again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Answers {
    /// The nodes that were asked about.
    pub asked: BTreeSet<String>,
    /// Those that won't do.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, Refused>,
    /// Of the others, plugin by plugin.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<Scored>,
    /// Those that failed and are done without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<Failed>,
}

/// Why a node won't do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Refused {
    /// Who says so.
    pub plugin: String,
    /// In its words.
    pub reason: String,
    /// No other pod's going would help.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unresolvable: bool,
}

/// A plugin's scores.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Scored {
    /// Who says so.
    pub plugin: String,
    /// By node.
    pub nodes: BTreeMap<String, i64>,
}

/// A plugin that failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Failed {
    /// Which.
    pub plugin: String,
    /// Where.
    pub extension_point: String,
    /// Why.
    pub why: String,
    /// It was asked, and not only left alone for a while because it had failed before.
    #[serde(skip)]
    pub anew: bool,
}

impl Answers {
    /// As a decision takes them. What comes from elsewhere may name plugins that the profile hasn't, and scores that are none:
    /// those say nothing.
    #[must_use]
    pub fn verdicts(&self, plugins: &[Arc<WasmPlugin>]) -> Verdicts {
        let mut verdicts = Verdicts::new(self.asked.iter().cloned());
        for (node, refused) in &self.refused {
            let Some(by) = filter_of(plugins, refused) else { continue };
            let Refused { reason, unresolvable, .. } = refused.clone();
            verdicts.refuse(node, Verdict::Refused { by, why: Some(reason), unresolvable });
        }
        for (_, weight, scores) in self.counting(plugins) {
            scores.into_iter().for_each(|(node, score)| verdicts.add(node, weight.saturating_mul(score)));
        }
        verdicts
    }

    /// Why a node won't do.
    #[must_use]
    pub fn refusal(&self, plugins: &[Arc<WasmPlugin>], node: &str) -> Option<(&'static str, Refusal)> {
        let refused = self.refused.get(node)?;
        let reasons = Reasons::Many(vec![refused.reason.clone().into()]);
        Some((filter_of(plugins, refused)?, Refusal { reasons, unresolvable: refused.unresolvable }))
    }

    /// The plugins whose scores count, what for, and the scores.
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

fn filter_of(plugins: &[Arc<WasmPlugin>], refused: &Refused) -> Option<&'static str> {
    plugins.iter().find(|plugin| plugin.name == refused.plugin && plugin.filters).map(|plugin| plugin.name)
}
