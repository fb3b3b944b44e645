//! Records the cluster's Services in the node's checkpoint: pods' environments show them.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;

use crate::checkpoint::record::ServiceRecord;
use crate::pod::shared::NodeContext;

/// The interval of the comparisons with the last recorded state. A Service that is newer than this is missing only in
/// environments of containers that start without an API server.
const INTERVAL: Duration = Duration::from_secs(10);

/// The recorded part of all Services, in the order of their names.
fn records(node: &NodeContext) -> Vec<ServiceRecord> {
    node.services.read(|view| view.list::<Service>("").filter_map(ServiceRecord::of).collect())
}

/// Records changes until the node stops.
pub(super) async fn record(node: Arc<NodeContext>) {
    if !node.checkpoint.is_enabled() {
        return;
    }
    let changes = async {
        // Before the first list, the state of the earlier run is better.
        node.services.synced().await;
        let mut last = None;
        loop {
            let current = records(&node);
            if last.as_ref() != Some(&current) {
                node.checkpoint.set_services(current.clone());
                last = Some(current);
            }
            node.parts.env.sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        () = node.stop.cancelled() => {}
        () = changes => {}
    }
}
