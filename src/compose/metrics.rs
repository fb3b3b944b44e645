//! The metrics of a process: one registry, and the endpoint of processes without an API server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::http::prometheus_text;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use clap::Args;
use hyper_util::service::TowerToHyperService;
use machinery_api::features::Features;
use machinery_env::Env;
use machinery_serve::accept::Listener;
use machinery_serve::plain;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use tools_telemetry::metrics::{feature_registry, register_dropped};

/// The registry that the roles of a process share.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// A registry with the metrics of the process itself.
    pub(crate) fn new(gates: &Features) -> Self {
        let mut registry = feature_registry(gates);
        register_dropped(&mut registry);
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Adds metrics.
    pub(crate) fn add(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The registry itself, for the API server's `/metrics`.
    pub(super) fn registry(&self) -> Arc<Mutex<Registry>> {
        self.0.clone()
    }

    fn text(&self) -> String {
        prometheus_text::encode(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where a process shows its metrics and health.
#[derive(Debug, Clone, Args)]
pub(crate) struct MetricsFlags {
    /// Address of GET /metrics and /healthz, over plain HTTP without authentication [default: none]
    #[arg(long, env = "CORACLE_METRICS_BIND", value_name = "ADDR:PORT")]
    metrics_bind: Option<SocketAddr>,
}

impl MetricsFlags {
    /// The address, if there is one.
    pub(crate) fn bind(&self) -> Option<SocketAddr> {
        self.metrics_bind
    }

    /// The metrics at that address.
    pub(crate) fn endpoint(&self, metrics: Metrics) -> MetricsEndpoint {
        MetricsEndpoint(self.metrics_bind.map(|address| (address, metrics)))
    }
}

/// The metrics and the address where a process shows them, if it does.
#[derive(Debug, Clone, Default)]
pub(crate) struct MetricsEndpoint(Option<(SocketAddr, Metrics)>);

impl MetricsEndpoint {
    /// Serves the metrics until `stop`; returns the `ready` line's text about them.
    ///
    /// # Errors
    /// If the address is taken.
    pub(super) fn serve(self, env: &Env, stop: &CancellationToken) -> anyhow::Result<String> {
        let Some((bind, metrics)) = self.0 else { return Ok(String::new()) };
        let listener = Listener::bind_own("metrics", bind)
            .with_context(|| format!("--metrics-bind {bind}: cannot listen there"))?;
        let address = listener.local_addr()?;
        let page = move || {
            let text = metrics.text();
            async move { ([(CONTENT_TYPE, prometheus_text::MEDIA_TYPE)], text) }
        };
        let router = Router::new().route("/metrics", get(page)).route("/healthz", get(|| async { "ok" }));
        let (env, stop) = (env.clone(), stop.clone());
        tokio::spawn(async move {
            let service = |permit| TowerToHyperService::new(router.clone().layer(axum::Extension(permit)));
            plain::serve((listener, "metrics"), Some(Duration::ZERO), &env, &stop, service).await;
        });
        Ok(format!(" metrics=http://{address}/metrics"))
    }
}
