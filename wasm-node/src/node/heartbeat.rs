//! Registers a Node, keeps its lease and its status. Goes on through outages of the API: the next beat tries again.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use machinery::api::time;
use machinery::env::Env;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::register::{Capacity, Health, IMAGES_MAX, disk, labels, memory, node, status};
use super::{NodeConfig, NodeParts, NodeReady};
use crate::image::Images;

/// Before a failed request is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the machine is looked at (upstream's).
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Free memory below which the node says so (upstream's threshold).
const MEMORY_LOW_BYTES: u64 = 100 << 20;
/// Free disk below which the node says so: what the default bound of one emptyDir could use up.
const DISK_LOW_BYTES: u64 = 1 << 30;

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

pub(super) struct Heart {
    config: NodeConfig,
    client: Client,
    env: Env,
    port: u16,
    images: std::sync::Arc<Images>,
    health: Health,
    /// The node as it was read or written last.
    known: Value,
    reported: Option<(Health, Timestamp)>,
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

impl Heart {
    pub(super) fn new(config: &NodeConfig, client: Client, parts: &NodeParts, port: u16) -> Self {
        Self {
            config: config.clone(),
            client,
            env: parts.env.clone(),
            port,
            images: parts.images.clone(),
            health: Health::default(),
            known: Value::Null,
            reported: None,
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, content_type)
            .body(body.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.config.name)
    }

    /// Makes the Node be there with its labels.
    async fn enlist(&mut self) -> Result<(), kube::Error> {
        match self.send(Method::POST, "/api/v1/nodes", JSON, &node(&self.config)).await {
            Ok(node) => self.known = node,
            Err(error) if code(&error) == 409 => {
                let patch = json!({"metadata": {"labels": labels(&self.config)}});
                self.known = self.send(Method::PATCH, &self.path(), MERGE, &patch).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn cidr(&self) -> Option<String> {
        let assigned = self.known["spec"]["podCIDR"].as_str().filter(|cidr| !cidr.is_empty());
        assigned.map(ToOwned::to_owned).or_else(|| self.config.pod_cidr.clone())
    }

    /// Registers, and waits for a block of addresses.
    pub(super) async fn register(&mut self) -> String {
        loop {
            match self.enlist().await {
                Ok(()) => break,
                Err(error) => tracing::warn!(node = self.config.name, %error, "the node cannot be registered yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
        if let Some(cidr) = self.cidr() {
            return cidr;
        }
        self.look();
        if let Err(error) = self.report().await {
            tracing::debug!(node = self.config.name, %error, "the status cannot be reported");
        }
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.config.name)).streaming_lists();
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut events = std::pin::pin!(watcher(nodes, only));
        let mut beats = tokio::time::interval(self.config.lease_interval);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Apply(node) | Event::InitApply(node))) => {
                        self.known = serde_json::to_value(node).unwrap_or_default();
                        if let Some(cidr) = self.cidr() {
                            return cidr;
                        }
                    }
                    Some(Err(error)) => {
                        tracing::debug!(node = self.config.name, %error, "the node cannot be watched");
                        tokio::time::sleep(RETRY).await;
                    }
                    _ => {}
                },
                _ = beats.tick() => {
                    if let Err(error) = self.renew().await {
                        tracing::debug!(node = self.config.name, %error, "the lease cannot be renewed");
                    }
                }
            }
        }
    }

    /// From now on pods can be run.
    pub(super) fn beat_ready(&mut self, capacity: Capacity) {
        self.config.capacity = capacity;
        self.health.networked = true;
    }

    /// Beats until `stop`.
    pub(super) async fn run(mut self, ready: oneshot::Sender<NodeReady>, kubelet: SocketAddr, stop: CancellationToken) {
        let mut ready = Some(ready);
        let mut lease_at = self.env.elapsed();
        let mut look_at = self.env.elapsed();
        loop {
            let now = self.env.elapsed();
            if now >= look_at {
                self.look();
                look_at = now + LOOK_INTERVAL;
                if self.due() {
                    match self.report().await {
                        Ok(()) => {
                            if let Some(ready) = ready.take() {
                                // Whoever waited may have gone.
                                let _ = ready.send(NodeReady { kubelet });
                            }
                        }
                        Err(error) => {
                            tracing::warn!(node = self.config.name, %error, "the status cannot be reported");
                            if code(&error) == 404 {
                                let _ = self.enlist().await;
                            }
                            look_at = now + RETRY;
                        }
                    }
                }
            }
            if now >= lease_at {
                lease_at = now + self.config.lease_interval;
                if let Err(error) = self.renew().await {
                    tracing::warn!(node = self.config.name, %error, "the lease cannot be renewed");
                    lease_at = now + RETRY;
                }
            }
            let next = lease_at.min(look_at).saturating_sub(self.env.elapsed());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    fn look(&mut self) {
        self.health.short_of_memory = memory().is_some_and(|(_, free)| free < MEMORY_LOW_BYTES);
        self.health.short_of_disk = disk(&self.config.data_dir).is_some_and(|(_, free)| free < DISK_LOW_BYTES);
        let mut images: Vec<(Vec<String>, u64)> =
            self.images.list().iter().map(|i| (vec![i.image_id.clone(), i.name.clone()], i.size_bytes)).collect();
        images.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        images.truncate(IMAGES_MAX);
        self.health.images = images;
    }

    fn due(&self) -> bool {
        let now = self.env.now();
        self.reported.as_ref().is_none_or(|(health, at)| {
            let age = Duration::try_from(now.duration_since(*at)).unwrap_or_default();
            *health != self.health || age >= self.config.status_interval
        })
    }

    async fn report(&mut self) -> Result<(), kube::Error> {
        let now = self.env.now();
        let patch = status(&self.config, self.port, &self.health, &self.known, now);
        let path = format!("{}/status", self.path());
        self.known = self.send(Method::PATCH, &path, STRATEGIC, &patch).await?;
        self.reported = Some((self.health.clone(), now));
        Ok(())
    }

    async fn renew(&self) -> Result<(), kube::Error> {
        const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let name = &self.config.name;
        let spec = json!({
            "holderIdentity": name,
            "leaseDurationSeconds": self.config.lease_duration.as_secs(),
            "renewTime": time::micros(self.env.now()),
        });
        let renewed = self.send(Method::PATCH, &format!("{LEASES}/{name}"), MERGE, &json!({"spec": spec})).await;
        match renewed {
            Err(error) if code(&error) == 404 => {}
            renewed => return renewed.map(drop),
        }
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": name, "namespace": "kube-node-lease",
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": self.known["metadata"]["uid"]}],
            },
            "spec": spec,
        });
        self.send(Method::POST, LEASES, JSON, &lease).await.map(drop)
    }
}
