//! Renews a node's Lease in its own loop, so that neither reports nor observations delay the heartbeat.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use machinery_api::{ObjectKey, time};
use machinery_client::Kind;
use machinery_client::request::{ApiClient, PatchType, status_code};
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::NodeConfig;

/// The delay before a failed renewal is retried.
const RETRY: Duration = Duration::from_secs(1);

const LEASES: Kind = Kind::of::<Lease>();
/// The namespace of node leases.
pub(super) const NAMESPACE: &str = "kube-node-lease";

/// Renews the Lease until `stop`. `node` is the uid of its Node, once that exists.
pub(super) async fn keep(
    requests: ApiClient,
    config: NodeConfig,
    env: Env,
    mut node: watch::Receiver<Option<String>>,
    stop: CancellationToken,
) {
    // The uid in the Lease's owner reference: the garbage collector removes a Lease without an owner.
    let mut owner: Option<String> = None;
    let mut failures: u32 = 0;
    loop {
        let uid = node.borrow_and_update().clone();
        let began = env.elapsed();
        let wait = match &uid {
            None => None,
            Some(uid) => {
                let renewal = renew(&requests, &config, &env, uid, owner.as_ref() == Some(uid));
                // An attempt is limited to the renewal interval: the next one may succeed.
                let renewed = tokio::select! {
                    () = stop.cancelled() => return,
                    renewed = env.timeout(config.lease_interval, renewal) => renewed,
                };
                match renewed {
                    Ok(Ok(())) => {
                        failures = 0;
                        owner = Some(uid.clone());
                        Some((began + config.lease_interval).saturating_sub(env.elapsed()))
                    }
                    Ok(Err(error)) => {
                        failures += 1;
                        if is_reported(failures) {
                            tracing::warn!(node = config.name, failures, %error, "the lease cannot be renewed, trying again");
                        }
                        Some(RETRY.min(config.lease_interval))
                    }
                    Err(_) => {
                        failures += 1;
                        let seconds = config.lease_interval.as_secs_f32();
                        if is_reported(failures) {
                            tracing::warn!(
                                node = config.name,
                                failures,
                                seconds,
                                "the lease was not renewed in time, trying again"
                            );
                        }
                        Some(Duration::ZERO)
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            // A recreated Node gets its Lease at once.
            changed = node.changed() => if changed.is_err() {
                return;
            },
            () = async { env.sleep(wait.unwrap_or_default()).await }, if wait.is_some() => {}
        }
    }
}

/// Whether the nth failure in a row is logged: an outage of hours has some ten lines.
pub(super) const fn is_reported(failures: u32) -> bool {
    failures.is_power_of_two()
}

async fn renew(
    requests: &ApiClient,
    config: &NodeConfig,
    env: &Env,
    node_uid: &str,
    owned: bool,
) -> Result<(), kube::Error> {
    let name = &config.name;
    let spec = json!({
        "holderIdentity": name,
        "leaseDurationSeconds": config.lease_duration.as_secs(),
        "renewTime": time::micros(env.now()),
    });
    let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}]);
    let mut patch = json!({"spec": spec});
    if !owned {
        patch["metadata"] = json!({"ownerReferences": owners});
    }
    let renewed: Result<Value, _> =
        requests.patch(&LEASES, &ObjectKey::new(NAMESPACE, name), None, PatchType::Merge, &patch).await;
    match renewed {
        Err(error) if status_code(&error) == 404 => {}
        renewed => return renewed.map(drop),
    }
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": owners},
        "spec": spec,
    });
    let created: Result<Value, _> = requests.create(&LEASES, NAMESPACE, &lease).await;
    created.map(drop)
}
