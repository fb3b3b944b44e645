//! The assembled server: a tower service for this process's components, and the same over TLS for everybody else.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use machinery_api::features::Features;
use machinery_api::{ApiError, GroupVersionResource};
use machinery_env::Env;
use machinery_serve::unread::{UnreadBody, UnreadBounds};
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::admission::{AdmissionConfiguration, Chain, ImageMetadata, Plugin};
use crate::auth::jwt::SigningKey;
use crate::auth::tls::{self, Acceptor};
use crate::auth::{AuthenticateToken, Authenticator, Authorize, Authorizer};
use crate::bootstrap::{self, Cluster};
use crate::catalog::{Catalog, Served, Taken};
use crate::component_statuses;
use crate::conversion::Converter;
use crate::extensions::Extensions;
use crate::http::dispatch::BODY_BYTES_MAX;
use crate::http::handle::{HandlerDeps, RequestHandler};
use crate::http::kubelets::Kubelets;
use crate::http::metrics::Metrics;
use crate::http::services::Services;
use crate::node_metrics::{self, NodeMetrics};
use crate::registry::versions::Versions;
use crate::registry::{Registry, cached, facts_of_fields};
use crate::webhook::{self, Caller, Reach};
use apiserver_resources::ResourceInfo;
use apiserver_resources::allocate::{Allocator, ServiceNetwork};
use apiserver_resources::checking::{Warning, type_check};
use apiserver_storage::cache::{Lookup, WatchCache};
use apiserver_storage::store::{Record, Store, StoreError};

/// Planned again this often at a start: others write, too, where several servers share a store.
const BOOTSTRAP_TRIES_MAX: usize = 3;
/// How often the objects are looked after that a cluster can't do without (upstream: 10 s).
const MEND_INTERVAL: Duration = Duration::from_secs(10);

/// Everything that a server is made of beside its store.
pub struct Config {
    /// Where clients reach it (`host:port`), for discovery.
    pub address: String,
    /// Signs and checks tokens.
    pub signing_key: Arc<SigningKey>,
    /// Where Services get their addresses and ports from.
    pub services: ServiceNetwork,
    /// For how long pods that say nothing else tolerate a node that is not ready or unreachable (upstream: 300).
    pub toleration_seconds: i64,
    /// The feature gates of built-in kinds.
    pub features: Features,
    /// Reaches nodes.
    pub kubelets: Kubelets,
    /// The process's metrics, which `/metrics` shows.
    pub registry: Arc<Mutex<MetricsRegistry>>,
}

#[cfg(test)]
impl Config {
    /// A server that is asked in its own process only: a key of its own, upstream's addresses and ports, no kubelet.
    pub(crate) fn of_tests() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        Self {
            address: "127.0.0.1:6443".into(),
            signing_key: Arc::new(SigningKey::from_pem(&key).expect("a key that was just made")),
            services: ServiceNetwork {
                cidr: "10.96.0.0/12".parse().expect("a block"),
                node_ports: 30000..=32767,
                loopback: Vec::new(),
            },
            toleration_seconds: 300,
            features: Features::default(),
            kubelets: Kubelets::default(),
            registry: Arc::default(),
        }
    }
}

/// Who is asked after the built-in authenticators, authorizers and admission plugins, in order; each may wait.
#[derive(Default)]
pub struct Chains {
    /// About tokens that the server did not issue.
    pub authenticators: Vec<Arc<dyn AuthenticateToken>>,
    /// About what neither the node authorizer nor RBAC allows.
    pub authorizers: Vec<Arc<dyn Authorize>>,
    /// About what is written.
    pub plugins: Vec<Arc<dyn Plugin>>,
    /// What admission plugins are configured with.
    pub admission: Arc<AdmissionConfiguration>,
    /// Who knows what images say of themselves.
    pub images: Option<Arc<dyn ImageMetadata>>,
}

/// The API server.
#[derive(Clone)]
pub struct Apiserver {
    front: Arc<RequestHandler>,
    /// Held while a resource comes or goes: one at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl Apiserver {
    /// Reads the store into memory and assembles the server; nothing is served yet.
    pub async fn open(env: &Env, store: Arc<dyn Store>, config: Config) -> Result<Self, StoreError> {
        Self::open_with(env, store, config, Chains::default()).await
    }

