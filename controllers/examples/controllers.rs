//! Runs the controllers against any cluster: `controllers KUBECONFIG [CA]`. For tests with an upstream API server.
//!
//! The kubeconfig's user needs the right to impersonate. Each controller acts as its own service account, which shows
//! that upstream's default roles suffice.

use std::sync::Arc;

use controllers::{Authority, Clients, Config, Settings};
use kube::config::{KubeConfigOptions, Kubeconfig};
use machinery_env::Env;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// No API server accepts these tokens; the example shows only that the Secrets are filled.
struct Unsigned;

impl Authority for Unsigned {
    fn signs_tokens(&self) -> bool {
        true
    }

    fn sign_token(&self, claims: &Value) -> Option<String> {
        Some(format!("unsigned.{claims}"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter("info,controllers=debug,machinery=debug").init();
    let mut arguments = std::env::args().skip(1);
    let kubeconfig = Kubeconfig::read_from(arguments.next().ok_or("the kubeconfig's path is missing")?)?;
    let root_ca_pem = arguments.next().map(std::fs::read_to_string).transpose()?.unwrap_or_default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let env = Env::real();
    let timers = env.clone();
    let user = move |name: &str| {
        let mut config = config.clone();
        config.auth_info.impersonate = Some(name.to_owned());
        machinery_client::from_config(&timers, config).expect("the configuration was good for the first client")
    };
    let client = user("system:kube-controller-manager");
    let clients: Clients = Arc::new(move |account| user(&format!("system:serviceaccount:kube-system:{account}")));
    let stop = CancellationToken::new();
    let ended = stop.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        ended.cancel();
    });
    let settings = Settings {
        root_ca_pem,
        cluster_cidrs: vec![("10.244.0.0/16".parse()?, 24)],
        authority: Arc::new(Unsigned),
        ..Settings::default()
    };
    let identity = format!("example_{}", env.uid());
    Ok(controllers::run(client, clients, env, Config::new(settings, &identity)?, stop).await?)
}
