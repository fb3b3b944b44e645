//! The cluster of `coracle demo`.

use machinery_env::Env;
use tools_command::failure::Failure;
use tools_development::demo::{self, Demo, DemoCluster};

use crate::compose::{self, Cluster, Part};
use crate::config::ClusterConfig;

/// Runs the demo on a cluster of this process.
///
/// # Errors
/// If a step fails, with the expected result.
pub(crate) fn run(flags: &Demo) -> Result<(), Failure> {
    let env = Env::real();
    demo::run(flags, &env, compose::runtime()?, async |data, progress| {
        let cluster = compose::start(&env, ClusterConfig::for_demo(), None, Part::Nodes, data, progress).await?;
        let Cluster { process, server, admin, api_ready_after } = cluster;
        Ok(DemoCluster { server, admin, api_ready_after, stop: Box::pin(process.stop()) })
    })
}