    /// The same with more who say who asks, and whether they may.
    pub async fn open_with(
        env: &Env,
        store: Arc<dyn Store>,
        config: Config,
        chains: Chains,
    ) -> Result<Self, StoreError> {
        let catalog = Catalog::under(&config.features, &config.address);
        let cache = WatchCache::open(store, catalog.all_stored().filter_map(cached).collect()).await?;
        let served = Arc::new(Served::new(catalog));
        let objects = Arc::new(Lookup::new(cache.clone(), {
            let served = served.clone();
            move |group, plural| served.with(|catalog| catalog.prefix(group, plural))
        }));
        let metrics = Arc::new(NodeMetrics::new(config.kubelets.clone(), objects.clone(), env.clone()));
        for resource in node_metrics::resources(&metrics) {
            served.add(Arc::new(resource)).map_err(|taken| StoreError::Unavailable(taken.to_string()))?;
        }
        let statuses = component_statuses::resource(cache.clone());
        served.add(Arc::new(statuses)).map_err(|taken| StoreError::Unavailable(taken.to_string()))?;
        let authorizer = Arc::new(Authorizer::default().with(chains.authorizers));
        let (kubelets, objects_of_services) = (config.kubelets.clone(), objects.clone());
        let reach: Arc<dyn Reach> = Arc::new(Services { objects: objects_of_services, kubelets, env: env.clone() });
        let caller = Caller::new(reach, webhook::Metrics::new(&config.registry));
        let converter = Arc::new(Converter::new(caller.clone(), env.clone()));
        let admission = Chain::new(env, authorizer.clone())
            .with_toleration_seconds(config.toleration_seconds)
            .with_images(chains.images)
            .with_configuration(chains.admission)
            .with_converter(&converter)
            .with_policies(&served)
            .with_webhooks(&served, &caller);
        let authenticator = Arc::new(Authenticator::new(env, config.signing_key).with(chains.authenticators));
        let registry = Registry {
            served,
            env: env.clone(),
            cache,
            objects,
            versions: Arc::new(Versions::new(converter)),
            admission: chains.plugins.into_iter().fold(admission, Chain::with_plugin),
            authorizer: authorizer.clone(),
            allocator: Allocator::new(config.services, {
                let env = env.clone();
                move |size| env.below(size)
            }),
        };
        let extensions = Arc::new(Extensions::default());
        extensions.load(&registry).await;
        registry.reserve().await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let front = RequestHandler::new(HandlerDeps {
            env: env.clone(),
            registry,
            authenticator,
            authorizer,
            metrics: Metrics::new(config.registry),
            kubelets: config.kubelets,
            address: config.address,
        });
        let front = Arc::new(front);
        tokio::spawn(extensions.follow(Arc::downgrade(&front)));
        Ok(Self { front, changing: Arc::default() })
    }

    /// Serves one more resource from now on: its routes, discovery, OpenAPI, lists and watches. What is stored at its keys is
    /// there when this returns.
    pub async fn add_resource(&self, resource: ResourceInfo) -> Result<(), Taken> {
        let _one = self.changing.lock().await;
        let registry = &self.front.deps.registry;
        let resource = Arc::new(resource);
        registry.served.load().check_free(&resource)?;
        // In the cache first: a request that finds the resource can list it.
        if let Some(cached) = cached(&resource) {
            registry.cache.register(cached).await;
        }
        registry.served.add(resource)
    }

    /// Serves a resource no more: requests from now on get 404, and its watches end. What is stored stays. False: it was not
    /// served.
    pub async fn remove_resource(&self, name: GroupVersionResource<'_>) -> bool {
        let _one = self.changing.lock().await;
        let registry = &self.front.deps.registry;
        let Some(gone) = registry.served.remove(name) else { return false };
        if gone.is_storage_version()
            && let Some(prefix) = &gone.prefix
        {
            registry.cache.unregister(prefix.as_str()).await;
        }
        true
    }

    /// The service for components of this process: a [`UserInfo`](crate::auth::UserInfo) in a request's extensions is
    /// its identity.
    #[must_use]
    pub fn service(&self) -> ApiService {
        ApiService { front: self.front.clone() }
    }

