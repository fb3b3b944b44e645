//! Asks webhooks: JSON over TLS, to a URL or a Service, with a bound on how long it takes and how much comes back. No
//! redirect is followed, and nothing but the answer's status and body is looked at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apiserver_resources::objects::ObjectReader;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// TLS configurations that are kept, one for each bundle of certificates.
const CONFIGS_MAX: usize = 256;
/// What is said of an answer that is no success.
const REFUSAL_BYTES_MAX: usize = 512;

/// Where a webhook is (`clientConfig`).
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// `clientConfig`
    pub config: &'a Value,
    /// How long it may take in all.
    pub timeout: Duration,
    /// How many bytes it may answer.
    pub answer_max: usize,
}

/// Asks webhooks.
#[derive(Default)]
pub struct Client {
    configs: Mutex<HashMap<String, Arc<ClientConfig>>>,
}

/// An address, the name that its certificate has, and the path to ask.
#[derive(Debug, PartialEq)]
struct Place {
    address: String,
    name: String,
    authority: String,
    path: String,
}

impl Client {
    /// Posts JSON and reads the answer of a success. The error is a sentence without the webhook's name.
    pub async fn post(&self, objects: &dyn ObjectReader, target: Target<'_>, body: Vec<u8>) -> Result<Bytes, String> {
        let place = place(target.config, |namespace, name| objects.get("", "services", namespace, name))?;
        let asked = format!("Post \"https://{}{}\"", place.authority, place.path);
        match tokio::time::timeout(target.timeout, self.ask(&place, &target, body)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(format!("{asked}: {why}")),
            Err(_) => Err(format!("{asked}: context deadline exceeded")),
        }
    }

    async fn ask(&self, place: &Place, target: &Target<'_>, body: Vec<u8>) -> Result<Bytes, String> {
        let bundle = target.config["caBundle"].as_str().unwrap_or_default();
        let config = self.config(bundle)?;
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let tcp = TcpStream::connect(&place.address).await.map_err(|e| format!("dial tcp {}: {e}", place.address))?;
        let name = ServerName::try_from(place.name.clone()).map_err(|e| said(&e))?;
        let tls = TlsConnector::from(config).connect(name, tcp).await;
        let tls = tls.map_err(|e| format!("tls: failed to verify certificate: {e}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| said(&e))?;
        // It ends when this call does: the sender goes with it.
        let connection = tokio::spawn(connection);
        let request = Request::post(&place.path)
            .header(header::HOST, &place.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "kube-apiserver")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| said(&e))?;
        let answered = async {
            let answer = sender.send_request(request).await.map_err(|e| said(&e))?;
            let status = answer.status();
            let read = Limited::new(answer.into_body(), target.answer_max).collect().await;
            let read =
                read.map_err(|_| format!("the answer is longer than {} bytes, or ended early", target.answer_max))?;
            let bytes = read.to_bytes();
            if status.is_success() {
                return Ok(bytes);
            }
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(REFUSAL_BYTES_MAX)]).trim().to_owned();
            Err(format!("the webhook answered {status}: {text}"))
        };
        let answered = answered.await;
        connection.abort();
        answered
    }

    fn config(&self, bundle: &str) -> Result<Arc<ClientConfig>, String> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(bundle) {
            return Ok(config.clone());
        }
        if bundle.is_empty() {
            return Err(
                "tls: failed to verify certificate: the webhook names no caBundle, and this server trusts none itself"
                    .into(),
            );
        }
        let pem = STANDARD.decode(bundle).map_err(|e| format!("caBundle: {e}"))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate.map_err(|e| format!("caBundle: {e}"))?).map_err(|e| format!("caBundle: {e}"))?;
        }
        let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
        if configs.len() >= CONFIGS_MAX {
            configs.clear();
        }
        configs.insert(bundle.to_owned(), config.clone());
        Ok(config)
    }
}

/// Where a `clientConfig` leads.
fn place(config: &Value, service_of: impl Fn(&str, &str) -> Option<Arc<Value>>) -> Result<Place, String> {
    if let Some(url) = config["url"].as_str() {
        let rest = url.strip_prefix("https://").ok_or("only https is allowed")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = split_port(authority);
        let path = if path.is_empty() { "/" } else { path };
        return Ok(Place {
            address: format!("{host}:{port}"),
            name: host.trim_matches(['[', ']']).to_owned(),
            authority: authority.to_owned(),
            path: path.to_owned(),
        });
    }
    let service = &config["service"];
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let port = service["port"].as_u64().unwrap_or(443);
    let path = if text("path").is_empty() { "/" } else { text("path") };
    let found = service_of(namespace, name).ok_or_else(|| format!("service \"{name}\" not found"))?;
    let served = found["spec"]["ports"].as_array().into_iter().flatten().any(|p| p["port"].as_u64() == Some(port));
    if !served {
        return Err(format!("no service port {port} found for service \"{name}\""));
    }
    let address = match (found["spec"]["type"].as_str(), found["spec"]["clusterIP"].as_str()) {
        (Some("ExternalName"), _) => format!("{}:{port}", found["spec"]["externalName"].as_str().unwrap_or_default()),
        (_, Some("None") | None) => return Err(format!("service \"{name}\" has no cluster IP")),
        (_, Some(ip)) if ip.contains(':') => format!("[{ip}]:{port}"),
        (_, Some(ip)) => format!("{ip}:{port}"),
    };
    let host = format!("{name}.{namespace}.svc");
    Ok(Place { address, authority: format!("{host}:{port}"), name: host, path: path.to_owned() })
}

fn split_port(authority: &str) -> (&str, u16) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(443)),
        _ => (authority, 443),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places() {
        let of = |service: Option<Value>, config: Value| place(&config, |_, _| service.clone().map(Arc::new));
        let found = of(None, json!({"url": "https://hook.example:8443/convert?x=1"})).unwrap();
        assert_eq!((found.address.as_str(), found.path.as_str()), ("hook.example:8443", "/convert?x=1"));
        let config = json!({"service": {"namespace": "n", "name": "s", "path": "/c", "port": 9443}});
        assert_eq!(of(None, config.clone()).unwrap_err(), "service \"s\" not found");
        let service = json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 9443}]}});
        let found = of(Some(service.clone()), config).unwrap();
        assert_eq!((found.address.as_str(), found.name.as_str()), ("10.0.0.1:9443", "s.n.svc"));
        let other = json!({"service": {"namespace": "n", "name": "s"}});
        assert!(of(Some(service), other).unwrap_err().contains("no service port 443"));
    }
}
