//! Announces changed cluster addresses at a start, on stderr and as an event.

use apiserver::bootstrap::cidr_migration::CidrMigration;
use k8s_openapi::api::core::v1::Event;
use kube::Client;
use machinery_client::{Api, reference_to, value_of};
use machinery_env::Env;
use serde_json::json;

/// Writes one line to stderr, and an event on the Service `default/kubernetes`, which every cluster has.
///
/// # Errors
/// If the API rejects the event.
pub(super) async fn announce(admin: &Client, env: &Env, migrations: &[CidrMigration]) -> anyhow::Result<()> {
    let Some(CidrMigration { from, to }) = migrations.first() else { return Ok(()) };
    let message = format!(
        "The cluster's addresses moved from {from} to {to}, as that block is not free any more or was not requested at \
         this start: Services and pods keep their names, and have new IP addresses"
    );
    // Not by the log, whose level may suppress it: old addresses may now belong to another cluster.
    tools_command::output::print_stderr!("coracle: {message}");
    let services = Api::<k8s_openapi::api::core::v1::Service>::namespaced(admin.clone(), "default");
    let service = services.get("kubernetes").await?;
    let now = env.now().to_string();
    let event = json!({
        "metadata": {"generateName": "kubernetes.", "namespace": "default"},
        "involvedObject": value_of(&reference_to(&service)),
        "reason": "AddressesMoved",
        "message": message,
        "type": "Warning",
        "source": {"component": "coracle"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    });
    Api::<Event>::namespaced(admin.clone(), "default").create(&event).await?;
    Ok(())
}
