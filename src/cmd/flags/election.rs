//! `--leader-elect*`: flags of leader election, which keeps one of several replicas active.

use std::time::Duration;

use clap::Args;
use machinery_api::ObjectKey;
use machinery_client::election::Election;
use machinery_env::Env;

use super::duration::some_time;
use crate::cmd::Failure;
use crate::config::host_name;

/// Upstream's flags of leader election; the record's name defaults to the component's.
#[derive(Debug, Clone, Args)]
pub(in crate::cmd) struct ElectionFlags {
    /// Acts only while this replica is the leader
    #[arg(long, env = "CORACLE_LEADER_ELECT", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    leader_elect: bool,
    /// Time that other replicas wait after an observed renewal
    #[arg(long, env = "CORACLE_LEADER_ELECT_LEASE_DURATION", default_value = "15s", value_name = "DURATION", value_parser = some_time)]
    leader_elect_lease_duration: Duration,
    /// Time without a renewal after which the leader ends
    #[arg(long, env = "CORACLE_LEADER_ELECT_RENEW_DEADLINE", default_value = "10s", value_name = "DURATION", value_parser = some_time)]
    leader_elect_renew_deadline: Duration,
    /// Interval between a replica's attempts
    #[arg(long, env = "CORACLE_LEADER_ELECT_RETRY_PERIOD", default_value = "2s", value_name = "DURATION", value_parser = some_time)]
    leader_elect_retry_period: Duration,
    /// The kind of the record; only one is supported
    #[arg(long, env = "CORACLE_LEADER_ELECT_RESOURCE_LOCK", default_value = "leases", value_name = "KIND", value_parser = ["leases"])]
    leader_elect_resource_lock: String,
    /// The record's name [default: upstream's]
    #[arg(long, env = "CORACLE_LEADER_ELECT_RESOURCE_NAME", value_name = "NAME")]
    leader_elect_resource_name: Option<String>,
    /// The record's namespace
    #[arg(
        long,
        env = "CORACLE_LEADER_ELECT_RESOURCE_NAMESPACE",
        default_value = "kube-system",
        value_name = "NAMESPACE"
    )]
    leader_elect_resource_namespace: String,
}

impl ElectionFlags {
    /// The election under an upstream component's name; `None` if it is disabled.
    ///
    /// # Errors
    /// If the durations contradict each other (client-go's rules).
    pub(in crate::cmd) fn election(&self, component: &str, env: &Env) -> Result<Option<Election>, Failure> {
        if !self.leader_elect {
            return Ok(None);
        }
        let (lease, renew, retry) =
            (self.leader_elect_lease_duration, self.leader_elect_renew_deadline, self.leader_elect_retry_period);
        if lease <= renew {
            return Err(Failure::Usage(
                "--leader-elect-lease-duration must be greater than --leader-elect-renew-deadline".into(),
            ));
        }
        if renew.as_secs_f64() <= retry.as_secs_f64() * 1.2 {
            return Err(Failure::Usage(
                "--leader-elect-renew-deadline must be greater than --leader-elect-retry-period by a fifth".into(),
            ));
        }
        let name = self.leader_elect_resource_name.as_deref().unwrap_or(component);
        let election = Election::new(
            ObjectKey::new(&*self.leader_elect_resource_namespace, name),
            format!("{}_{}", host_name(), env.uid()),
        );
        let times = Election { lease_duration: lease, renew_deadline: renew, retry_period: retry, ..election };
        Ok(Some(times))
    }
}
