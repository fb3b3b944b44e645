//! HTTP client of extenders: one client per extender, with a timeout and a maximum answer size. Redirects are not
//! followed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use machinery_client::causes::with_causes;
use machinery_env::Env;
use serde::Serialize;
use serde_json::{Value, json};

use super::wire::{self, Arguments, Binding, MetaPod, NodeList, PreemptionArguments, VictimsBody};
use super::{ExtenderConfig, Verdicts, Victims};
use crate::pod::PodInfo;

/// The maximum size of an answer in bytes: thousands of whole nodes.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// An extender with its client.
#[derive(Clone)]
pub struct Extender {
    pub config: ExtenderConfig,
    client: kube::Client,
    env: Env,
}

impl std::fmt::Debug for Extender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extender").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The nodes of a request, by name.
pub type Nodes = BTreeMap<String, Arc<Node>>;

/// The victims of a preemption, by node.
pub type ByNode = BTreeMap<String, Victims>;

impl Extender {
    /// Creates the client, and sends nothing.
    ///
    /// # Errors
    /// The URL or the TLS files are invalid.
    pub async fn new(config: ExtenderConfig, env: Env) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("extender {:?}: {error}", config.url_prefix);
        let tls = &config.tls;
        let mut cluster =
            json!({"server": config.url_prefix.trim_end_matches('/'), "insecure-skip-tls-verify": tls.insecure});
        let mut user = json!({});
        let of = |place: usize| {
            (Some(&tls.data[place]).filter(|d| !d.is_empty()), Some(&tls.files[place]).filter(|f| !f.is_empty()))
        };
        for (at, (object, name)) in
            [(0, (&mut user, "client-certificate")), (2, (&mut cluster, "certificate-authority"))]
        {
            set(object, name, of(at));
        }
        set(&mut user, "client-key", of(1));
        if !tls.server_name.is_empty() {
            cluster["tls-server-name"] = tls.server_name.clone().into();
        }
        let file = json!({"apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": cluster}], "users": [{"name": "x", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}]});
        let file: Kubeconfig = serde_json::from_value(file).map_err(|error| failed(&error))?;
        let made = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        let mut made = made.map_err(|error| failed(&error))?;
        made.default_retry = false;
        // Proxy settings of the environment are for registries.
        made.proxy_url = None;
        let client = kube::Client::try_from(made).map_err(|error| failed(&error))?;
        Ok(Self { config, client, env })
    }

    /// Calls the extender's bind verb.
    ///
    /// # Errors
    /// The extender failed or did not answer in time.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let (pod_name, pod_namespace) = (&*pod.key.name, &*pod.key.namespace);
        let binding = Binding { pod_name, pod_namespace, pod_uid: &pod.uid, node };
        wire::bound(&self.send(&self.config.bind_verb, &binding).await?, &self.config.url_prefix)
    }

    async fn filter(&self, pod: &Value, nodes: &Nodes, left: &BTreeSet<String>) -> Result<wire::Filtered, String> {
        let answer = self.send(&self.config.filter_verb, &self.arguments(pod, nodes, left)).await?;
        wire::filtered(&answer, &self.config.url_prefix, self.config.node_cache_capable, left)
    }

    async fn prioritize(
        &self,
        pod: &Value,
        nodes: &Nodes,
        left: &BTreeSet<String>,
    ) -> Result<Vec<(String, i64)>, String> {
        let answer = self.send(&self.config.prioritize_verb, &self.arguments(pod, nodes, left)).await?;
        wire::priorities(&answer, &self.config.url_prefix)
    }

    /// Calls the extender's preempt verb with the victims by node, and returns the victims by node that it accepts.
    async fn preempt(
        &self,
        pod: &Value,
        victims: &ByNode,
        pods: &BTreeMap<String, Vec<Arc<PodInfo>>>,
        read_pod: &(dyn Fn(&PodInfo) -> Value + Sync),
    ) -> Result<ByNode, String> {
        let by_name = self.config.node_cache_capable;
        let arguments = PreemptionArguments {
            pod,
            node_name_to_victims: (!by_name).then(|| victims_body(victims, read_pod)),
            node_name_to_meta_victims: by_name.then(|| victims_body(victims, |pod| MetaPod { uid: &pod.uid })),
        };
        let answer = self.send(&self.config.preempt_verb, &arguments).await?;
        let mut left = ByNode::new();
        for (node, (uids, violations)) in wire::meta_victims(&answer, &self.config.url_prefix)? {
            let there = pods.get(&node).ok_or_else(|| format!("nodeinfo not found for node name {node:?}"))?;
            let of = |uid: &String| {
                there.iter().find(|pod| *pod.uid == **uid).cloned().ok_or_else(|| {
                    let url = &self.config.url_prefix;
                    format!("extender: {url} claims to preempt pod (UID: &{{{uid}}}) on node: {node}, but the pod is not found on that node")
                })
            };
            let pods = uids.iter().map(of).collect::<Result<_, _>>()?;
            left.insert(node, Victims { pods, violations });
        }
        Ok(left)
    }

    fn arguments<'a>(&self, pod: &'a Value, nodes: &'a Nodes, left: &'a BTreeSet<String>) -> Arguments<'a> {
        if self.config.node_cache_capable {
            return Arguments { pod, nodes: None, node_names: Some(left.iter().map(String::as_str).collect()) };
        }
        let whole = left.iter().filter_map(|name| nodes.get(name)).map(Arc::as_ref).collect();
        Arguments { pod, nodes: Some(NodeList::new(whole)), node_names: None }
    }

    /// Sends a request, and reads the whole answer within the timeout.
    async fn send(&self, verb: &str, body: &impl Serialize) -> Result<Vec<u8>, String> {
        let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
        let request = Request::builder().method(Method::POST).uri(format!("/{verb}"));
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body.into());
        let request = request.map_err(|error| error.to_string())?;
        let url = format!("{}/{verb}", self.config.url_prefix.trim_end_matches('/'));
        let failed = |why: &str| format!("Post {url:?}: {why}");
        let exchange = async {
            let (head, body) =
                self.client.send(request).await.map_err(|error| failed(&with_causes(&error)))?.into_parts();
            if head.status != StatusCode::OK {
                return Err(format!("failed {verb} with extender at URL {url}, code {}", head.status.as_u16()));
            }
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            Ok(body.map_err(|error| failed(&with_causes(&*error)))?.to_bytes().to_vec())
        };
        let answered = self.env.timeout(self.config.timeout, exchange).await;
        answered.unwrap_or_else(|_| Err(failed(&format!("no answer within {:?}", self.config.timeout))))
    }
}

