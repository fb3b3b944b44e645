//! After a takeover: the pods that were Ready have to be Ready again before the listeners of Services and pods accept, so
//! that no request meets a pod that is still starting. Bounded in time.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Client;
use machinery_client::{Reflector, ReflectorEvent, shared};
use machinery_env::Env;
use machinery_serve::sockets::SocketTable;
use proxy::DataPlane;

/// Time for the list of the pods. Without an API server a node starts them from its checkpoint.
const LIST_MAX: Duration = Duration::from_secs(3);
/// Time in which the pods become Ready again. The process before serves meanwhile, and clients of commands wait; a pod that needs
/// longer holds up no other one.
const READY_MAX: Duration = Duration::from_secs(30);
/// Time from the start of the node after which all listeners accept, whatever its state, such as without an API server.
const ADMIT_MAX: Duration = Duration::from_secs(45);
/// Time in which requests without an endpoint still wait after the pods are Ready: EndpointSlices follow their pods.
const ENDPOINTS_MAX: Duration = Duration::from_secs(3);
/// Time in which everything is bound again: a failed bind is retried after 2 s. Other inherited sockets are closed then.
const CLAIM_MAX: Duration = Duration::from_secs(30);

/// The pods that are not yet Ready again: their restarts at the takeover, by uid.
#[derive(Debug, Default)]
struct WaitingPods(BTreeMap<String, i32>);

impl WaitingPods {
    /// Adds the Ready ones.
    fn expect<'a>(&mut self, pods: impl IntoIterator<Item = &'a Pod>) {
        let ready = pods.into_iter().filter(|pod| is_ready(pod));
        self.0.extend(ready.map(|pod| (uid(pod), restarts(pod))));
    }

    /// Removes a pod that is Ready again, or won't be.
    fn observe(&mut self, pod: &Pod) {
        let Some(before) = self.0.get(&uid(pod)) else { return };
        let ended = matches!(phase(pod), "Succeeded" | "Failed") || pod.metadata.deletion_timestamp.is_some();
        // A container that runs in this process has started once more.
        if ended || (is_ready(pod) && restarts(pod) > *before) {
            self.0.remove(&uid(pod));
        }
    }

    /// Handles a complete list: pods that it lacks are gone.
    fn replace(&mut self, pods: &[std::sync::Arc<Pod>]) {
        self.0.retain(|known, _| pods.iter().any(|pod| uid(pod) == *known));
        pods.iter().for_each(|pod| self.observe(pod));
    }

    fn handle(&mut self, event: ReflectorEvent) {
        match event {
            ReflectorEvent::Replaced(all, _) => {
                let pods: Vec<_> = all.into_iter().filter_map(shared::<Pod>).collect();
                self.replace(&pods);
            }
            ReflectorEvent::Applied(one) => shared::<Pod>(one).iter().for_each(|pod| self.observe(pod)),
            ReflectorEvent::Deleted(one) => {
                if let Some(pod) = shared::<Pod>(one) {
                    self.0.remove(&uid(&pod));
                }
            }
            ReflectorEvent::Progress(_) | ReflectorEvent::Interrupted(_) => {}
        }
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.iter();
    let all = status.flat_map(|status| [&status.container_statuses, &status.init_container_statuses]);
    all.flatten().flatten().map(|container: &ContainerStatus| container.restart_count).sum()
}

/// The pods of one node.
struct NodePods {
    waiting: WaitingPods,
    events: machinery_client::ReflectorEvents,
}

/// The pods that a takeover has interrupted.
pub(crate) struct Resumption {
    nodes: Vec<NodePods>,
    plane: DataPlane,
}

impl Resumption {
    /// Reads the pods of these nodes before they run again; requests without an endpoint wait from now on. `None` in a
    /// process that has not taken over.
    pub(crate) async fn begin(
        env: &Env,
        client: &Client,
        nodes: impl IntoIterator<Item = String>,
        plane: &DataPlane,
    ) -> Option<Self> {
        if SocketTable::process().is_admitting() {
            return None;
        }
        plane.hold_requests();
        let timer = env.clone();
        tokio::spawn(async move {
            timer.sleep(ADMIT_MAX).await;
            SocketTable::process().admit();
        });
        let pods = nodes.into_iter().map(|node| pods_of(env, client, node));
        Some(Self { nodes: futures::future::join_all(pods).await, plane: plane.clone() })
    }

