//! Fetches kubelets' summaries, once per node for all concurrent requests.

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

use super::summary::{CustomMetric, Summary};
use crate::http::kubelets::{Kubelets, NodeAddress};
use apiserver_resources::objects::{ObjectReader, ObjectSource};

/// How long a summary is cached. Kubelets measure every 15 seconds.
const CACHE_TTL: Duration = Duration::from_secs(5);
/// The timeout of a fetch, after which the node has no metrics (metrics-server's).
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of concurrent fetches.
const CONCURRENT_MAX: usize = 32;
/// The maximum size of a summary: more than a full node's.
const SUMMARY_BYTES_MAX: usize = 16 << 20;

type Fetched = Shared<BoxFuture<'static, Arc<Summary>>>;

/// The cached summaries of all nodes.
pub struct NodeMetrics {
    kubelets: Kubelets,
    objects: Arc<dyn ObjectReader>,
    env: Env,
    permits: Arc<Semaphore>,
    /// By node name: the expiry, and the fetch.
    cache: Mutex<HashMap<String, (Duration, Fetched)>>,
}

impl NodeMetrics {
    /// Serves the nodes in `objects`.
    #[must_use]
    pub fn new(kubelets: Kubelets, objects: Arc<dyn ObjectReader>, env: Env) -> Self {
        Self { kubelets, objects, env, permits: Arc::new(Semaphore::new(CONCURRENT_MAX)), cache: Mutex::default() }
    }

    /// The summary of a node.
    fn of(&self, node: &Value) -> Fetched {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let now = self.env.elapsed();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|_, (until, _)| *until > now);
        let fetch = || {
            let (kubelets, at, permits) = (self.kubelets.clone(), NodeAddress::of(node), self.permits.clone());
            let env = self.env.clone();
            let fetched = async move {
                let Some(at) = at else { return Arc::default() };
                let _permit = permits.acquire().await;
                let fetched = env.timeout(FETCH_TIMEOUT, fetch(&kubelets, &at)).await;
                let summary = fetched.unwrap_or_else(|_| Err("the fetch timed out".into()));
                let summary =
                    summary.inspect_err(|why| tracing::debug!(node = at.host(), why, "no metrics from a node"));
                Arc::new(summary.map(|summary| Summary::read(&summary)).unwrap_or_default())
            };
            (now + CACHE_TTL, fetched.boxed().shared())
        };
        cache.entry(name.to_owned()).or_insert_with(fetch).1.clone()
    }

    /// The summaries of these nodes, by node name; empty where the fetch failed.
    async fn summaries(&self, nodes: &[Arc<Value>]) -> HashMap<String, Arc<Summary>> {
        let names = nodes.iter().map(|node| node["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        let fetches: Vec<Fetched> = nodes.iter().map(|node| self.of(node)).collect();
        names.zip(join_all(fetches).await).collect()
    }

    async fn of_pods(&self, pods: Vec<Arc<Value>>) -> Vec<Value> {
        let names: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        let nodes: Vec<Arc<Value>> = names.iter().filter_map(|name| self.objects.get("", "nodes", "", name)).collect();
        let summaries = self.summaries(&nodes).await;
        let one = |pod: &Arc<Value>| summaries.get(pod["spec"]["nodeName"].as_str()?)?.pod(pod);
        pods.iter().filter_map(one).collect()
    }

    /// The values of a custom metric for those of the pods that have one.
    pub(super) async fn custom_metric(&self, pods: &[Arc<Value>], metric: &str) -> Vec<(Arc<Value>, CustomMetric)> {
        let names: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        let nodes: Vec<Arc<Value>> = names.iter().filter_map(|name| self.objects.get("", "nodes", "", name)).collect();
        let summaries = self.summaries(&nodes).await;
        let one = |pod: &Arc<Value>| {
            let served = summaries.get(pod["spec"]["nodeName"].as_str()?)?.custom_metric(pod, metric)?;
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
        let summaries = self.summaries(&nodes).await;
        let one = |node: &Arc<Value>| summaries.get(node["metadata"]["name"].as_str()?)?.node(node);
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

/// Serves PodMetrics.
#[derive(Debug)]
pub(super) struct PodMetricsSource(pub(super) Arc<NodeMetrics>);

/// Serves NodeMetrics.
#[derive(Debug)]
pub(super) struct NodeMetricsSource(pub(super) Arc<NodeMetrics>);

impl ObjectSource for PodMetricsSource {
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Option<Value>> {
        let found = self.0.objects.get("", "pods", namespace, name).into_iter().collect();
        async move { self.0.of_pods(found).await.pop() }.boxed()
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        async move { self.0.of_pods(self.0.objects.list("", "pods", namespace)).await }.boxed()
    }
}

impl ObjectSource for NodeMetricsSource {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Option<Value>> {
        let found = self.0.objects.get("", "nodes", "", name).into_iter().collect();
        async move { self.0.of_nodes(found).await.pop() }.boxed()
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        async move { self.0.of_nodes(self.0.objects.list("", "nodes", None)).await }.boxed()
    }
}