/// The victims in the form of the request.
fn victims_body<'a, T>(victims: &'a ByNode, pod: impl Fn(&'a PodInfo) -> T) -> BTreeMap<&'a str, VictimsBody<T>> {
    let of = |victims: &'a Victims| VictimsBody {
        pods: victims.pods.iter().map(|victim| pod(victim)).collect(),
        violations: victims.violations,
    };
    victims.iter().map(|(node, victims)| (node.as_str(), of(victims))).collect()
}

/// Calls the preempt verb of each extender that supports preemption, one after the other, each with the nodes that the
/// previous one left. `pods` are the pods of these nodes. As upstream.
///
/// # Errors
/// An extender that isn't ignorable failed, or returned a node without victims.
pub async fn process_preemption(
    extenders: &[Extender],
    (pod, whole): (&PodInfo, &Value),
    mut victims: ByNode,
    pods: &BTreeMap<String, Vec<Arc<PodInfo>>>,
    read_pod: &(dyn Fn(&PodInfo) -> Value + Sync),
) -> Result<ByNode, String> {
    for extender in extenders.iter().filter(|extender| extender.config.supports_preemption(pod)) {
        if victims.is_empty() {
            break;
        }
        let ignorable = extender.config.ignorable;
        let mut left = match extender.preempt(whole, &victims, pods, read_pod).await {
            Ok(left) => left,
            Err(why) if ignorable => {
                let url = &extender.config.url_prefix;
                tracing::info!(extender = url, pod = %pod.key, why, "an extender failed and is ignored");
                continue;
            }
            Err(why) => return Err(why),
        };
        match left.iter().find(|(_, victims)| victims.pods.is_empty()) {
            Some((node, _)) if !ignorable => return Err(format!("expected at least one victim pod on node {node:?}")),
            _ => left.retain(|_, victims| !victims.pods.is_empty()),
        }
        victims = left;
    }
    Ok(victims)
}

/// Data takes precedence over a file.
fn set(object: &mut Value, name: &str, (data, file): (Option<&String>, Option<&String>)) {
    match (data, file) {
        (Some(data), _) => object[format!("{name}-data")] = data.clone().into(),
        (None, Some(file)) => object[name] = file.clone().into(),
        (None, None) => {}
    }
}

/// Calls the interested extenders: the filter verbs one after the other, on the nodes that `verdicts` accepts, then the
/// prioritize verbs concurrently. As upstream.
///
/// # Errors
/// An extender that isn't ignorable failed to filter.
pub async fn filter_and_prioritize(
    extenders: &[Extender],
    pod: &PodInfo,
    whole: &Value,
    nodes: &Nodes,
    mut verdicts: Verdicts,
) -> Result<Verdicts, String> {
    let interested = || extenders.iter().filter(|extender| extender.config.is_interested(pod));
    let mut left = verdicts.fitting();
    for extender in interested().filter(|extender| !extender.config.filter_verb.is_empty()) {
        if left.is_empty() {
            return Ok(verdicts);
        }
        match extender.filter(whole, nodes, &left).await {
            Ok(filtered) => verdicts.filter(filtered),
            Err(why) if extender.config.ignorable => {
                tracing::info!(extender = extender.config.url_prefix, pod = %pod.key, why, "an extender failed and is ignored");
            }
            Err(why) => return Err(why),
        }
        left = verdicts.fitting();
    }
    if left.len() < 2 {
        return Ok(verdicts);
    }
    let scoring = interested().filter(|extender| !extender.config.prioritize_verb.is_empty());
    let left = &left;
    let requests = scoring.map(|extender| async move { (extender, extender.prioritize(whole, nodes, left).await) });
    for (extender, scores) in join_all(requests).await {
        match scores {
            Ok(scores) => verdicts.score(scores, extender.config.weight),
            // As upstream: the decision uses the other scores.
            Err(why) => {
                tracing::info!(extender = extender.config.url_prefix, pod = %pod.key, why, "an extender failed to score; its scores are ignored");
            }
        }
    }
    Ok(verdicts)
}
