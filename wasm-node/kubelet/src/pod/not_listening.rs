//! The warning about a command that doesn't listen on a port of its container. It changes no status: as upstream, a started
//! container without a readiness probe is ready.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use images::Image;
use machinery_serve::net::{PodNetwork, Protocol};

use super::runner::RunContext;
use super::worker::Task;

/// The time of a command to bind its ports: longer than the start of nearly all servers, shorter than a user's patience.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// A port of a container that nothing listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClosedPort {
    number: u16,
    /// The pod listens on its loopback only.
    is_loopback: bool,
}

/// Warns once if a command listens too late, as long as the task lives.
pub(super) fn watch(context: &RunContext, image: &Arc<Image>, ports: &[u16]) -> Option<Task> {
    let ip = context.ip.filter(|_| !ports.is_empty())?;
    let (context, image, ports) = (context.clone(), image.clone(), ports.to_vec());
    Some(Task(tokio::spawn(async move {
        let parts = &context.node.parts;
        parts.env.sleep(LISTENS_WITHIN).await;
        let closed = closed_ports(&parts.network, ip, &ports);
        if closed.is_empty() {
            return;
        }
        match parts.images.imports(&image, parts.imports).await {
            Ok(imports) if can_listen(&imports) => {
                context.warn("NotListening", message(&context.container.get().name, &closed));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(image = image.name, error, "the imports of a module are not known"),
        }
    })))
}

fn closed_ports(network: &PodNetwork, ip: IpAddr, ports: &[u16]) -> Vec<ClosedPort> {
    let is_closed = |port: &&u16| network.find_local(ip, Protocol::Tcp, **port).is_none();
    let closed = ports
        .iter()
        .filter(is_closed)
        .map(|port| ClosedPort { number: *port, is_loopback: network.loopback(ip, Protocol::Tcp, *port).is_some() });
    closed.collect()
}

/// Whether a module with these imports can accept TCP connections: by `wasi:sockets` 0.2 or 0.3, or by preview 1.
fn can_listen(imports: &[String]) -> bool {
    let of_component = ["wasi:sockets/tcp@", "wasi:sockets/types@"];
    imports.iter().any(|import| {
        of_component.iter().any(|name| import.starts_with(name)) || import == "wasi_snapshot_preview1/sock_accept"
    })
}

fn message(container: &str, closed: &[ClosedPort]) -> String {
    let numbers: Vec<String> = closed.iter().map(|port| port.number.to_string()).collect();
    let (ports, seconds) = (numbers.join(", "), LISTENS_WITHIN.as_secs());
    let plural = if closed.len() == 1 { "" } else { "s" };
    let check = match closed.iter().all(|port| port.is_loopback) {
        true => {
            "It listens on its loopback only, where Services, probes and other pods don't reach it: bind 0.0.0.0 instead"
        }
        false => "Check that it binds this port at 0.0.0.0, and the container's log for a failed bind",
    };
    format!(
        "Container {container} doesn't listen on its TCP port{plural} {ports}, {seconds} s after its start. {check}"
    )
}

#[cfg(test)]
mod tests {
    use machinery_serve::net::{Body, CallRejected, Listen, Origin, Scope, Serve};

    use super::*;

    struct Silent;

    #[async_trait::async_trait]
    impl Serve for Silent {
        async fn http(
            &self,
            _: &Origin,
            _: http::Request<Body>,
        ) -> Result<http::Response<Body>, CallRejected<http::Request<Body>>> {
            Err(CallRejected::Closed)
        }
    }

    #[test]
    fn a_warning_names_the_closed_ports_and_the_addresses_to_check() {
        let (network, ip) = (PodNetwork::default(), IpAddr::from([127, 66, 0, 2]));
        let attach = |scope, port| {
            network.attach(Listen { ip, scope, protocol: Protocol::Tcp, port }, Arc::new(Silent)).unwrap()
        };
        let _open = [attach(Scope::Any, 80), attach(Scope::Pod, 81), attach(Scope::Loopback, 82)];
        assert_eq!(closed_ports(&network, ip, &[80, 81]), []);
        let own = closed_ports(&network, ip, &[80, 82]);
        assert_eq!(own, [ClosedPort { number: 82, is_loopback: true }]);
        assert!(
            message("c", &own).starts_with("Container c doesn't listen on its TCP port 82, 10 s after its start. It")
        );
        let closed = closed_ports(&network, ip, &[82, 83]);
        assert!(message("c", &closed).contains("TCP ports 82, 83, 10 s after its start. Check that it binds"));
    }

    #[test]
    fn sockets_are_seen_by_their_imports() {
        let can = |imports: &[&str]| can_listen(&imports.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        for imports in [
            &["wasi:cli/run@0.2.0", "wasi:sockets/tcp@0.2.3"][..],
            &["wasi:sockets/types@0.3.0"],
            &["wasi_snapshot_preview1/sock_accept"],
        ] {
            assert!(can(imports), "{imports:?}");
        }
        assert!(!can(&["wasi:sockets/udp@0.2.3", "wasi:sockets/network@0.2.3", "wasi_snapshot_preview1/fd_write"]));
    }
}