    /// The objects, for what is built beside the server in this process.
    #[must_use]
    pub fn objects(&self) -> Arc<Lookup> {
        self.front.deps.registry.objects.clone()
    }

    /// What is wrong with a ValidatingAdmissionPolicy's expressions by the types that are served now.
    #[must_use]
    pub fn check_policy(&self, policy: &serde_json::Value) -> Vec<Warning> {
        self.front.deps.registry.served.with(|catalog| type_check(policy, catalog.resources()))
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> Arc<WatchCache> {
        self.front.deps.registry.cache.clone()
    }

    /// Writes the default objects that are missing or have lost something; then `/readyz` may say that they are there.
    /// Call it once before serving; [`mend`](Self::mend) keeps up those that a running cluster can't do without.
    pub async fn bootstrap(&self, cluster: &Cluster) -> Result<(), ApiError> {
        let registry = &self.front.deps.registry;
        let desired = bootstrap::desired(cluster, &registry.served.load());
        for _ in 0..BOOTSTRAP_TRIES_MAX {
            let writes = bootstrap::plan(&*registry.objects, &desired);
            if writes.is_empty() {
                break;
            }
            registry.install(writes).await?;
        }
        self.set_ready();
        Ok(())
    }

    /// Moves Services and nodes with the cluster's address blocks. Call it before [`bootstrap`](Self::bootstrap).
    pub async fn follow(&self, moves: &[bootstrap::moved::Move]) -> Result<(), ApiError> {
        let registry = &self.front.deps.registry;
        registry.install(bootstrap::moved::plan(&*registry.objects, moves)).await
    }

    /// Brings back the first namespaces, the `kubernetes` Service and its endpoints whenever they go, until `stop`.
    pub async fn mend(&self, cluster: &Cluster, stop: CancellationToken) {
        let registry = &self.front.deps.registry;
        let desired = bootstrap::desired(cluster, &registry.served.load());
        let desired: Vec<_> = desired.into_iter().filter(bootstrap::Desired::is_vital).collect();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(MEND_INTERVAL) => {}
            }
            let writes = bootstrap::plan(&*registry.objects, &desired);
            if !writes.is_empty()
                && let Err(error) = registry.install(writes).await
            {
                tracing::warn!(%error, "default objects could not be brought back; trying again");
            }
        }
    }

    /// The default objects are there: `/readyz` may say so.
    pub fn set_ready(&self) {
        self.front.bootstrapped.store(true, Ordering::Release);
    }

    /// Ends all watches and makes `/readyz` fail; what is being answered goes on.
    pub fn stop(&self) {
        self.front.stop.cancel();
    }

    /// Serves over TLS until `stop`; watches end at once, other requests have a moment.
    pub async fn serve(&self, listener: TcpListener, acceptor: Acceptor, stop: CancellationToken) {
        let front = self.front.clone();
        let ending = {
            let (front, stop) = (self.front.clone(), stop.clone());
            async move {
                stop.cancelled().await;
                front.stop.cancel();
            }
        };
        let handle = move |request: Request<hyper::body::Incoming>| {
            let front = front.clone();
            let unread = UnreadBounds::beyond(BODY_BYTES_MAX);
            front.handle(request.map(|body| axum::body::Body::new(UnreadBody::new(body, unread))))
        };
        tokio::join!(tls::serve(listener, acceptor, handle, stop), ending);
    }
}

/// Makes a record of what a store of the first format holds, which kept objects as JSON alone.
#[must_use]
pub fn read_plain(key: &str, body: &[u8]) -> Record {
    static BUILT_IN: LazyLock<Catalog> = LazyLock::new(|| Catalog::built_in(""));
    Record::read(body, |object| BUILT_IN.of_key(key).map(|resource| facts_of_fields(resource, object)))
}

/// The server as a tower service over any body.
#[derive(Clone)]
pub struct ApiService {
    front: Arc<RequestHandler>,
}

impl<B> Service<Request<B>> for ApiService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let front = self.front.clone();
        Box::pin(async move { Ok(front.handle(request.map(Body::new)).await) })
    }
}
