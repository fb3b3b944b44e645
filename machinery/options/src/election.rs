//! `--leader-elect*`: flags of leader election, which keeps one of several replicas active.

use std::time::Duration;

use clap::Args;

use crate::OptionError;
use crate::duration::some_time;

/// Upstream's flags of leader election; the record's name defaults to the component's.
#[derive(Debug, Clone, Args)]
pub struct ElectionFlags {
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

/// The record of an election and its durations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionOptions {
    /// The record's name, where it isn't the component's.
    pub name: Option<String>,
    /// The record's namespace.
    pub namespace: String,
    /// The time that other replicas wait after an observed renewal.
    pub lease_duration: Duration,
    /// The time without a renewal after which the leader ends.
    pub renew_deadline: Duration,
    /// The interval between a replica's attempts.
    pub retry_period: Duration,
}

impl ElectionFlags {
    /// The election; `None` if it is disabled.
    ///
    /// # Errors
    /// If the durations contradict each other (client-go's rules).
    pub fn options(&self) -> Result<Option<ElectionOptions>, OptionError> {
        if !self.leader_elect {
            return Ok(None);
        }
        let (lease_duration, renew_deadline, retry_period) =
            (self.leader_elect_lease_duration, self.leader_elect_renew_deadline, self.leader_elect_retry_period);
        if lease_duration <= renew_deadline {
            return Err(OptionError::new(
                "--leader-elect-lease-duration must be greater than --leader-elect-renew-deadline",
            ));
        }
        if renew_deadline.as_secs_f64() <= retry_period.as_secs_f64() * 1.2 {
            return Err(OptionError::new(
                "--leader-elect-renew-deadline must be greater than --leader-elect-retry-period by a fifth",
            ));
        }
        let (name, namespace) = (self.leader_elect_resource_name.clone(), self.leader_elect_resource_namespace.clone());
        Ok(Some(ElectionOptions { name, namespace, lease_duration, renew_deadline, retry_period }))
    }
}
