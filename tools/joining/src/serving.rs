//! The serving certificate of a joined node: of its own key at first, then by a request for the addresses of its Node, renewed
//! in time and after a change of these addresses. As upstream's kubelet with `serverTLSBootstrap`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use apiserver_auth::own_certificates::self_signed;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use machinery_client::request::BackOff;
use machinery_client::{Api, TlsIdentity};
use machinery_env::Env;
use tokio::sync::watch;

use crate::node::{JoinedNode, SKEWED_RENEWAL_INTERVAL};
use crate::requesting::{self, WantedCertificate};
use crate::rotation::{self, rotate_at, sleep_until_due};
use crate::stored::{NodeCertificate, Use};

/// The wait between two failed requests: at first, and at most. Where no one approves, each try leaves a request.
const REQUEST_WAITS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_hours(1));

/// The wait after a successful request: at first, and at most. An address that alternates would otherwise cost a certificate
/// each time, as with two machines of one name.
const RENEWAL_WAITS: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));

/// The time of the next request.
struct Pace {
    waits: BackOff,
    /// On the scale of [`Env::elapsed`].
    earliest: Duration,
}

impl Pace {
    fn new() -> Self {
        Self { waits: BackOff::new(RENEWAL_WAITS.0, RENEWAL_WAITS.1), earliest: Duration::ZERO }
    }

    /// The wait before a request; none if it may be made now.
    fn wait(&self, env: &Env) -> Option<Duration> {
        self.earliest.checked_sub(env.elapsed()).filter(|wait| !wait.is_zero())
    }

    /// A certificate was issued.
    fn issued(&mut self, env: &Env) {
        if env.elapsed() > self.earliest + RENEWAL_WAITS.1 {
            self.waits.reset();
        }
        self.earliest = env.elapsed() + self.waits.next(env);
    }
}

/// The newest serving certificate of the node's API. The future requests and renews it, and must be polled while the node runs.
///
/// # Errors
/// If no first certificate can be made.
pub fn serving(
    env: &Env,
    node: &JoinedNode,
) -> anyhow::Result<(watch::Receiver<Arc<TlsIdentity>>, impl Future<Output = ()> + Send + use<>)> {
    let held = node.folder.read(Use::Serving, &node.cluster, &node.user(), env.now());
    let first = match &held {
        Some(held) => held.identity.clone(),
        None => {
            let own = self_signed(env, &node.name, std::slice::from_ref(&node.name))?;
            Arc::new(TlsIdentity { cert_pem: own.cert_pem, key_pem: own.key_pem })
        }
    };
    let (sender, receiver) = watch::channel(first);
    let renewal = Renewal { env: env.clone(), node: node.clone(), held, sender };
    Ok((receiver, renewal.run()))
}

struct Renewal {
    env: Env,
    node: JoinedNode,
    /// None: only the one of its own key.
    held: Option<NodeCertificate>,
    sender: watch::Sender<Arc<TlsIdentity>>,
}

impl Renewal {
    async fn run(mut self) {
        let (env, name) = (self.env.clone(), self.node.name.clone());
        let nodes: Api<Node> = Api::all(self.node.client.clone());
        let mut waits = BackOff::new(REQUEST_WAITS.0, REQUEST_WAITS.1);
        let mut pace = Pace::new();
        let mut due = self.held.as_ref().map(|held| rotate_at(&env, &held.content));
        loop {
            // The Node is registered before its certificate: the request is checked against its addresses.
            let found = nodes.wait_until(&env, &name, |node| node.is_some_and(|node| !names(node).is_empty())).await;
            let Some(wanted) = found.as_deref().map(names) else { continue };
            if let Some(due) = due.filter(|due| !is_due(self.held.as_ref(), &wanted, *due, env.now())) {
                let Some(held) = &self.held else { continue };
                tokio::select! {
                    () = sleep_until_due(&env, due, &held.content) => {}
                    _ = nodes.wait_until(&env, &name, |node| has_other_names(node, &wanted)) => {}
                }
                continue;
            }
            if let Some(wait) = pace.wait(&env) {
                env.sleep(wait).await;
                continue;
            }
            match self.renew(wanted).await {
                Ok(held) => {
                    waits.reset();
                    pace.issued(&env);
                    due = Some(rotate_at(&env, &held.content));
                    tracing::info!(end = %held.content.not_after, "the node has a new serving certificate");
                    if held.begins_later(env.now()) {
                        env.sleep(SKEWED_RENEWAL_INTERVAL).await;
                    }
                    self.held = Some(held);
                }
                Err(error) => {
                    tracing::warn!(error = &*error, "the node has no new serving certificate; it will be retried");
                    env.sleep(waits.next(&env)).await;
                }
            }
        }
    }

