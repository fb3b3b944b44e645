//! The assembled server: a tower service for the components of this process, and the same over TLS for all other
//! clients.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use machinery_api::GroupVersionResource;
use machinery_api::features::Features;
use machinery_env::Env;
use machinery_serve::accept::Listener;
use machinery_serve::connection::RequestBody;
use machinery_serve::sockets::{Layer, SocketTable};
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::component_statuses;
use crate::extensions::Extensions;
use crate::fair_queue::budget;
use crate::http::handle::{HandlerDeps, RequestHandler};
use crate::http::kubelets::Kubelets;
use crate::http::metrics::Metrics;
use crate::http::services::Services;
use crate::http::static_files::StaticFiles;
use crate::http::store_metrics::StoreCollector;
use crate::node_metrics::{self, NodeMetrics};
use crate::registry::versions::CustomVersions;
use crate::registry::{Registry, facts_of_fields};
use crate::tls::{self, Acceptor};
use apiserver_admission::{AdmissionConfiguration, Chain, ImageMetadata, Plugin};
use apiserver_auth::jwt::SigningKey;
use apiserver_auth::{AuthenticateToken, Authenticator, Authorize, Authorizer};
use apiserver_catalog::{Catalog, ResourceConflict, SharedCatalog};
use apiserver_resources::ResourceInfo;
use apiserver_resources::allocate::{Allocator, ServiceNetwork};
use apiserver_resources::checking::{Warning, type_check};
use apiserver_storage::cache::{Lookup, Resource, WatchCache};
use apiserver_storage::store::{Record, Store, StoreError};
use apiserver_webhook::conversion::Converter;
use apiserver_webhook::{Caller, ServiceDialer};

#[cfg(test)]
mod chain_tests;
mod default_objects;
#[cfg(test)]
mod resource_tests;

/// The configuration of a server, except for its store.
pub struct Config {
    /// The address for clients (`host:port`), for discovery.
    pub address: String,
    /// Signs and verifies tokens.
    pub signing_key: Arc<SigningKey>,
    /// The address block and port range of Services.
    pub services: ServiceNetwork,
    /// How long pods without tolerations of their own tolerate a node that is not ready or unreachable, in seconds
    /// (upstream: 300).
    pub toleration_seconds: i64,
    /// The feature gates of built-in kinds.
    pub features: Features,
    /// The client for kubelets.
    pub kubelets: Kubelets,
    /// The process's metrics for `/metrics`.
    pub registry: Arc<Mutex<MetricsRegistry>>,
}

#[cfg(test)]
impl Config {
    /// A server without a listener: a new key, upstream's addresses and ports, no kubelet client.
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
            kubelets: Kubelets::disabled(&Env::real()),
            registry: Arc::default(),
        }
    }
}

/// Additions to the chains of authenticators, authorizers and admission plugins. They run after the built-in ones, in
/// order; each may be asynchronous.
#[derive(Default)]
pub struct ChainExtensions {
    /// For tokens of other issuers.
    pub authenticators: Vec<Arc<dyn AuthenticateToken>>,
    /// For requests that neither the node authorizer nor RBAC allows.
    pub authorizers: Vec<Arc<dyn Authorize>>,
    /// For all writes.
    pub plugins: Vec<Arc<dyn Plugin>>,
    /// The configuration of admission plugins.
    pub admission: Arc<AdmissionConfiguration>,
    /// Reads the metadata of images.
    pub images: Option<Arc<dyn ImageMetadata>>,
    /// Files beside the API, for those whom an authorizer allows to read them.
    pub files: Option<Arc<StaticFiles>>,
}

/// The API server.
#[derive(Clone)]
pub struct Apiserver {
    handler: Arc<RequestHandler>,
    /// Serializes adding and removing resources.
    resource_changes: Arc<tokio::sync::Mutex<()>>,
}

