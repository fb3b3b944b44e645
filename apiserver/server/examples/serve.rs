//! A developer's tool: the API server alone, for trying it with kubectl, for replaying recorded answers and for measuring.
//! `cargo run -p apiserver --example serve -- DIR PORT [STORE]` writes DIR/kubeconfig and serves until it is killed: over
//! the embedded store in the folder STORE, or over the memory store.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use apiserver::bootstrap::Cluster;
use apiserver::http::kubelets::Kubelets;
use apiserver::server::{Apiserver, Config, read_first_format};
use apiserver::tls::Acceptor;
use apiserver_auth::certificates::Certificates;
use apiserver_auth::folder::write_private;
use apiserver_auth::pki::{Pki, kubeconfig};
use apiserver_resources::allocate::ServiceNetwork;
use apiserver_storage::store::Store;
use apiserver_storage::store::embedded::{EmbeddedStore, Options};
use apiserver_storage::store::memory::MemoryStore;
use machinery_env::Env;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

// As the program's: docs/decisions/0072-allocator.md.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: serve DIR PORT [STORE]")?);
    let port: u16 = arguments.next().ok_or("usage: serve DIR PORT [STORE]")?.parse()?;
    let env = Env::real();
    std::fs::create_dir_all(&dir)?;
    let address = format!("127.0.0.1:{port}");
    let pki = Pki::open_or_create(&dir.join("pki"), &env, &["127.0.0.1".into(), "localhost".into()])?;
    let store: Arc<dyn Store> = match arguments.next() {
        Some(folder) => {
            let options = Options { read_first_format: Box::new(read_first_format), ..Options::default() };
            let store = EmbeddedStore::open(folder.as_ref(), env.clone(), options)?;
            store.start()?;
            store
        }
        None => Arc::new(MemoryStore::new(env.clone())),
    };
    let server = Apiserver::open(
        &env,
        store,
        Config {
            address: address.clone(),
            signing_key: pki.service_account().clone(),
            services: ServiceNetwork { cidr: "10.96.0.0/12".parse()?, node_ports: 30000..=32767, loopback: Vec::new() },
            toleration_seconds: 300,
            features: Default::default(),
            kubelets: Kubelets::new(&env, pki.ca_pem(), pki.admin())?,
            registry: Arc::new(Mutex::new(Default::default())),
        },
    )
    .await?;
    let cluster = Cluster {
        service_ip: "10.96.0.1".parse()?,
        services: "10.96.0.0/12".parse()?,
        address: address.parse()?,
        ca_pem: pki.ca_pem().to_owned(),
        alternative_names: Vec::new(),
    };
    server.bootstrap(&cluster).await?;
    let text = kubeconfig(&format!("https://{address}"), pki.ca_pem(), "admin", pki.admin());
    write_private(&dir.join("kubeconfig"), &text)?;
    let listener = TcpListener::bind(&address).await?;
    let acceptor = Acceptor::new(&env, Arc::new(Certificates::new(pki.serving())?), pki.ca_pem())?;
    server.serve(listener.into(), acceptor, CancellationToken::new()).await;
    Ok(())
}
