//! `coracle controllers`: the controllers as a process of their own, against any Kubernetes API server.

use clap::Args;
use controllers::{ControllerOptions, ProcessOptions, UnsupportedFlags};
use machinery_env::Env;
use machinery_options::election::ElectionFlags;
use machinery_options::feature_gates::FeatureFlags;
use machinery_options::rejected::RejectedFlags;

use crate::compose::kubeconfig_process::{self, KubeconfigFlags, election};
use crate::compose::{ControllersParts, process_config};
use crate::inventory::NodeInventory;
use tools_command::failure::Failure;

/// Upstream's name of this program.
const UPSTREAM: &str = "kube-controller-manager";

/// Flags of `coracle controllers`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ControllerManager {
    #[command(flatten)]
    kubeconfig: KubeconfigFlags,
    #[command(flatten)]
    controllers: ControllerOptions,
    #[command(flatten)]
    election: ElectionFlags,
    #[command(flatten)]
    process: ProcessOptions,
    #[command(flatten)]
    features: FeatureFlags,
    #[command(flatten)]
    rejected: RejectedFlags<UnsupportedFlags>,
}

impl ControllerManager {
    fn config(&self, env: &Env) -> Result<(controllers::Config, Option<NodeInventory>), Failure> {
        let options = (&self.controllers, &self.process);
        let (mut config, inventory) = process_config(options, UPSTREAM, env, self.features.features())?;
        config.election = election(&self.election, UPSTREAM, env)?;
        Ok((config, inventory))
    }
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, a file can't be used, or the leadership was lost.
pub(crate) fn run(flags: &ControllerManager) -> Result<(), Failure> {
    flags.rejected.check()?;
    let env = Env::real();
    let config = flags.config(&env)?;
    let (gates, by_account) = (config.0.settings.features, flags.process.use_service_account_credentials);
    kubeconfig_process::run(&flags.kubeconfig, UPSTREAM, (&env, &gates), async |parts| {
        Ok(ControllersParts::of_kubeconfig(parts, config, by_account)?.into())
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;
    use machinery_options::rejected::Table as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::cmd::{Cli, Verb};

    fn config(flags: &[&str]) -> Result<controllers::Config, Failure> {
        let cli = Cli::try_parse_from(["coracle", "controllers", "--kubeconfig=k"].iter().chain(flags)).unwrap();
        match cli.verb {
            Verb::ControllerManager(verb) => {
                verb.rejected.check()?;
                Ok(verb.config(&Env::real())?.0)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_of_upstream_that_mean_nothing_are_refused_with_a_reason() {
        for (name, _) in UnsupportedFlags::flags() {
            for flag in [format!("--{name}"), format!("--{name}=x")] {
                match config(&[&flag]) {
                    Err(Failure::Usage(reported)) => {
                        assert!(reported.starts_with(&format!("--{name}: ")), "{reported}")
                    }
                    other => panic!("{flag}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn leader_election_is_upstreams_by_default() {
        let election = config(&[]).unwrap().election.unwrap();
        assert_eq!(election.lease.to_string(), "kube-system/kube-controller-manager");
        assert!(config(&["--leader-elect=false"]).unwrap().election.is_none());
        let short = ["--leader-elect-lease-duration=10s", "--leader-elect-renew-deadline=10s"];
        assert!(matches!(config(&short), Err(Failure::Usage(_))));
        assert!(matches!(config(&["--leader-elect-retry-period=9s"]), Err(Failure::Usage(_))));
    }

    #[test]
    fn flags_of_controllers_reach_them() {
        let args =
            ["--horizontal-pod-autoscaler-tolerance=0.5", "--terminated-pod-gc-threshold=7", "--controllers=*,-job"];
        let config = config(&args).unwrap();
        assert_eq!(
            (config.settings.options.autoscaler.tolerance, config.settings.options.pods.terminated_max),
            (0.5, 7)
        );
        assert_eq!(config.disabled, ["job-controller"]);
    }

    #[test]
    fn nodes_get_addresses_if_the_flag_is_set() {
        assert!(config(&["--cluster-cidr=10.0.0.0/16"]).unwrap().settings.cluster_cidrs.is_empty());
        let args = ["--cluster-cidr=10.0.0.0/16", "--allocate-node-cidrs=true"];
        assert_eq!(config(&args).unwrap().settings.cluster_cidrs[0].1, 24);
        let wrong = [args[0], args[1], "--node-cidr-mask-size=12"];
        assert!(matches!(config(&wrong), Err(Failure::Usage(_))));
    }

    #[test]
    fn policies_are_checked_against_the_built_in_kinds() {
        let authority = config(&[]).unwrap().settings.authority;
        let check = |policy: Value| authority.check_policy(&policy).unwrap();
        let policy = |group: &str, resource: &str| {
            let rule =
                json!({"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]});
            json!({"spec": {"matchConstraints": {"resourceRules": [rule]},
                "validations": [{"expression": "object.spec.replica > 1"}]}})
        };
        let found = check(policy("apps", "deployments"));
        assert!(found[0].warning.contains("undefined field 'replica'"), "{found:?}");
        assert_eq!(check(policy("example.com", "boats")), []);
    }

    #[test]
    fn certificates_are_signed_by_the_authority_of_the_flags() {
        let folder = tempfile::tempdir().unwrap();
        let pki = apiserver_auth::pki::Pki::open_or_create(folder.path(), &Env::real(), &[]).unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let flags = |certificate: &str, key: &str| {
            let certificate = format!("--cluster-signing-cert-file={}", file(certificate));
            config(&[
                &certificate,
                &format!("--cluster-signing-key-file={}", file(key)),
                "--cluster-signing-duration=2h",
            ])
        };
        assert!(!config(&[]).unwrap().settings.authority.signs_certificates());
        let signing = flags("ca.crt", "ca.key").unwrap().settings;
        assert!(signing.authority.signs_certificates() && pki.ca_pem().contains("CERTIFICATE"));
        assert_eq!(signing.certificate_life, Duration::from_hours(2));
        assert!(flags("ca.crt", "sa.key").is_err());
        assert!(flags("ca.crt", "absent").is_err());
    }
}
