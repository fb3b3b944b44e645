//! Recording of a decision as a file: the pod, the state of the cluster that the decision read, and the scheduler's
//! configuration. Replayed without a cluster, it gives the same decision. Files are untrusted input.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use machinery_client::{Pod, key_of};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Explanation, explain_with};
use crate::budget::Budget;
use crate::configuration::Configuration;
use crate::decide::feasible;
use crate::extender::ExtenderConfig;
use crate::node::NodeFacts;
use crate::plugins::Profile;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::volumes::Volumes;
use crate::wasm::{Answers, Candidate, PluginRequest, WasmPlugin};

/// The version of the file format. Other versions are rejected.
const KIND: &str = "SchedulingRecord";
const FORM: u32 = 1;

/// A recording. Pods contain the fields that scheduling reads, and no environment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Recording {
    kind: String,
    form: u32,
    /// A KubeSchedulerConfiguration; none means upstream's default profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Value>,
    /// The pod to schedule.
    pub pod: Pod,
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub namespaces: Vec<Namespace>,
    pub services: Vec<Service>,
    pub pod_disruption_budgets: Vec<PodDisruptionBudget>,
    pub persistent_volume_claims: Vec<PersistentVolumeClaim>,
    pub persistent_volumes: Vec<PersistentVolume>,
    pub storage_classes: Vec<StorageClass>,
    #[serde(rename = "csiNodes")]
    pub csi_nodes: Vec<CSINode>,
    /// The answers of WebAssembly plugins; none if they were not called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_answers: Option<Answers>,
}

/// An error in a recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// The file is not a recording.
    #[error("this is no recording of a decision: {0}")]
    Unread(String),
    /// The format version is of another program version.
    #[error("this recording has the form {0}, and this program reads form {FORM}")]
    Form(u32),
    /// An object has no name.
    #[error("{0}: Required value")]
    Unnamed(String),
    /// The configuration is invalid.
    #[error("configuration: {0}")]
    Configuration(String),
    /// No profile has the pod's scheduler name.
    #[error("no profile decides for the schedulerName {name:?} of the pod; there are: {known}")]
    OtherScheduler {
        /// The pod's scheduler name.
        name: String,
        /// The names of the profiles.
        known: String,
    },
}

/// The inputs of a decision.
struct DecisionInputs {
    snapshot: Snapshot,
    pod: PodInfo,
    profile: Profile,
    extenders: Vec<ExtenderConfig>,
}

