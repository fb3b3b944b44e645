//! `coracle controllers`: the controllers as a process of their own, against any Kubernetes API server.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use apiserver_auth::jwt::SigningKey;
use apiserver_auth::signing::{self, CertificateSigner};
use apiserver_resources::ResourceInfo;
use apiserver_resources::checking::type_check;
use clap::Args;
use controllers::{Authority, CertificateTemplate, ExpressionWarning, Settings};
use ipnet::IpNet;
use kube::config::AuthInfo;
use machinery_api::ObjectKey;
use machinery_api::features::Features;
use machinery_env::Env;
use machinery_options::duration::some_time;
use machinery_options::election::ElectionFlags;
use machinery_options::feature_gates::FeatureFlags;
use machinery_options::rejected::{RejectedFlags, SERVING, Table};
use serde_json::Value;

use crate::compose::kubeconfig_process::{self, KubeconfigFlags, KubeconfigParts, election};
use crate::compose::{self, ControllersParts};
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
    controllers: controllers::ControllerOptions,
    #[command(flatten)]
    election: ElectionFlags,
    /// Allocates a block of the pods' addresses to each node
    #[arg(long, env = "CORACLE_ALLOCATE_NODE_CIDRS", requires = "cluster_cidr", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    allocate_node_cidrs: bool,
    /// Addresses of pods
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", value_name = "CIDR")]
    cluster_cidr: Option<IpNet>,
    /// Prefix length of each node's share of the pod addresses [default: 24 of IPv4, 64 of IPv6]
    #[arg(long, env = "CORACLE_NODE_CIDR_MASK_SIZE", value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=126))]
    node_cidr_mask_size: Option<u8>,
    /// Certificate authority published to every namespace, as PEM [default: none]
    #[arg(long, env = "CORACLE_ROOT_CA_FILE", value_name = "FILE")]
    root_ca_file: Option<PathBuf>,
    /// Key that signs tokens in Secrets: the API server's, ECDSA P-256 in PKCS #8 [default: Secrets get no tokens]
    #[arg(long, env = "CORACLE_SERVICE_ACCOUNT_PRIVATE_KEY_FILE", value_name = "FILE")]
    service_account_private_key_file: Option<PathBuf>,
    /// Each controller acts as its own service account in kube-system, with tokens that the kubeconfig's user requests;
    /// otherwise all act as that user
    #[arg(long, env = "CORACLE_USE_SERVICE_ACCOUNT_CREDENTIALS", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    use_service_account_credentials: bool,
    #[command(flatten)]
    signing: SigningFlags,
    #[command(flatten)]
    features: FeatureFlags,
    #[command(flatten)]
    rejected: RejectedFlags<UnsupportedUpstreamFlags>,
}

/// The authority for approved requests.
#[derive(Debug, Clone, Args)]
struct SigningFlags {
    /// Certificate of the authority that signs approved certificates, as PEM [default: none is signed]
    #[arg(long, env = "CORACLE_CLUSTER_SIGNING_CERT_FILE", value_name = "FILE", requires = "cluster_signing_key_file")]
    cluster_signing_cert_file: Option<PathBuf>,
    /// Key of that authority, as PEM: PKCS #8, or RSA in PKCS #1
    #[arg(long, env = "CORACLE_CLUSTER_SIGNING_KEY_FILE", value_name = "FILE", requires = "cluster_signing_cert_file")]
    cluster_signing_key_file: Option<PathBuf>,
    /// Maximum life of signed certificates; a request may ask for less [default: 8760h]
    #[arg(long, env = "CORACLE_CLUSTER_SIGNING_DURATION", value_name = "DURATION", value_parser = some_time)]
    cluster_signing_duration: Option<Duration>,
}

impl SigningFlags {
    /// The authority, if there is one.
    fn signer(&self, env: &Env) -> anyhow::Result<Option<CertificateSigner>> {
        let (Some(certificate), Some(key)) = (&self.cluster_signing_cert_file, &self.cluster_signing_key_file) else {
            return Ok(None);
        };
        let (pem, key_pem) = (read(certificate, "cluster-signing-cert-file")?, read(key, "cluster-signing-key-file")?);
        let signer = CertificateSigner::from_pem(env, &pem, &key_pem).with_context(|| {
            let (certificate, key) = (certificate.display(), key.display());
            format!("--cluster-signing-cert-file {certificate} --cluster-signing-key-file {key}")
        })?;
        Ok(Some(signer))
    }
}

