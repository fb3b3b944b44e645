//! Whether another process is a node of this name: two machines with one name would run each pod twice, under one address.
//!
//! The proof is a Lease that is renewed while this process doesn't renew it. Neither the name nor a timestamp proves
//! anything: the previous process of this node may have ended a moment ago, and clocks differ.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use machinery_api::ObjectKey;
use machinery_client::Kind;
use machinery_client::request::{ApiClient, status_code};
use machinery_env::Env;

use super::lease::NAMESPACE;
use super::register::boot_id;
use super::{NodeConfig, NodeError};
use crate::checkpoint::API_WAIT;

/// The number of reads of the Lease in one interval of its renewals.
const READS_PER_RENEWAL: u32 = 10;
/// The watched intervals: one renewal may be late.
const RENEWALS: u32 = 2;

/// Whether a Node may be another process's: this folder has no record of it, or it is of another machine or another boot.
fn is_suspicious(node: &Node, boot: &str, recorded_uid: Option<&str>) -> bool {
    let reported = info(node).map(|info| info.boot_id.as_str());
    recorded_uid.is_none() || recorded_uid != node.metadata.uid.as_deref() || reported.is_some_and(|id| id != boot)
}

fn info(node: &Node) -> Option<&NodeSystemInfo> {
    node.status.as_ref()?.node_info.as_ref()
}

/// Returns an error if another process renews the Lease of this node. Without a sign of one, or without an API server, it
/// waits for nothing. `recorded_uid` is the Node's in the checkpoint. To be called before this process renews the Lease.
pub(super) async fn check(
    requests: &ApiClient,
    config: &NodeConfig,
    env: &Env,
    recorded_uid: Option<&str>,
) -> Result<(), NodeError> {
    let key = ObjectKey::new("", config.name.clone());
    let found = env.timeout(API_WAIT, requests.get::<Node>(&Kind::of::<Node>(), &key)).await;
    let Ok(Ok(node)) = found else { return Ok(()) };
    if !is_suspicious(&node, &boot_id(), recorded_uid) {
        return Ok(());
    }
    let Some(first) = renewed_at(requests, config, env).await else { return Ok(()) };
    let pause = (config.lease_interval / READS_PER_RENEWAL).max(Duration::from_millis(1));
    for _ in 0..READS_PER_RENEWAL * RENEWALS {
        env.sleep(pause).await;
        if renewed_at(requests, config, env).await.is_some_and(|now| now != first) {
            let machine = info(&node).map(|info| info.machine_id.clone()).unwrap_or_default();
            return Err(NodeError::NameInUse { name: config.name.clone(), machine });
        }
    }
    Ok(())
}

/// The last renewal of the Lease; `None` without one, or without an answer.
async fn renewed_at(requests: &ApiClient, config: &NodeConfig, env: &Env) -> Option<MicroTime> {
    let key = ObjectKey::new(NAMESPACE, config.name.clone());
    let read = env.timeout(API_WAIT, requests.get::<Lease>(&Kind::of::<Lease>(), &key)).await;
    match read {
        Ok(Ok(lease)) => lease.spec?.renew_time,
        Ok(Err(error)) => {
            if status_code(&error) != 404 {
                tracing::debug!(node = config.name, %error, "the node's Lease cannot be read");
            }
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_of_another_boot_or_folder_is_suspicious() {
        let node = |boot: &str| -> Node {
            let node = json!({"metadata": {"name": "n", "uid": "u"}, "status": {"nodeInfo": {"bootID": boot}}});
            serde_json::from_value(node).unwrap()
        };
        assert!(!is_suspicious(&node("b1"), "b1", Some("u")));
        assert!(is_suspicious(&node("b2"), "b1", Some("u")), "a clone, or this machine before it was booted");
        assert!(is_suspicious(&node("b1"), "b1", None), "another folder");
        assert!(is_suspicious(&node("b1"), "b1", Some("other")));
        let unreported = serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u"}})).unwrap();
        assert!(!is_suspicious(&unreported, "b1", Some("u")));
    }
}
