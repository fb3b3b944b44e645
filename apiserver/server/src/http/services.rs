//! Connects the server to the cluster's Services: picks a ready endpoint, and dials it through the kubelet of its pod's
//! node.

use std::sync::Arc;

use futures::future::BoxFuture;
use machinery_env::Env;
use machinery_serve::accept::keep_alive;
use serde_json::Value;
use tokio::net::TcpStream;

use super::kubelets::{Kubelets, NodeAddress};
use apiserver_resources::objects::ObjectReader;
use apiserver_storage::cache::Lookup;
use apiserver_webhook::{ServiceDialer, Stream};

/// Dials Services for webhooks.
pub(crate) struct Services {
    pub(crate) objects: Arc<Lookup>,
    pub(crate) kubelets: Kubelets,
    pub(crate) env: Env,
}

/// An endpoint of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    ip: String,
    port: u16,
    /// The name of its pod, if it is one.
    pod: Option<String>,
}

/// The ready endpoints of a Service's port.
fn endpoints<'a>(slices: impl Iterator<Item = &'a Value>, port_name: &str) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports.find(|port| port["name"].as_str().unwrap_or("") == port_name);
        let Some(port) = port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()) else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let Some(ip) = endpoint["addresses"][0].as_str().filter(|_| endpoint["conditions"]["ready"] != false)
            else {
                continue;
            };
            let to = &endpoint["targetRef"];
            let pod = to["name"].as_str().filter(|_| to["kind"] == "Pod").map(str::to_owned);
            found.push(Endpoint { ip: ip.to_owned(), port, pod });
        }
    }
    found
}

/// The target of a Service.
enum ServiceTarget {
    External(String, u16),
    Port(String),
}

fn target(service: &Value, name: &str, port: u16) -> Result<ServiceTarget, String> {
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        return Ok(ServiceTarget::External(spec["externalName"].as_str().unwrap_or_default().to_owned(), port));
    }
    let mut ports = spec["ports"].as_array().into_iter().flatten();
    let found = ports.find(|one| one["port"].as_u64() == Some(u64::from(port)));
    let found = found.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    Ok(ServiceTarget::Port(found["name"].as_str().unwrap_or("").to_owned()))
}

impl Services {
    async fn connect(&self, namespace: &str, name: &str, port: u16) -> Result<Box<dyn Stream>, String> {
        let service = self.objects.get("", "services", namespace, name);
        let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
        let port_name = match target(&service, name, port)? {
            ServiceTarget::External(host, port) => return dial(&host, port).await,
            ServiceTarget::Port(name) => name,
        };
        let slices = self.objects.list("discovery.k8s.io", "endpointslices", Some(namespace));
        let of_service =
            |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str() == Some(name);
        let mut all = endpoints(slices.iter().map(|slice| &**slice).filter(of_service), &port_name);
        if all.is_empty() {
            return Err(format!("no endpoints available for service {name:?}"));
        }
        let one = all.swap_remove(usize::try_from(self.env.below(all.len() as u64)).unwrap_or(0));
        match one.pod.and_then(|pod| Some((self.node_of(namespace, &pod)?, pod))) {
            Some((node, pod)) => {
                let path = format!("/podStream/{namespace}/{pod}/{}", one.port);
                let stream = self.kubelets.stream(&node, &path).await;
                let stream = stream.map_err(|why| format!("dial tcp {}:{}: {why}", one.ip, one.port))?;
                Ok(Box::new(stream))
            }
            None => dial(&one.ip, one.port).await,
        }
    }

    fn node_of(&self, namespace: &str, pod: &str) -> Option<NodeAddress> {
        let pod = self.objects.get("", "pods", namespace, pod)?;
        let node = pod["spec"]["nodeName"].as_str()?;
        NodeAddress::of(&*self.objects.get("", "nodes", "", node)?)
    }
}

async fn dial(host: &str, port: u16) -> Result<Box<dyn Stream>, String> {
    let socket = TcpStream::connect((host, port)).await;
    let socket = socket.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("dial tcp {host}:{port}: connect: connection refused"),
        _ => format!("dial tcp {host}:{port}: {error}"),
    })?;
    keep_alive(&socket);
    Ok(Box::new(socket))
}

impl ServiceDialer for Services {
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, String>> {
        Box::pin(self.connect(namespace, name, port))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_are_pods_or_addresses() {
        let slice = json!({"ports": [{"name": "web", "port": 8443}], "endpoints": [
            {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "a"}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["192.0.2.1"], "conditions": {"ready": true}}]});
        let at = |ip: &str, pod: Option<&str>| Endpoint { ip: ip.into(), port: 8443, pod: pod.map(str::to_owned) };
        assert_eq!(endpoints([&slice].into_iter(), "web"), [at("10.0.0.1", Some("a")), at("192.0.2.1", None)]);
        assert!(endpoints([&slice].into_iter(), "").is_empty());
        let service = json!({"spec": {"ports": [{"port": 443, "name": "web"}]}});
        assert!(matches!(target(&service, "s", 443), Ok(ServiceTarget::Port(name)) if name == "web"));
        assert_eq!(target(&service, "s", 80).err().unwrap(), "no service port 80 found for service \"s\"");
    }
}
