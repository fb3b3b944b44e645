//! The HTTP client of the exporters: bounded in time and response size, without redirects.

use std::path::Path;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError, ResponseBodyTooLarge};
use reqwest::{Certificate, Client, Identity};

use tools_command::host::{is_loopback, of_url};

use crate::settings::SignalSettings;

/// Maximum bytes of a collector's response, which has at most an error message.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// Calls one collector.
#[derive(Debug)]
pub(crate) struct CollectorClient(Client);

impl CollectorClient {
    /// # Errors
    /// If a certificate file can't be used.
    pub(crate) fn new(settings: &SignalSettings) -> anyhow::Result<Self> {
        let mut builder = Client::builder()
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .timeout(settings.request_timeout);
        if is_loopback(of_url(&settings.endpoint)) {
            builder = builder.no_proxy();
        }
        if let Some(ca) = &settings.ca {
            let certificates = Certificate::from_pem_bundle(&read(ca, "OTEL_EXPORTER_OTLP_CERTIFICATE")?)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .with_context(|| format!("OTEL_EXPORTER_OTLP_CERTIFICATE={} has no PEM certificate", ca.display()))?;
            builder = builder.tls_certs_only(certificates);
        }
        if let Some((certificate, key)) = &settings.identity {
            let mut pem = read(certificate, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")?;
            pem.extend(read(key, "OTEL_EXPORTER_OTLP_CLIENT_KEY")?);
            let identity = Identity::from_pem(&pem)
                .context("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY are no PEM certificate and key")?;
            builder = builder.identity(identity);
        }
        Ok(Self(builder.build()?))
    }
}

fn read(path: &Path, variable: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{variable}={} can't be read", path.display()))
}

#[async_trait::async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut response = self.0.execute(request.try_into()?).await?;
        let mut answer = Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            *headers = std::mem::take(response.headers_mut());
        }
        let mut body = BytesMut::new();
        while let Some(piece) = response.chunk().await? {
            if body.len() + piece.len() > RESPONSE_BYTES_MAX {
                return Err(Box::new(ResponseBodyTooLarge::new()));
            }
            body.extend_from_slice(&piece);
        }
        Ok(answer.body(body.freeze())?)
    }
}
