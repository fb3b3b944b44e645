//! A decision as a file: the pod, what of the cluster it was decided by, and the scheduler's configuration. Read again it gives the
//! same answer without a cluster. A file may come from anybody.

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
use crate::wasm::{Answers, Candidate, Question, WasmPlugin};

/// The form of the file. One that is of another form is refused.
const KIND: &str = "SchedulingRecord";
const FORM: u32 = 1;

/// See the module. Pods have what scheduling reads of them, and no environment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Recording {
    kind: String,
    form: u32,
    /// A KubeSchedulerConfiguration; none: upstream's default profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Value>,
    /// The pod that was decided about.
    pub pod: Pod,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All pods.
    pub pods: Vec<Pod>,
    /// All namespaces.
    pub namespaces: Vec<Namespace>,
    /// All Services.
    pub services: Vec<Service>,
    /// All PodDisruptionBudgets.
    pub pod_disruption_budgets: Vec<PodDisruptionBudget>,
    /// All claims.
    pub persistent_volume_claims: Vec<PersistentVolumeClaim>,
    /// All volumes.
    pub persistent_volumes: Vec<PersistentVolume>,
    /// All classes of volumes.
    pub storage_classes: Vec<StorageClass>,
    /// What drivers of volumes say of nodes.
    #[serde(rename = "csiNodes")]
    pub csi_nodes: Vec<CSINode>,
    /// What plugins that are WebAssembly components said; none: they weren't asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_answers: Option<Answers>,
}

/// Why a recording explains nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// It is no recording.
    #[error("this is no recording of a decision: {0}")]
    Unread(String),
    /// It is one of another program.
    #[error("this recording has the form {0}, and this program reads form {FORM}")]
    Form(u32),
    /// An object has no name.
    #[error("{0}: Required value")]
    Unnamed(String),
    /// Its configuration is refused.
    #[error("configuration: {0}")]
    Configuration(String),
    /// Another scheduler decides for the pod.
    #[error("no profile decides for the schedulerName {name:?} of the pod; there are: {known}")]
    OtherScheduler {
        /// The pod's.
        name: String,
        /// Those that there are.
        known: String,
    },
}

/// A decision's parts.
struct Subject {
    snapshot: Snapshot,
    pod: PodInfo,
    profile: Profile,
    extenders: Vec<ExtenderConfig>,
}

impl Recording {
    /// Of a pod, with nothing of the cluster yet.
    #[must_use]
    pub fn new(pod: Pod, configuration: Option<Value>) -> Self {
        Self { kind: KIND.into(), form: FORM, configuration, pod, ..Self::default() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is no recording, or of a form that isn't known.
    pub fn parse(text: &str) -> Result<Self, RecordingError> {
        // The form first: of a newer one there may be fields that aren't known.
        let header: Header = parsed(text)?;
        if header.kind != KIND {
            return Err(RecordingError::Unread(format!("its kind is {:?}, not {KIND:?}", header.kind)));
        }
        if header.form != FORM {
            return Err(RecordingError::Form(header.form));
        }
        parsed(text)
    }

    /// What the plugins say.
    ///
    /// # Errors
    /// Objects have no names, or no profile decides for the pod.
    pub fn explained(&self) -> Result<Explanation, RecordingError> {
        let Subject { snapshot, pod, profile, extenders } = self.read()?;
        let mut explained = explain_with(&snapshot, &pod, &profile, self.plugin_answers.as_ref());
        let asked = extenders.into_iter().filter(|extender| extender.is_asked(&pod));
        explained.not_asked = asked.map(|extender| extender.url_prefix).collect();
        if self.plugin_answers.is_none() {
            explained.not_asked.extend(profile.wasm.iter().map(|plugin| plugin.name.to_owned()));
        }
        Ok(explained)
    }

    /// The plugins that are WebAssembly components, and what they are to be asked: all but the pod as JSON, as the server has it.
    ///
    /// # Errors
    /// As [`explained`](Self::explained).
    pub fn question(&self) -> Result<(Vec<Arc<WasmPlugin>>, Question), RecordingError> {
        let Subject { snapshot, pod, profile, .. } = self.read()?;
        let objects = self.nodes.iter().map(|node| (key_of(&node.metadata).name, node));
        let objects: BTreeMap<String, &Node> = objects.collect();
        let names = if profile.wasm.is_empty() { Vec::new() } else { feasible(&snapshot, &pod, &profile, 0) };
        let candidates = names.iter().filter_map(|name| {
            let load = snapshot.node(name)?.told();
            Some(Candidate { node: Arc::new((*objects.get(name)?).clone()), load })
        });
        let (candidates, nodes) = (candidates.collect(), snapshot.node_count());
        Ok((profile.wasm, Question { pod: String::new(), candidates, wanted: usize::MAX, nodes }))
    }

    /// What the recording says, as a decision takes it.
    fn read(&self) -> Result<Subject, RecordingError> {
        let (profiles, extenders) = match &self.configuration {
            None => (vec![Profile::default()], Vec::new()),
            Some(file) => {
                let read = Configuration::of(file).map_err(RecordingError::Configuration)?;
                (read.profiles, read.extenders)
            }
        };
        // As if it had no node.
        let pod = PodInfo { node: None, ..read_pod(&self.pod, || "pod".into())? };
        let of_pod = profiles.iter().find(|profile| profile.scheduler_name == pod.wants.scheduler);
        let profile = of_pod.ok_or_else(|| RecordingError::OtherScheduler {
            name: pod.wants.scheduler.clone(),
            known: profiles.iter().map(|profile| profile.scheduler_name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let mut snapshot = self.snapshot(&profiles)?;
        snapshot.take_pod(&pod.key);
        Ok(Subject { profile: profile.clone(), snapshot, pod, extenders })
    }

    /// The cluster as the scheduler sees it.
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
            let ours = |pod: &PodInfo| profiles.iter().any(|profile| profile.scheduler_name == pod.wants.scheduler);
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
    /// In the order in which they refer to each other.
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

/// What tells one form from another.
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
