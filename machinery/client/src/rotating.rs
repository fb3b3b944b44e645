//! A client whose TLS client certificate changes while it runs.
//!
//! A new certificate gets connections of its own. A request under way, such as a watch, ends on the old connection, which
//! closes then: a watch lasts ten minutes at most, and certificates are renewed long before their end.

use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::AuthInfo;
use kube::{Client, Config};
use machinery_env::Env;
use tokio::sync::watch;
use tower::Service;

use crate::connect::{ClientError, from_config};

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsIdentity {
    /// The certificate with its chain, in PEM.
    pub cert_pem: String,
    /// The private key, in PEM.
    pub key_pem: String,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity(…)")
    }
}

/// A client with the newest certificate. Other credentials of the configuration are not used.
///
/// # Errors
/// If the present certificate or its key can't be used. A later one that can't be used is logged, and the last one stays.
pub fn rotating(
    env: &Env,
    config: Config,
    mut identities: watch::Receiver<Arc<TlsIdentity>>,
) -> Result<Client, ClientError> {
    let namespace = config.default_namespace.clone();
    let first = identities.borrow_and_update().clone();
    let current = with_identity(env, &config, &first)?;
    Ok(ClientBuilder::new(Rotating { env: env.clone(), config, identities, current }, namespace).build())
}

fn with_identity(env: &Env, config: &Config, identity: &TlsIdentity) -> Result<Client, ClientError> {
    let mut config = config.clone();
    config.auth_info = AuthInfo {
        client_certificate_data: Some(STANDARD.encode(&identity.cert_pem)),
        client_key_data: Some(STANDARD.encode(&identity.key_pem).into()),
        ..AuthInfo::default()
    };
    from_config(env, config)
}

/// Passes requests to the client of the newest certificate.
struct Rotating {
    env: Env,
    config: Config,
    identities: watch::Receiver<Arc<TlsIdentity>>,
    current: Client,
}

impl Service<Request<Body>> for Rotating {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, kube::Error>>;

    /// The certificate's client has a queue of its own.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // An error: the sender has ended, and the last certificate stays.
        if self.identities.has_changed().unwrap_or(false) {
            let newest = self.identities.borrow_and_update().clone();
            match with_identity(&self.env, &self.config, &newest) {
                Ok(client) => self.current = client,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a new client certificate is not used");
                }
            }
        }
        let client = self.current.clone();
        Box::pin(async move { client.send(request).await })
    }
}
