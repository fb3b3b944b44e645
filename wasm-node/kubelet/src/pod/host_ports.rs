//! `hostPort`: listeners at the node's address, from the pod's start to its removal. The pod keeps its own address,
//! also with `hostNetwork`, whose ports the API server defaults to host ports.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Container, Pod};
use machinery_env::Env;
use machinery_serve::accept::Listener;
use machinery_serve::net::{PodNetwork, Protocol};

use super::listen;
use super::worker::Task;

/// A host port of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// The `hostIP`; `None` for the node's listen address.
    ip: Option<IpAddr>,
    port: u16,
    /// The target port in the pod.
    container_port: u16,
}

impl HostPort {
    fn clashes(&self, other: &Self) -> bool {
        self.port == other.port && (self.ip.is_none() || other.ip.is_none() || self.ip == other.ip)
    }

    /// The listen address. Other loopback addresses are refused: they are the addresses of pods and Services.
    fn address(&self, node: IpAddr) -> Result<SocketAddr, String> {
        let usual = [IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST), node];
        match self.ip {
            Some(ip) if ip.is_loopback() && !usual.contains(&ip) => {
                Err(format!("hostIP {ip} is an address of the cluster, not of the node"))
            }
            ip => Ok(SocketAddr::new(ip.unwrap_or(node), self.port)),
        }
    }
}

/// The host ports of a pod.
pub(super) fn of(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let spec = pod.spec.iter();
    let all =
        spec.flat_map(move |spec| spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar)));
    let tcp = all.flat_map(|container| container.ports.iter().flatten());
    tcp.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP").filter_map(|port| {
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        // An IPv4 address in IPv6's notation is bound as IPv4.
        let ip = port.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
        let ip = ip.filter(|ip| !ip.is_unspecified());
        Some(HostPort { ip, port: number(port.host_port?)?, container_port: number(port.container_port)? })
    })
}

/// Whether a port of the one clashes with a port of the other.
pub(super) fn clash(has: &[HostPort], wants: &[HostPort]) -> bool {
    has.iter().any(|port| wants.iter().any(|wanted| wanted.clashes(port)))
}

/// Opens all host ports of a pod with the address `ip` for the lifetime of the tasks. `node`: the node's listen address.
///
/// # Errors
/// One of them can't be opened; then none is.
pub(crate) fn open(env: &Env, pod: &Pod, ip: IpAddr, node: IpAddr, network: &PodNetwork) -> Result<Vec<Task>, String> {
    let bound = of(pod).map(|port| {
        let address = port.address(node)?;
        let listener = Listener::bind(address).map_err(|error| format!("host port {address}: {error}"))?;
        Ok((listener, address, port.container_port))
    });
    let bound: Vec<_> = bound.collect::<Result<_, String>>()?;
    let each = bound.into_iter().map(|(listener, address, port)| {
        let (network, env) = (network.clone(), env.clone());
        let answers = move || network.find(ip, Protocol::Tcp, port);
        Task(tokio::spawn(async move { listen::serve(&env, (listener, address), ip, answers).await }))
    });
    Ok(each.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(ports: Value) -> Pod {
        let containers = json!([{"name": "c", "ports": ports}]);
        serde_json::from_value(json!({"metadata": {}, "spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn ports_are_one_pods_at_each_address() {
        let at = |ip: &str, port: u16| pod(json!([{"containerPort": 80, "hostIP": ip, "hostPort": port}]));
        let ports = |pod: &Pod| of(pod).collect::<Vec<_>>();
        let clashes = |a: &Pod, b: &Pod| clash(&ports(a), &ports(b));
        assert!(clashes(&at("", 80), &at("0.0.0.0", 80)) && clashes(&at("192.0.2.1", 80), &at("", 80)));
        assert!(!clashes(&at("192.0.2.1", 80), &at("192.0.2.2", 80)) && !clashes(&at("", 80), &at("", 81)));
        let udp = pod(json!([{"containerPort": 80, "hostPort": 80, "protocol": "UDP"}]));
        assert!(!clashes(&udp, &at("", 80)) && !clashes(&pod(json!([{"containerPort": 80}])), &at("", 80)));
    }

    #[test]
    fn an_address_of_the_cluster_is_nobodys() {
        let node = IpAddr::from([127, 0, 0, 1]);
        let address = |ip: &str| HostPort { ip: ip.parse().ok(), port: 80, container_port: 8080 }.address(node);
        assert_eq!(address(""), Ok("127.0.0.1:80".parse().unwrap()));
        assert_eq!(address("::1"), Ok("[::1]:80".parse().unwrap()));
        assert!(address("127.64.0.10").is_err() && address("127.66.0.2").is_err());
        let of_pod = |ip: &str| {
            let pod = pod(json!([{"containerPort": 8080, "hostIP": ip, "hostPort": 80}]));
            let port = of(&pod).next().unwrap();
            port.address(node)
        };
        assert!(of_pod("::ffff:127.64.0.10").is_err());
        assert_eq!(of_pod("::ffff:0.0.0.0"), Ok("127.0.0.1:80".parse().unwrap()));
        assert_eq!(of_pod("::ffff:192.0.2.1"), Ok("192.0.2.1:80".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_port_is_open_until_its_pod_is_gone() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (node, port) = (IpAddr::from([127, 0, 0, 1]), free.local_addr().unwrap().port());
        let (pod, network) = (pod(json!([{"containerPort": 80, "hostPort": port}])), PodNetwork::default());
        let own = IpAddr::from([127, 66, 0, 2]);
        let refused = open(&Env::real(), &pod, own, node, &network).err().unwrap();
        assert!(refused.starts_with(&format!("host port 127.0.0.1:{port}: ")), "{refused}");
        drop(free);
        let opened = open(&Env::real(), &pod, own, node, &network).unwrap();
        let mut connection = tokio::net::TcpStream::connect((node, port)).await.unwrap();
        let read = tokio::io::AsyncReadExt::read(&mut connection, &mut [0; 1]).await;
        assert!(!matches!(read, Ok(1)), "nothing listens in the pod");
        drop(opened);
        while tokio::net::TcpStream::connect((node, port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
