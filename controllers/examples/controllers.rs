//! Runs the controllers against any cluster: `controllers KUBECONFIG [CA]`. For trying them on an upstream apiserver.

use controllers::{Config, Settings};
use machinery::env::Env;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter("info,controllers=debug,machinery=debug").init();
    let mut arguments = std::env::args().skip(1);
    let kubeconfig = arguments.next().ok_or("the kubeconfig's path is missing")?;
    let root_ca_pem = arguments.next().map(std::fs::read_to_string).transpose()?.unwrap_or_default();
    let client = machinery::client::from_kubeconfig(kubeconfig).await?;
    let stop = CancellationToken::new();
    let ended = stop.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        ended.cancel();
    });
    let settings = Settings { root_ca_pem, ..Settings::default() };
    let env = Env::real();
    let identity = format!("example_{}", env.uid());
    // Everything in the name of the kubeconfig's user, who must be allowed to do it all.
    let same = client.clone();
    let clients: controllers::Clients = std::sync::Arc::new(move |_| same.clone());
    Ok(controllers::run(client, clients, env, Config::new(settings, &identity), stop).await?)
}