    /// Waits until the pods are Ready again, for a limited time. Then all listeners accept.
    pub(crate) async fn finish(self, env: &Env) {
        let Self { nodes, plane } = self;
        let ready = futures::future::join_all(nodes.into_iter().map(NodePods::ready));
        if env.timeout(READY_MAX, ready).await.is_err() {
            tracing::warn!(
                "after {} s some pods are not Ready again; this process serves without them",
                READY_MAX.as_secs()
            );
        }
        SocketTable::process().admit();
        let env = env.clone();
        tokio::spawn(async move {
            env.sleep(ENDPOINTS_MAX).await;
            plane.release_requests();
        });
    }
}

impl NodePods {
    async fn ready(mut self) {
        while !self.waiting.0.is_empty() {
            self.waiting.handle(self.events.next().await);
        }
    }
}

async fn pods_of(env: &Env, client: &Client, node: String) -> NodePods {
    let reflector = Reflector::of::<Pod>(client.clone(), env.clone());
    let mut events = reflector.selecting(format!("spec.nodeName={node}")).events();
    let mut waiting = WaitingPods::default();
    let listed = async {
        loop {
            if let ReflectorEvent::Replaced(all, _) = events.next().await {
                let pods: Vec<_> = all.into_iter().filter_map(shared::<Pod>).collect();
                return waiting.expect(pods.iter().map(|pod| &**pod));
            }
        }
    };
    if env.timeout(LIST_MAX, listed).await.is_err() {
        tracing::warn!(node, "the API server does not list the node's pods; requests don't wait for them");
    }
    NodePods { waiting, events }
}

/// Closes the inherited sockets that nothing has bound after a while, such as those of deleted Services.
pub(crate) fn close_unclaimed_later(env: &Env) {
    let env = env.clone();
    tokio::spawn(async move {
        env.sleep(CLAIM_MAX).await;
        for key in SocketTable::process().close_unclaimed() {
            tracing::info!(address = %key.address, name = key.name, "an inherited socket has no use and is closed");
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: bool, restarts: i32, phase: &str) -> Pod {
        let container = json!({"name": "c", "image": "", "imageID": "", "ready": ready, "restartCount": restarts});
        let ready = if ready { "True" } else { "False" };
        let conditions = json!([{"type": "Ready", "status": ready}]);
        let status = json!({"phase": phase, "conditions": conditions, "containerStatuses": [container]});
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status": status})).unwrap()
    }

    #[test]
    fn ready_pods_are_waited_for_until_they_have_started_again() {
        let mut waiting = WaitingPods::default();
        waiting.expect([
            &pod("web", true, 2, "Running"),
            &pod("broken", false, 9, "Running"),
            &pod("job", true, 0, "Running"),
        ]);
        assert_eq!(waiting.0.len(), 2, "a pod that was not Ready is not waited for");
        waiting.observe(&pod("web", true, 2, "Running"));
        waiting.observe(&pod("web", false, 3, "Running"));
        assert!(waiting.0.contains_key("web"), "the status of the process before, and one that isn't Ready");
        waiting.observe(&pod("web", true, 3, "Running"));
        waiting.observe(&pod("job", false, 0, "Failed"));
        assert!(waiting.0.is_empty());
    }

    #[test]
    fn pods_that_are_gone_are_not_waited_for() {
        let mut waiting = WaitingPods::default();
        waiting.expect([&pod("a", true, 0, "Running"), &pod("b", true, 0, "Running")]);
        waiting.replace(&[Arc::new(pod("b", true, 0, "Running"))]);
        assert_eq!(waiting.0.keys().collect::<Vec<_>>(), ["b"]);
        let mut deleted = pod("b", true, 0, "Running");
        deleted.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        waiting.observe(&deleted);
        assert!(waiting.0.is_empty());
    }
}