/// The keys of the flags. Policies are checked against the built-in kinds: custom ones are the API server's.
struct FlagsAuthority {
    signer: Option<CertificateSigner>,
    tokens: Option<SigningKey>,
    features: Features,
    kinds: OnceLock<Vec<Arc<ResourceInfo>>>,
}

impl Authority for FlagsAuthority {
    fn signs_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    fn sign_token(&self, claims: &Value) -> Option<String> {
        self.tokens.as_ref()?.sign(claims).ok()
    }

    fn signs_certificates(&self) -> bool {
        self.signer.is_some()
    }

    fn sign_certificate(&self, template: &CertificateTemplate<'_>) -> Option<Result<String, String>> {
        let &CertificateTemplate { request, usages, not_before, not_after } = template;
        let template = signing::CertificateTemplate { request, usages, not_before, not_after };
        Some(self.signer.as_ref()?.sign(&template).map_err(|error| error.to_string()))
    }

    fn check_policy(&self, policy: &Value) -> Option<Vec<ExpressionWarning>> {
        let kinds =
            self.kinds.get_or_init(|| apiserver_resources::served(apiserver_resources::RESOURCES, &self.features));
        Some(type_check(policy, kinds).into_iter().map(compose::warning).collect())
    }
}

fn read(file: &PathBuf, flag: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("--{flag} {}", file.display()))
}

/// Upstream's flags that are rejected here.
#[derive(Debug, Clone)]
struct UnsupportedUpstreamFlags;

const CLOUD: &str = "there is no cloud provider beside --node-inventory and --load-balancer-pool; leave it out";
const CLOCK: &str = "nothing is done by the clock alone: what changes is acted on when it does; leave it out";
const ATTACH: &str = "nothing is attached to nodes, and no volume is recycled or probed for; leave it out";

impl Table for UnsupportedUpstreamFlags {
    const OWN: &'static [(&'static str, &'static str)] = &[
        ("allow-metric-labels", SERVING),
        ("attach-detach-reconcile-sync-period", ATTACH),
        ("cloud-config", CLOUD),
        ("cloud-provider", CLOUD),
        ("cluster-name", CLOUD),
        ("configure-cloud-routes", CLOUD),
        ("controller-start-interval", "controllers start at once; leave it out"),
        ("disable-attach-detach-reconcile-sync", ATTACH),
        ("enable-dynamic-provisioning", "switch the controller off by --controllers"),
        ("enable-garbage-collector", "switch it off by --controllers=*,-garbage-collector-controller"),
        ("enable-hostpath-provisioner", ATTACH),
        ("endpoint-updates-batch-period", CLOCK),
        ("endpointslice-updates-batch-period", CLOCK),
        ("external-cloud-volume-plugin", CLOUD),
        ("flex-volume-plugin-dir", ATTACH),
        ("min-resync-period", CLOCK),
        ("mirroring-endpointslice-updates-batch-period", CLOCK),
        ("namespace-sync-period", CLOCK),
        ("node-sync-period", CLOUD),
        ("pvclaimbinder-sync-period", CLOCK),
        ("resource-quota-sync-period", CLOCK),
        ("route-reconciliation-period", CLOUD),
        ("service-cluster-ip-range", "Services' addresses are the API server's to give; leave it out"),
    ];
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, a file can't be used, or the leadership was lost.
pub(crate) fn run(flags: &ControllerManager) -> Result<(), Failure> {
    flags.rejected.check()?;
    let env = Env::real();
    let (config, inventory) = flags.config(&env)?;
    let by_account = flags.use_service_account_credentials;
    let gates = config.settings.features;
    kubeconfig_process::run(&flags.kubeconfig, UPSTREAM, (&env, &gates), async |parts| {
        parts.metrics.add(|registry| config.metrics.register(registry));
        let clients = if by_account { clients_by_account(&parts)? } else { same_client(&parts) };
        let KubeconfigParts { env, client, stops, .. } = parts;
        let stop = stops.components;
        let controllers = ControllersParts { env, config, client, clients, inventory, is_reelected: false, stop };
        Ok(controllers.into())
    })
}

