//! The built-in registry: its address, its password and its advertisement.

use std::net::SocketAddr;

use anyhow::Context as _;
use images::RegistryAccess;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use machinery_client::Api;
use machinery_client::request::PatchType;
use machinery_env::Env;
use oci_registry::{Credentials, distribution as registry};
use serde_json::json;
use tokio::net::TcpListener;

use super::ground::Ground;
use super::role::Component;
use crate::data_dir::{DataDir, write_atomically};

/// The registry's only user (contract.md §4).
pub(crate) const USER: &str = "coracle";

/// Random bytes in a password.
const PASSWORD_BYTES: usize = 24;

/// Binds the registry's socket: the address of the last run if it is free, else any.
pub(super) async fn bind(data: &DataDir) -> anyhow::Result<TcpListener> {
    let before =
        std::fs::read_to_string(data.registry_address()).ok().and_then(|text| text.trim().parse::<SocketAddr>().ok());
    let listener = match before {
        Some(address) => match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind("127.0.0.1:0").await.context("the registry cannot listen on 127.0.0.1")?,
        },
        None => TcpListener::bind("127.0.0.1:0").await.context("the registry cannot listen on 127.0.0.1")?,
    };
    let address = listener.local_addr()?;
    write_atomically(&data.registry_address(), format!("{address}\n").as_bytes())?;
    Ok(listener)
}

/// The password; generated at the first start.
pub(super) fn password(data: &DataDir, env: &Env) -> anyhow::Result<String> {
    let path = data.registry_password();
    match std::fs::read_to_string(&path) {
        Ok(password) if !password.trim().is_empty() => Ok(password.trim().to_owned()),
        _ => {
            let mut bytes = [0; PASSWORD_BYTES];
            env.fill(&mut bytes);
            let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            write_atomically(&path, password.as_bytes())?;
            Ok(password)
        }
    }
}

/// The registry's server.
pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let listener = ground.take_registry_listener()?;
    let credentials = Credentials { user: USER.into(), password: ground.registry_password.clone() };
    let (env, stop) = (ground.env.clone(), ground.stop.servers.clone());
    let mut router = registry::router(ground.blobs.clone(), &credentials, env.clone());
    if let Some(images) = &ground.images {
        // The API of `coracle image`, for readers of the data folder.
        router = router.merge(registry::authenticated(images::router(images.clone()), &credentials));
    }
    let run = async move {
        registry::serve(listener, router, env, stop).await;
        Ok(())
    };
    Ok(vec![Component::new("registry", run)])
}

/// Publishes the registry's address in the cluster (KEP-1755).
pub(super) async fn advertise(client: &Client, address: &str) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-public");
    let hosting = format!(
        "host: \"{address}\"\nhostFromContainerRuntime: \"registry.local\"\nhelp: \"coracle push FILE.wasm registry.local/NAME:TAG\"\n"
    );
    let data = json!({"localRegistryHosting.v1": hosting});
    let map = json!({"metadata": {"name": "local-registry-hosting"}, "data": data});
    match maps.create(&map).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            maps.patch("local-registry-hosting", PatchType::Merge, &json!({ "data": data })).await?;
            Ok(())
        }
        Err(error) => Err(error).context("the registry cannot be advertised"),
    }
}

/// Address and credentials of the registry for this cluster's own parts.
pub(super) fn access(address: SocketAddr, password: &str) -> RegistryAccess {
    let credentials = Credentials { user: USER.into(), password: password.to_owned() };
    RegistryAccess { address: address.to_string(), credentials, ca_pem: None }
}
