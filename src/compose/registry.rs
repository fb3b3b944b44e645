//! The built-in registry: its address, its password and its advertisement.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use apiserver::tls::{self, Acceptor, Peer};
use apiserver_auth::NODES;
use apiserver_auth::pki::Pki;
use axum::Router;
use http::Request;
use images::RegistryAccess;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use machinery_client::Api;
use machinery_client::request::{PatchType, status_code};
use machinery_env::Env;
use machinery_roles::Component;
use machinery_serve::accept::Listener;
use machinery_serve::connection::RequestBody;
use oci_registry::endpoint::{USER, serves_tls};
use oci_registry::{Credentials, distribution as registry};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::ground::Ground;
use super::ground::addresses::reachable;
use tools_command::data_dir::{DataDir, write_atomically};

/// The namespace of what every part of a cluster may know.
pub(super) const PUBLIC: &str = "kube-public";

/// Random bytes in a password.
const PASSWORD_BYTES: usize = 24;

/// Binds the registry's socket, for other machines where the API server has them: the port of the last run if it is free,
/// else any. Returns the address for clients, too.
pub(super) fn bind(data: &DataDir, server: IpAddr) -> anyhow::Result<(Listener, SocketAddr)> {
    let bind = if server.is_loopback() { Ipv4Addr::LOCALHOST.into() } else { server };
    let before =
        std::fs::read_to_string(data.registry_address()).ok().and_then(|text| text.trim().parse::<SocketAddr>().ok());
    let listen = |port| Listener::bind_own("registry", SocketAddr::new(bind, port));
    let listener = match before.and_then(|address| listen(address.port()).ok()) {
        Some(listener) => listener,
        None => listen(0).with_context(|| format!("the registry cannot listen on {bind}"))?,
    };
    let address = SocketAddr::new(reachable(bind), listener.local_addr()?.port());
    write_atomically(&data.registry_address(), format!("{address}\n").as_bytes())?;
    Ok((listener, address))
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

/// The registry, at its socket.
pub(super) struct RegistryParts {
    env: Env,
    listener: Listener,
    router: Router,
    /// `None`: the address is only this machine's.
    acceptor: Option<Acceptor>,
    stop: CancellationToken,
}

impl RegistryParts {
    /// That of a cluster.
    ///
    /// # Errors
    /// If the serving certificate can't be used.
    pub(super) fn of(ground: &Ground, listener: Listener) -> anyhow::Result<Self> {
        let (env, modules, keys) = (&ground.env, &ground.modules, &ground.keys);
        let credentials = Credentials { user: USER.into(), password: modules.registry_password.clone() };
        let mut router = registry::router(modules.blobs.clone(), &credentials, env.clone());
        if let Some(images) = &modules.images {
            // The API of `coracle image`, for readers of the data folder.
            router = router.merge(registry::authenticated(images::router(images.clone()), &credentials));
        }
        let acceptor = serves_tls(&modules.registry.address)
            .then(|| Acceptor::new(env, keys.certificates.clone(), keys.pki.ca_pem()));
        let (acceptor, stop) = (acceptor.transpose()?, ground.stops.servers.clone());
        Ok(Self { env: env.clone(), listener, router, acceptor, stop })
    }

    /// The registry's server.
    pub(super) fn build(self) -> Vec<Component> {
        let Self { env, listener, router, acceptor, stop } = self;
        let Some(acceptor) = acceptor else {
            let run = async move { registry::serve(listener, router, env, stop).await };
            return vec![Component::stopping("registry", run)];
        };
        let run = async move {
            let handle = move |request: Request<RequestBody>| {
                let (router, now) = (router.clone(), env.now());
                async move {
                    // The router is infallible.
                    let Ok(response) = router.oneshot(with_reader(request, now)).await;
                    response
                }
            };
            tls::serve(listener, acceptor, handle, stop).await;
        };
        vec![Component::stopping("registry", run)]
    }
}

/// Marks the requests of nodes.
fn with_reader(mut request: Request<RequestBody>, now: Timestamp) -> Request<RequestBody> {
    let user = request.extensions().get::<Peer>().and_then(|peer| peer.certificate.user_at(now));
    let node = user.is_some_and(|user| user.groups.iter().any(|group| group == NODES));
    if node {
        request.extensions_mut().insert(registry::NodeReader);
    }
    request
}

/// Publishes the registry's address in the cluster (KEP-1755).
pub(super) async fn advertise(client: &Client, address: &str) -> anyhow::Result<()> {
    let hosting = format!(
        "host: \"{address}\"\nhostFromContainerRuntime: \"registry.local\"\nhelp: \"coracle push FILE.wasm registry.local/NAME:TAG\"\n"
    );
    let data = json!({"localRegistryHosting.v1": hosting});
    put_public(client, "local-registry-hosting", &data).await.context("the registry cannot be advertised")
}

/// Creates the ConfigMap `name` in `kube-public`, or sets these fields of it.
///
/// # Errors
/// If the API server rejects it.
pub(super) async fn put_public(client: &Client, name: &str, data: &Value) -> Result<(), kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), PUBLIC);
    match maps.create(&json!({"metadata": {"name": name}, "data": data})).await {
        Err(error) if status_code(&error) == 409 => {
            maps.patch(name, PatchType::Merge, &json!({ "data": data })).await.map(drop)
        }
        created => created.map(drop),
    }
}

/// Address and credentials of the registry for this cluster's own parts.
pub(super) fn access(address: SocketAddr, password: &str, pki: &Pki) -> RegistryAccess {
    let credentials = Credentials { user: USER.into(), password: password.to_owned() };
    let address = address.to_string();
    let ca_pem = serves_tls(&address).then(|| pki.ca_pem().into());
    RegistryAccess::with_account(address, credentials, ca_pem)
}