    async fn renew(&self, names: BTreeSet<String>) -> anyhow::Result<NodeCertificate> {
        let wanted = WantedCertificate::serving(&self.node.user(), names.into_iter().collect());
        let held = requesting::obtain(&self.env, &self.node.client, &wanted).await?;
        self.node.folder.write(Use::Serving, &self.node.cluster, &held.identity)?;
        self.sender.send_replace(held.identity.clone());
        Ok(held)
    }
}

/// Whether another certificate is needed: the time has come, or the present one begins later or lacks a name.
fn is_due(held: Option<&NodeCertificate>, wanted: &BTreeSet<String>, due: Timestamp, now: Timestamp) -> bool {
    let lacks = held.is_none_or(|held| wanted.iter().any(|name| !held.content.names.contains(name)));
    lacks || held.is_some_and(|held| rotation::is_due(due, &held.content, now))
}

fn has_other_names(node: Option<&Node>, wanted: &BTreeSet<String>) -> bool {
    node.map(names).is_some_and(|names| !names.is_empty() && names != *wanted)
}

/// The DNS names and IP addresses of a Node; none: it has no IP address yet (upstream's `addressesToHostnamesAndIPs` and
/// `newGetTemplateFn`). Loopback addresses are every machine's, and approved for no node: there API servers verify the name.
fn names(node: &Node) -> BTreeSet<String> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut names = BTreeSet::new();
    let mut has_address = false;
    for address in addresses {
        match (address.type_.as_str(), address.address.parse::<IpAddr>()) {
            ("Hostname" | "InternalIP" | "ExternalIP", Ok(ip)) => {
                has_address = true;
                if !ip.to_canonical().is_loopback() {
                    names.insert(ip.to_string());
                }
            }
            ("Hostname" | "InternalDNS" | "ExternalDNS", _) if !address.address.is_empty() => {
                names.insert(address.address.clone());
            }
            _ => {}
        }
    }
    if has_address { names } else { BTreeSet::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"addresses": addresses}})).unwrap()
    }

    #[test]
    fn names_are_those_of_the_node() {
        let all = node(&[
            ("InternalIP", "2001:DB8::1"),
            ("InternalIP", "not an address"),
            ("ExternalIP", "192.0.2.1"),
            ("Hostname", "n1"),
            ("Hostname", "192.0.2.2"),
            ("InternalDNS", "n1.internal"),
            ("ExternalDNS", ""),
            ("Other", "x"),
        ]);
        assert!(names(&all).iter().eq(["192.0.2.1", "192.0.2.2", "2001:db8::1", "n1", "n1.internal"]));
        assert!(names(&node(&[("Hostname", "n1")])).is_empty(), "no address");
        assert!(
            names(&node(&[("Hostname", "n1"), ("InternalIP", "127.0.0.1"), ("InternalIP", "::1")])).iter().eq(["n1"])
        );
        assert!(names(&Node::default()).is_empty());
    }

    #[test]
    fn an_address_that_alternates_costs_few_certificates() {
        let (env, clock) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let mut pace = Pace::new();
        let mut issued = 0;
        for _ in 0..24 * 3600 {
            if pace.wait(&env).is_none() {
                issued += 1;
                pace.issued(&env);
            }
            clock.advance(Duration::from_secs(1));
        }
        assert!((10..60).contains(&issued), "{issued} in a day");
        clock.advance(Duration::from_hours(3));
        assert_eq!(pace.wait(&env), None);
        pace.issued(&env);
        assert!(pace.wait(&env).unwrap() <= RENEWAL_WAITS.0 * 2, "a single change is quick again");
    }

    #[test]
    fn a_certificate_is_renewed_in_time_and_for_new_names() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let own = self_signed(&env, "n1", &["n1".to_owned(), "192.0.2.1".to_owned()]).unwrap();
        let held = NodeCertificate::new(own.cert_pem, own.key_pem).unwrap();
        let wanted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        let (now, later) = (env.now(), env.now().saturating_add(Duration::from_secs(1)).unwrap());
        assert!(!is_due(Some(&held), &wanted(&["n1", "192.0.2.1"]), later, now));
        assert!(!is_due(Some(&held), &wanted(&["192.0.2.1"]), later, now), "a name too much");
        assert!(is_due(Some(&held), &wanted(&["192.0.2.2"]), later, now));
        assert!(is_due(Some(&held), &wanted(&["192.0.2.1"]), now, now));
        assert!(is_due(None, &wanted(&["192.0.2.1"]), later, now));
        let before: Timestamp = "2025-12-01T00:00:00Z".parse().unwrap();
        assert!(is_due(Some(&held), &wanted(&["192.0.2.1"]), later, before), "the clock was set back");
        let n1 = node(&[("InternalIP", "192.0.2.1")]);
        assert!(!has_other_names(Some(&n1), &wanted(&["192.0.2.1"])) && !has_other_names(None, &wanted(&[])));
        assert!(has_other_names(Some(&n1), &wanted(&["192.0.2.2"])));
    }
}