/// All controllers act as the kubeconfig's user.
fn same_client(parts: &KubeconfigParts) -> controllers::Clients {
    let client = parts.client.clone();
    Arc::new(move |_| client.clone())
}

/// Each controller acts as its service account.
fn clients_by_account(parts: &KubeconfigParts) -> anyhow::Result<controllers::Clients> {
    let mut anonymous = parts.config.clone();
    anonymous.auth_info = AuthInfo::default();
    let plain = machinery_client::from_config(&parts.env, anonymous)?;
    let (env, issuer) = (parts.env.clone(), parts.client.clone());
    Ok(Arc::new(move |account| {
        let account = ObjectKey::new("kube-system", account);
        machinery_client::as_service_account(&env, issuer.clone(), plain.clone(), account)
    }))
}

impl ControllerManager {
    fn config(&self, env: &Env) -> Result<(controllers::Config, Option<NodeInventory>), Failure> {
        let root_ca_pem = self.root_ca_file.as_ref().map(|file| read(file, "root-ca-file")).transpose()?;
        let (features, inventory) = (self.features.features(), NodeInventory::of(&self.controllers)?);
        let mut settings = Settings {
            options: self.controllers.clone(),
            root_ca_pem: root_ca_pem.unwrap_or_default(),
            instances: inventory.as_ref().map(|inventory| inventory.now.clone() as _),
            authority: Arc::new(self.authority(env, features)?),
            features,
            ..Settings::default()
        };
        if let Some(life) = self.signing.cluster_signing_duration {
            settings.certificate_life = life;
        }
        if let Some(cidr) = self.cluster_cidr.filter(|_| self.allocate_node_cidrs) {
            let usual = if cidr.addr().is_ipv4() { 24 } else { 64 };
            let mask = self.node_cidr_mask_size.unwrap_or(usual);
            if mask < cidr.prefix_len() || mask > cidr.max_prefix_len() {
                return Err(Failure::Usage(format!("--node-cidr-mask-size {mask}: no part of --cluster-cidr {cidr}")));
            }
            settings.cluster_cidrs = vec![(cidr, mask)];
        }
        let mut config = controllers::Config::new(settings, UPSTREAM)?;
        config.election = election(&self.election, UPSTREAM, env)?;
        Ok((config, inventory))
    }

    fn authority(&self, env: &Env, features: Features) -> anyhow::Result<FlagsAuthority> {
        const FLAG: &str = "service-account-private-key-file";
        let tokens = self.service_account_private_key_file.as_ref().map(|file| {
            let pem = read(file, FLAG)?;
            SigningKey::from_pem(&pem).with_context(|| format!("--{FLAG} {}", file.display()))
        });
        let (signer, tokens) = (self.signing.signer(env)?, tokens.transpose()?);
        Ok(FlagsAuthority { signer, tokens, features, kinds: OnceLock::new() })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

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
        for (name, _) in UnsupportedUpstreamFlags::flags() {
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
        let asked =
            ["--horizontal-pod-autoscaler-tolerance=0.5", "--terminated-pod-gc-threshold=7", "--controllers=*,-job"];
        let config = config(&asked).unwrap();
        assert_eq!(
            (config.settings.options.autoscaler.tolerance, config.settings.options.pods.terminated_max),
            (0.5, 7)
        );
        assert_eq!(config.disabled, ["job-controller"]);
    }

    #[test]
    fn nodes_get_addresses_if_the_flag_is_set() {
        assert!(config(&["--cluster-cidr=10.0.0.0/16"]).unwrap().settings.cluster_cidrs.is_empty());
        let asked = ["--cluster-cidr=10.0.0.0/16", "--allocate-node-cidrs=true"];
        assert_eq!(config(&asked).unwrap().settings.cluster_cidrs[0].1, 24);
        let wrong = [asked[0], asked[1], "--node-cidr-mask-size=12"];
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
