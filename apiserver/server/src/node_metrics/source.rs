//! Asks kubelets, each once for all who want to know at a time.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, Shared, join_all};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use machinery_env::Env;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::figures::{Served, Summary};
use crate::http::kubelets::{Kubelets, NodeAddress};
use apiserver_resources::objects::{ObjectReader, ObjectSource};

/// Kubelets measure every 15 seconds; what they said is shown again for so long.
const KEPT: Duration = Duration::from_secs(5);
/// A kubelet that doesn't say all of it by then has said nothing (metrics-server's).
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Kubelets that are asked at once.
const AT_ONCE: usize = 32;
/// More than a node with all the pods that it may have says.
const SUMMARY_BYTES_MAX: usize = 16 << 20;

type Fetched = Shared<BoxFuture<'static, Arc<Summary>>>;

/// What nodes say of themselves.
pub struct NodeMetrics {
    kubelets: Kubelets,
    objects: Arc<dyn ObjectReader>,
    env: Env,
    turns: Arc<Semaphore>,
    /// By node: until when it is good, and what it says.
    kept: Mutex<HashMap<String, (Duration, Fetched)>>,
}

impl NodeMetrics {
    /// Asks those of the nodes that `objects` names.
    #[must_use]
    pub fn new(kubelets: Kubelets, objects: Arc<dyn ObjectReader>, env: Env) -> Self {
        Self { kubelets, objects, env, turns: Arc::new(Semaphore::new(AT_ONCE)), kept: Mutex::default() }
    }

    /// What the node of an object says.
    fn of(&self, node: &Value) -> Fetched {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let now = self.env.elapsed();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (until, _)| *until > now);
        let fetch = || {
            let (kubelets, at, turns) = (self.kubelets.clone(), NodeAddress::of(node), self.turns.clone());
            let fetched = async move {
                let Some(at) = at else { return Arc::default() };
                let _turn = turns.acquire().await;
                let fetched = tokio::time::timeout(FETCH_TIMEOUT, fetch(&kubelets, &at)).await;
                let summary = fetched.unwrap_or_else(|_| Err("it takes too long".into()));
                let summary = summary.inspect_err(|why| tracing::debug!(node = at.host(), why, "no figures of a node"));
                Arc::new(summary.map(|summary| Summary::read(&summary)).unwrap_or_default())
            };
            (now + KEPT, fetched.boxed().shared())
        };
        kept.entry(name.to_owned()).or_insert_with(fetch).1.clone()
    }

    /// What these nodes say, those that say nothing left out.
    async fn summaries(&self, nodes: &[Arc<Value>]) -> HashMap<String, Arc<Summary>> {
        let names = nodes.iter().map(|node| node["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        let asked: Vec<Fetched> = nodes.iter().map(|node| self.of(node)).collect();
        names.zip(join_all(asked).await).collect()
    }

    async fn of_pods(&self, pods: Vec<Arc<Value>>) -> Vec<Value> {
        let names: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        let nodes: Vec<Arc<Value>> = names.iter().filter_map(|name| self.objects.get("", "nodes", "", name)).collect();
        let said = self.summaries(&nodes).await;
        let one = |pod: &Arc<Value>| said.get(pod["spec"]["nodeName"].as_str()?)?.pod(pod);
        pods.iter().filter_map(one).collect()
    }

    /// What some pods measure of themselves, by a metric's name: of those of which it is known.
    pub(super) async fn served(&self, pods: &[Arc<Value>], metric: &str) -> Vec<(Arc<Value>, Served)> {
        let names: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        let nodes: Vec<Arc<Value>> = names.iter().filter_map(|name| self.objects.get("", "nodes", "", name)).collect();
        let said = self.summaries(&nodes).await;
        let one = |pod: &Arc<Value>| {
            let served = said.get(pod["spec"]["nodeName"].as_str()?)?.served(pod, metric)?;
            Some((pod.clone(), served))
        };
        pods.iter().filter_map(one).collect()
    }

    pub(super) fn objects(&self) -> &dyn ObjectReader {
        &*self.objects
    }

    pub(super) fn now(&self) -> jiff::Timestamp {
        self.env.now()
    }

    async fn of_nodes(&self, nodes: Vec<Arc<Value>>) -> Vec<Value> {
        let said = self.summaries(&nodes).await;
        let one = |node: &Arc<Value>| said.get(node["metadata"]["name"].as_str()?)?.node(node);
        nodes.iter().filter_map(one).collect()
    }
}

async fn fetch(kubelets: &Kubelets, at: &NodeAddress) -> Result<Value, String> {
    let request = Request::get("/stats/summary").header(header::HOST, at.host());
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let answer = kubelets.send(at, request).await?;
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), SUMMARY_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| e.to_string())
}

impl std::fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeMetrics").finish_non_exhaustive()
    }
}

/// Metrics of pods.
#[derive(Debug)]
pub(super) struct OfPods(pub(super) Arc<NodeMetrics>);

/// Metrics of nodes.
#[derive(Debug)]
pub(super) struct OfNodes(pub(super) Arc<NodeMetrics>);

impl ObjectSource for OfPods {
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Option<Value>> {
        let found = self.0.objects.get("", "pods", namespace, name).into_iter().collect();
        async move { self.0.of_pods(found).await.pop() }.boxed()
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        async move { self.0.of_pods(self.0.objects.list("", "pods", namespace)).await }.boxed()
    }
}

impl ObjectSource for OfNodes {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Option<Value>> {
        let found = self.0.objects.get("", "nodes", "", name).into_iter().collect();
        async move { self.0.of_nodes(found).await.pop() }.boxed()
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        async move { self.0.of_nodes(self.0.objects.list("", "nodes", None)).await }.boxed()
    }
}