impl Recording {
    /// A recording of a pod, without the state of the cluster.
    #[must_use]
    pub fn new(pod: Pod, configuration: Option<Value>) -> Self {
        Self { kind: KIND.into(), form: FORM, configuration, pod, ..Self::default() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file is not a recording, or its format version is unknown.
    pub fn parse(text: &str) -> Result<Self, RecordingError> {
        // The version first: a newer format may have unknown fields.
        let header: Header = parsed(text)?;
        if header.kind != KIND {
            return Err(RecordingError::Unread(format!("its kind is {:?}, not {KIND:?}", header.kind)));
        }
        if header.form != FORM {
            return Err(RecordingError::Form(header.form));
        }
        parsed(text)
    }

    /// Explains the recorded decision.
    ///
    /// # Errors
    /// An object has no name, or no profile decides for the pod.
    pub fn explain(&self) -> Result<Explanation, RecordingError> {
        let DecisionInputs { snapshot, pod, profile, extenders } = self.read()?;
        let mut explanation = explain_with(&snapshot, &pod, &profile, self.plugin_answers.as_ref());
        let called = extenders.into_iter().filter(|extender| extender.scores_or_filters(&pod));
        explanation.not_queried = called.map(|extender| extender.url_prefix).collect();
        if self.plugin_answers.is_none() {
            explanation.not_queried.extend(profile.wasm.iter().map(|plugin| plugin.name.to_owned()));
        }
        Ok(explanation)
    }

    /// The WebAssembly plugins of the profile and the request for them, without the JSON of the pod, which the server
    /// has.
    ///
    /// # Errors
    /// As [`explain`](Self::explain).
    pub fn build_plugin_request(&self) -> Result<(Vec<Arc<WasmPlugin>>, PluginRequest), RecordingError> {
        let DecisionInputs { snapshot, pod, profile, .. } = self.read()?;
        let objects = self.nodes.iter().map(|node| (key_of(&node.metadata).name, node));
        let objects: BTreeMap<String, &Node> = objects.collect();
        let names = if profile.wasm.is_empty() { Vec::new() } else { feasible(&snapshot, &pod, &profile, 0) };
        let candidates = names.iter().filter_map(|name| {
            let load = snapshot.node(name)?.plugin_load();
            Some(Candidate { node: Arc::new((*objects.get(name)?).clone()), load })
        });
        let (candidates, nodes) = (candidates.collect(), snapshot.node_count());
        Ok((profile.wasm, PluginRequest { pod: String::new(), candidates, wanted: usize::MAX, nodes }))
    }

    /// Converts the recording into the inputs of a decision.
    fn read(&self) -> Result<DecisionInputs, RecordingError> {
        let (profiles, extenders) = match &self.configuration {
            None => (vec![Profile::default()], Vec::new()),
            Some(file) => {
                let read = Configuration::of(file).map_err(RecordingError::Configuration)?;
                (read.profiles, read.extenders)
            }
        };
        // The explanation is for the pod without a node.
        let pod = PodInfo { node: None, ..read_pod(&self.pod, || "pod".into())? };
        let of_pod = profiles.iter().find(|profile| profile.scheduler_name == pod.requirements.scheduler);
        let profile = of_pod.ok_or_else(|| RecordingError::OtherScheduler {
            name: pod.requirements.scheduler.clone(),
            known: profiles.iter().map(|profile| profile.scheduler_name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let mut snapshot = self.snapshot(&profiles)?;
        snapshot.take_pod(&pod.key);
        Ok(DecisionInputs { profile: profile.clone(), snapshot, pod, extenders })
    }

    /// The snapshot of the recorded cluster.
    fn snapshot(&self, profiles: &[Profile]) -> Result<Snapshot, RecordingError> {
        let mut snapshot = Snapshot::default();
        for (at, namespace) in self.namespaces.iter().enumerate() {
            let name = &key_of(&namespace.metadata).name;
            named(name, || format!("namespaces[{at}]"))?;
            snapshot.set_namespace(name, Some(namespace.metadata.labels.clone().unwrap_or_default()));
        }
        for (at, node) in self.nodes.iter().enumerate() {
            let facts = NodeFacts::of(node);
            named(&facts.name, || format!("nodes[{at}]"))?;
            snapshot.set_node(facts);
        }
        for service in &self.services {
            if let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.clone()) {
                snapshot.services.insert(key_of(&service.metadata), selector);
            }
        }
        for budget in &self.pod_disruption_budgets {
            if let Some(read) = Budget::of(budget) {
                snapshot.budgets.insert(key_of(&budget.metadata), read);
            }
        }
        self.volumes(&mut snapshot.volumes);
        for (at, pod) in self.pods.iter().enumerate() {
            let pod = Arc::new(read_pod(pod, || format!("pods[{at}]"))?);
            let ours =
                |pod: &PodInfo| profiles.iter().any(|profile| profile.scheduler_name == pod.requirements.scheduler);
            match pod.node.clone() {
                _ if pod.ended => {}
                Some(node) => snapshot.put_pod(pod, &node, false),
                None if ours(&pod) && !pod.terminating => snapshot.nominated.update(&pod),
                None => {}
            }
        }
        Ok(snapshot)
    }
}

impl Recording {
    /// In the order of their references.
    fn volumes(&self, volumes: &mut Volumes) {
        for class in &self.storage_classes {
            volumes.set_class(&key_of(&class.metadata).name, Some(Arc::new(class.clone())));
        }
        for node in &self.csi_nodes {
            volumes.set_node(&key_of(&node.metadata).name, Some(Arc::new(node.clone())));
        }
        for volume in &self.persistent_volumes {
            volumes.set_volume(&key_of(&volume.metadata).name, Some(Arc::new(volume.clone())));
        }
        for claim in &self.persistent_volume_claims {
            volumes.set_claim(&key_of(&claim.metadata), Some(Arc::new(claim.clone())));
        }
    }
}

/// The fields that identify the format.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Header {
    kind: String,
    form: u32,
}

fn parsed<T: DeserializeOwned>(text: &str) -> Result<T, RecordingError> {
    serde_json::from_str(text).map_err(|error| RecordingError::Unread(error.to_string()))
}

fn named(name: &str, place: impl FnOnce() -> String) -> Result<(), RecordingError> {
    if name.is_empty() { Err(RecordingError::Unnamed(format!("{}.metadata.name", place()))) } else { Ok(()) }
}

fn read_pod(pod: &Pod, place: impl FnOnce() -> String) -> Result<PodInfo, RecordingError> {
    let pod = PodInfo::of(pod);
    named(&pod.key.name, place)?;
    Ok(pod)
}