impl Apiserver {
    /// Loads the store into memory and assembles the server; nothing is served yet.
    pub fn open(env: &Env, store: Arc<dyn Store>, config: Config) -> BoxFuture<'_, Result<Self, StoreError>> {
        Self::open_with(env, store, config, ChainExtensions::default())
    }

    /// The same with additional chain members.
    pub fn open_with(
        env: &Env,
        store: Arc<dyn Store>,
        config: Config,
        additions: ChainExtensions,
    ) -> BoxFuture<'_, Result<Self, StoreError>> {
        Box::pin(Self::load(env, store, config, additions))
    }

    async fn load(
        env: &Env,
        store: Arc<dyn Store>,
        config: Config,
        additions: ChainExtensions,
    ) -> Result<Self, StoreError> {
        let catalog = Catalog::with_features(&config.features, &config.address);
        let cache = WatchCache::open(env, store, catalog.all_stored().filter_map(Resource::of).collect()).await?;
        let served = Arc::new(SharedCatalog::new(catalog));
        let objects = Arc::new(Lookup::new(cache.clone(), {
            let served = served.clone();
            move |group, plural| served.with(|catalog| catalog.prefix(group, plural))
        }));
        let metrics = Arc::new(NodeMetrics::new(config.kubelets.clone(), objects.clone(), env.clone()));
        for resource in node_metrics::resources(&metrics) {
            served.add(Arc::new(resource)).map_err(|conflict| StoreError::Unavailable(conflict.to_string()))?;
        }
        let statuses = component_statuses::resource(cache.clone());
        served.add(Arc::new(statuses)).map_err(|conflict| StoreError::Unavailable(conflict.to_string()))?;
        let authorizer = Arc::new(Authorizer::default().with_authorizers(additions.authorizers));
        let (kubelets, objects_of_services) = (config.kubelets.clone(), objects.clone());
        let service_dialer: Arc<dyn ServiceDialer> =
            Arc::new(Services { objects: objects_of_services, kubelets, env: env.clone() });
        let caller = Caller::new(service_dialer, apiserver_webhook::Metrics::new(&config.registry), env.clone());
        let converter = Arc::new(Converter::new(caller.clone(), env.clone()));
        let admission = Chain::new(env, authorizer.clone())
            .with_interrupt(budget::is_exhausted)
            .with_toleration_seconds(config.toleration_seconds)
            .with_images(additions.images)
            .with_configuration(additions.admission)
            .with_converter(&converter)
            .with_policies(&served)
            .with_webhooks(&served, &caller);
        let authenticator =
            Arc::new(Authenticator::new(env, config.signing_key).with_authenticators(additions.authenticators));
        let registry = Registry {
            served,
            env: env.clone(),
            cache,
            objects,
            versions: Arc::new(CustomVersions::new(converter)),
            admission: additions.plugins.into_iter().fold(admission, Chain::with_plugin),
            authorizer: authorizer.clone(),
            allocator: Allocator::new(config.services, {
                let env = env.clone();
                move |size| env.below(size)
            }),
        };
        let extensions = Arc::new(Extensions::default());
        extensions.load(&registry).await;
        registry.repair_claims().await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let metrics = Metrics::new(config.registry);
        let (served, cache) = (registry.served.clone(), Arc::downgrade(&registry.cache));
        metrics.collect(Box::new(StoreCollector { served, cache }));
        let handler = RequestHandler::new(HandlerDeps {
            env: env.clone(),
            registry,
            authenticator,
            authorizer,
            metrics,
            kubelets: config.kubelets,
            address: config.address,
            files: additions.files,
        });
        let handler = Arc::new(handler);
        tokio::spawn(extensions.run(Arc::downgrade(&handler), env.clone()));
        Ok(Self { handler, resource_changes: Arc::default() })
    }

    #[cfg(test)]
    pub(crate) fn handler(&self) -> &Arc<RequestHandler> {
        &self.handler
    }

    /// Starts to serve a resource: its routes, discovery, OpenAPI, lists and watches. Returns once its stored objects
    /// are in the watch cache.
    pub async fn add_resource(&self, resource: ResourceInfo) -> Result<(), ResourceConflict> {
        let _one = self.resource_changes.lock().await;
        let registry = &self.handler.deps.registry;
        let resource = Arc::new(resource);
        registry.served.load().check_free(&resource)?;
        // The cache comes first: a request that finds the resource can list it.
        if let Some(cached) = Resource::of(&resource) {
            registry.cache.register(cached).await;
        }
        registry.served.add(resource)
    }

    /// Stops to serve a resource: new requests get 404, and its watches end. Stored objects are kept. Returns false if
    /// it was not served.
    pub async fn remove_resource(&self, name: GroupVersionResource<'_>) -> bool {
        let _one = self.resource_changes.lock().await;
        let registry = &self.handler.deps.registry;
        let Some(gone) = registry.served.remove(name) else { return false };
        if gone.is_storage_version()
            && let Some(prefix) = &gone.prefix
        {
            registry.cache.unregister(prefix.as_str()).await;
        }
        true
    }

    /// The service for components of this process: a [`UserInfo`](apiserver_auth::UserInfo) in a request's extensions
    /// is its identity.
    #[must_use]
    pub fn service(&self) -> ApiService {
        ApiService { handler: self.handler.clone() }
    }

    /// Object lookups for components of this process.
    #[must_use]
    pub fn objects(&self) -> Arc<Lookup> {
        self.handler.deps.registry.objects.clone()
    }

    /// Type-checks the expressions of a ValidatingAdmissionPolicy against the served types.
    #[must_use]
    pub fn check_policy(&self, policy: &serde_json::Value) -> Vec<Warning> {
        self.handler.deps.registry.served.with(|catalog| type_check(policy, catalog.resources()))
    }

    /// The watch cache.
    #[must_use]
    pub fn cache(&self) -> Arc<WatchCache> {
        self.handler.deps.registry.cache.clone()
    }

    /// Marks the default objects as created for `/readyz`.
    pub fn set_ready(&self) {
        self.handler.bootstrapped.store(true, Ordering::Release);
    }

    /// Ends all watches and fails `/readyz`; requests in flight continue.
    pub fn stop(&self) {
        self.handler.stop.cancel();
    }

    /// Serves over TLS until `stop`; then watches end at once, and other requests get a grace period.
    pub fn serve(&self, listener: Listener, acceptor: Acceptor, stop: CancellationToken) -> BoxFuture<'_, ()> {
        Box::pin(self.serve_tls(listener, acceptor, stop))
    }

    async fn serve_tls(&self, listener: Listener, acceptor: Acceptor, stop: CancellationToken) {
        let handler = self.handler.clone();
        let ending = {
            let (handler, stop) = (self.handler.clone(), stop.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    // Other processes get their answers from the next process; this one's components go on.
                    () = SocketTable::process().retired(Layer::Control) => handler.connections_stop.cancel(),
                }
                stop.cancelled().await;
                handler.stop.cancel();
            }
        };
        let handle = move |request: Request<RequestBody>| handler.clone().handle(request.map(axum::body::Body::new));
        tokio::join!(tls::serve(listener, acceptor, handle, stop), ending);
    }
}

/// Makes a record from the first storage format, which had only the JSON of objects.
#[must_use]
pub fn read_first_format(key: &str, body: &[u8]) -> Record {
    static BUILT_IN: LazyLock<Catalog> = LazyLock::new(|| Catalog::built_in(""));
    Record::read(body, |object| BUILT_IN.of_key(key).map(|resource| facts_of_fields(resource, object)))
}

/// The server as a tower service over any body.
#[derive(Clone)]
pub struct ApiService {
    handler: Arc<RequestHandler>,
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
        let handler = self.handler.clone();
        Box::pin(handler.handle(request.map(Body::new)).map(Ok))
    }
}
