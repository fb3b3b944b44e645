//! Fetches kubelets' summaries and responses, once per node for all concurrent requests.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, Shared, join_all};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use machinery_env::Env;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::responses::{PodResponses, Responses};
use super::summary::Summary;
use crate::http::kubelets::{Kubelets, NodeAddress};
use apiserver_resources::objects::{ObjectReader, ObjectSource};

/// The path of a node's summary.
const SUMMARY: &str = "/stats/summary";
/// How long a response is cached. Kubelets measure every 15 seconds.
const CACHE_TTL: Duration = Duration::from_secs(5);
/// The timeout of a fetch, after which the node has no metrics (metrics-server's).
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of concurrent fetches.
const CONCURRENT_MAX: usize = 32;
/// The maximum size of a kubelet's response: more than a full node's.
const STATS_BYTES_MAX: usize = 16 << 20;

type Fetched<T> = Shared<BoxFuture<'static, Arc<T>>>;

/// Fetches by key: under way or cached, each with its expiry.
struct Cache<K, T>(Mutex<HashMap<K, (Duration, Fetched<T>)>>);

impl<K: Eq + Hash, T> Cache<K, T> {
    fn get_or_fetch(&self, key: K, now: Duration, fetch: impl FnOnce() -> BoxFuture<'static, Arc<T>>) -> Fetched<T> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|_, (until, _)| *until > now);
        cache.entry(key).or_insert_with(|| (now + CACHE_TTL, fetch().shared())).1.clone()
    }
}

/// What nodes report, cached.
pub struct NodeMetrics {
    kubelets: Kubelets,
    objects: Arc<dyn ObjectReader>,
    env: Env,
    permits: Arc<Semaphore>,
    /// By node name.
    summaries: Cache<String, Summary>,
    /// By node name and namespace.
    responses: Cache<(String, String), Responses>,
}

impl NodeMetrics {
    /// Serves the nodes in `objects`.
    #[must_use]
    pub fn new(kubelets: Kubelets, objects: Arc<dyn ObjectReader>, env: Env) -> Self {
        let permits = Arc::new(Semaphore::new(CONCURRENT_MAX));
        let (summaries, responses) = (Cache(Mutex::default()), Cache(Mutex::default()));
        Self { kubelets, objects, env, permits, summaries, responses }
    }

    /// Fetches from a node by `paths`, the first one that it has, and converts the response; the default without one.
    fn fetch<T: Default + Send + Sync + 'static>(
        &self,
        node: &Value,
        paths: Vec<String>,
        read: fn(&Value) -> T,
    ) -> BoxFuture<'static, Arc<T>> {
        let (kubelets, at, permits) = (self.kubelets.clone(), NodeAddress::of(node), self.permits.clone());
        let env = self.env.clone();
        let fetched = async move {
            let Some(at) = at else { return Arc::default() };
            let _permit = permits.acquire().await;
            let fetched = env.timeout(FETCH_TIMEOUT, fetch(&kubelets, &at, &paths)).await;
            let fetched = fetched.unwrap_or_else(|_| Err("the fetch timed out".into()));
            let fetched = fetched.inspect_err(|why| tracing::debug!(node = at.host(), why, "no metrics from a node"));
            Arc::new(fetched.map(|value| read(&value)).unwrap_or_default())
        };
        fetched.boxed()
    }

    /// The summary of a node.
    fn of(&self, node: &Value) -> Fetched<Summary> {
        let fetch = || self.fetch(node, vec![SUMMARY.to_owned()], Summary::read);
        self.summaries.get_or_fetch(name_of(node).to_owned(), self.env.elapsed(), fetch)
    }

    /// The responses of a node's pods of a namespace. A node of an earlier version has a summary with rates instead.
    fn responses_of(&self, node: &Value, namespace: &str) -> Fetched<Responses> {
        let fetch = || {
            let paths = vec![format!("/stats/responses/{namespace}"), SUMMARY.to_owned()];
            self.fetch(node, paths, Responses::read)
        };
        let key = (name_of(node).to_owned(), namespace.to_owned());
        self.responses.get_or_fetch(key, self.env.elapsed(), fetch)
    }

    /// The summaries of these nodes, by node name; empty where the fetch failed.
    async fn summaries(&self, nodes: &[Arc<Value>]) -> HashMap<String, Arc<Summary>> {
        let names = nodes.iter().map(|node| name_of(node).to_owned());
        let fetches: Vec<Fetched<Summary>> = nodes.iter().map(|node| self.of(node)).collect();
        names.zip(join_all(fetches).await).collect()
    }

    /// The nodes of these pods.
    fn nodes_of(&self, pods: &[Arc<Value>]) -> Vec<Arc<Value>> {
        let names: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        names.iter().filter_map(|name| self.objects.get("", "nodes", "", name)).collect()
    }

    async fn of_pods(&self, pods: Vec<Arc<Value>>) -> Vec<Value> {
        let summaries = self.summaries(&self.nodes_of(&pods)).await;
        let one = |pod: &Arc<Value>| summaries.get(pod["spec"]["nodeName"].as_str()?)?.pod(pod);
        pods.iter().filter_map(one).collect()
    }

    /// The responses of pods of one namespace, by node name.
    pub(super) async fn responses(&self, namespace: &str, pods: &[Arc<Value>]) -> NodeResponses {
        let nodes = self.nodes_of(pods);
        let fetches: Vec<Fetched<Responses>> = nodes.iter().map(|node| self.responses_of(node, namespace)).collect();
        let names = nodes.iter().map(|node| name_of(node).to_owned());
        NodeResponses(names.zip(join_all(fetches).await).collect())
    }

    pub(super) fn objects(&self) -> &dyn ObjectReader {
        &*self.objects
    }

    pub(super) fn now(&self) -> jiff::Timestamp {
        self.env.now()
    }

    async fn of_nodes(&self, nodes: Vec<Arc<Value>>) -> Vec<Value> {
        let summaries = self.summaries(&nodes).await;
        let one = |node: &Arc<Value>| summaries.get(name_of(node))?.node(node);
        nodes.iter().filter_map(one).collect()
    }
}

/// The responses of pods on several nodes.
pub(super) struct NodeResponses(HashMap<String, Arc<Responses>>);

impl NodeResponses {
    pub(super) fn of(&self, pod: &Value) -> Option<&PodResponses> {
        self.0.get(pod["spec"]["nodeName"].as_str()?)?.of(pod)
    }
}

fn name_of(node: &Value) -> &str {
    node["metadata"]["name"].as_str().unwrap_or_default()
}

/// Fetches the first of the paths that the kubelet has.
async fn fetch(kubelets: &Kubelets, at: &NodeAddress, paths: &[String]) -> Result<Value, String> {
    let mut paths = paths.iter();
    let answer = loop {
        let path = paths.next().ok_or("it has no such path")?;
        let request = Request::get(path).header(header::HOST, at.host());
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
        let answer = kubelets.send(at, request).await?;
        if answer.status() != StatusCode::NOT_FOUND {
            break answer;
        }
    };
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), STATS_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
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
