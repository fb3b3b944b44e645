//! `kubelet-serving-approving-controller`: approves the serving certificate of a node for its own addresses. Upstream leaves
//! these requests to the administrator, and so does this controller with all that it doesn't approve: it denies nothing.
//!
//! A node writes the addresses in its status itself. So they don't suffice: foreign DNS names, names of Services and the API
//! server, loopback addresses, the ranges of Services and pods, and addresses of Services, API servers and older Nodes are
//! left to the administrator. An administrator labels the Nodes on the machines of API servers: kubelets can't
//! (NodeRestriction). A certificate lives longer than a server's absence, so an API server's name or address is one that the
//! record `API_SERVERS` lists, whether or not a server listens there. Without the record nothing is approved.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Node, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use machinery_api::{ObjectKey, names};
use machinery_client::driver::own_key;
use machinery_client::{Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, key_of};
use machinery_rules::certificate_request::CertificateRequest;

use super::approving::approve;
use super::{
    ACCOUNT, APPROVED, BACK_OFF, DENIED, FAILED, KUBELET_SERVING_SIGNER, NODE_PREFIX, NODES, has, issued, requested,
    usages, wanted_usages,
};
use crate::Settings;

/// The age up to which a request is approved: four times as long as a kubelet waits for its certificate (upstream's
/// `certificateWaitTimeout`, 15 min). No kubelet waits for an older one.
const AGE_MAX: Duration = Duration::from_hours(1);
/// Maximum names in a request. A node has a handful; the work for a request is this times the number of nodes.
const NAMES_MAX: usize = 32;
/// kubeadm's label of Nodes on the machines of API servers.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// The attributes of the subject: one O and one CN.
const SUBJECT_ATTRIBUTES: usize = 2;

/// The key is a request's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "kubelet-serving-approving-controller",
    account: ACCOUNT,
    workers: 1,
    back_off: BACK_OFF,
    inputs: &[
        Input::of::<CertificateSigningRequest>(own_key),
        Input::of::<Node>(of_node),
        // Only read: their changes approve nothing.
        Input::of::<Service>(|_, _| Vec::new()),
        Input::of::<ServiceCIDR>(|_, _| Vec::new()),
        Input::of::<Endpoints>(|_, _| Vec::new()),
        Input::of::<ConfigMap>(of_record),
    ],
    reconcile,
};

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Approve,
    /// The Node isn't there or has no addresses yet.
    Wait,
    /// Left to the administrator, with the reason.
    Leave(String),
}

/// The requests that a changed Node may decide: its own ones, and all after the end of a Node, whose addresses are free.
fn of_node(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let (before, after) = (change.before::<Node>(), change.after::<Node>());
    let counts = |node| (addresses(node), is_control_plane(node));
    if before.is_some() && after.is_some() && before.map(counts) == after.map(counts) {
        return Vec::new();
    }
    let of_it = |csr: &&CertificateSigningRequest| after.is_none() || node_of(csr) == Some(&change.key.name);
    view.all::<CertificateSigningRequest>()
        .filter(|csr| is_open(csr))
        .filter(of_it)
        .map(|csr| key_of(&csr.metadata))
        .collect()
}

/// All open requests when the record of API servers appears: they wait for it.
fn of_record(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let is_new = change.before::<ConfigMap>().is_none() && change.after::<ConfigMap>().is_some();
    if !is_new || *change.key != record_key() {
        return Vec::new();
    }
    let open = view.all::<CertificateSigningRequest>().filter(|csr| is_open(csr));
    open.map(|csr| key_of(&csr.metadata)).collect()
}

fn record_key() -> ObjectKey {
    ObjectKey::new("kube-system", names::API_SERVERS)
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(csr) = view.get::<CertificateSigningRequest>(key).filter(|csr| is_open(csr)) else {
        return Plan::nothing();
    };
    let Some(request) = requested(csr) else { return Plan::nothing() };
    let taken = |node: &Node, name: &str| taken(view, node, name);
    match judge(csr, &request, node_of(csr).and_then(|name| view.get(&ObjectKey::cluster(name))), context.now, &taken) {
        Verdict::Approve => {
            vec![approve(csr, "Auto approving kubelet serving certificate for the addresses of its Node.")].into()
        }
        Verdict::Wait => Plan::nothing(),
        Verdict::Leave(why) => {
            let message = format!("left to an administrator (kubectl certificate approve): {why}");
            vec![machinery_client::Action::Event(EventRecord::warning(csr, "NotAutoApproved", message))].into()
        }
    }
}

/// Whether a request of this signer is undecided.
fn is_open(csr: &CertificateSigningRequest) -> bool {
    csr.spec.signer_name == KUBELET_SERVING_SIGNER
        && csr.metadata.deletion_timestamp.is_none()
        && issued(csr).is_none()
        && ![APPROVED, DENIED, FAILED].iter().any(|kind| has(csr, kind))
}

/// The node that sent a request, which the API server has authenticated.
fn node_of(csr: &CertificateSigningRequest) -> Option<&str> {
    let of_nodes = csr.spec.groups.iter().flatten().any(|group| group == NODES);
    csr.spec.username.as_deref()?.strip_prefix(NODE_PREFIX).filter(|name| of_nodes && !name.is_empty())
}

/// The addresses in a Node's status, and its name.
fn addresses(node: &Node) -> BTreeSet<&str> {
    let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    listed.map(|address| address.address.as_str()).chain(node.metadata.name.as_deref()).collect()
}

fn is_control_plane(node: &Node) -> bool {
    node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(CONTROL_PLANE))
}

/// The decision. `taken`: whose a name or address is, if it isn't the Node's alone.
fn judge(
    csr: &CertificateSigningRequest,
    request: &CertificateRequest,
    node: Option<&Node>,
    now: Timestamp,
    taken: &dyn Fn(&Node, &str) -> Option<String>,
) -> Verdict {
    let leave = |why: &str| Verdict::Leave(why.to_owned());
    let Some(name) = node_of(csr) else { return leave("the requester is no node") };
    if request.common_name.strip_prefix(NODE_PREFIX) != Some(name) {
        return leave("the subject is not the requester");
    }
    if request.subject_attributes() != Some(SUBJECT_ATTRIBUTES) {
        return leave("the subject has more than an organization and a common name");
    }
    if let Err(why) = usages::kubelet_serving(request, wanted_usages(csr)) {
        return Verdict::Leave(why);
    }
    let Some(created) = csr.metadata.creation_timestamp.as_ref().map(|created| created.0) else {
        return leave("it has no time of creation");
    };
    if created.saturating_add(AGE_MAX).is_ok_and(|end| end < now) {
        return leave("it is older than an hour");
    }
    // Of an API server whose clock was ahead: it would stay young for as long as that.
    if now.saturating_add(AGE_MAX).is_ok_and(|latest| latest < created) {
        return leave("it is more than an hour in the future");
    }
    let Some(node) = node else { return Verdict::Wait };
    if node.metadata.creation_timestamp.as_ref().is_some_and(|born| born.0 > created) {
        return leave("it is older than the Node: the request of an earlier node of that name");
    }
    let own = addresses(node);
    if own.len() < 2 && !own.iter().any(|own| request.dns_names.iter().any(|name| name == own)) {
        return Verdict::Wait;
    }
    let requested: Vec<String> =
        request.dns_names.iter().cloned().chain(request.ip_addresses.iter().map(IpAddr::to_string)).collect();
    if requested.len() > NAMES_MAX {
        return leave("it has more than 32 subjectAltNames");
    }
    let wrong = requested.iter().find_map(|subject| {
        let shown = subject.escape_debug();
        if !is_own(&own, subject) {
            return Some(format!("{shown} is not among the addresses of the Node"));
        }
        if is_reserved(subject) {
            return Some(format!("{shown} is no node's"));
        }
        if !is_below(name, subject) {
            return Some(format!("{shown} is a DNS name other than the Node's"));
        }
        taken(node, subject).map(|whose| format!("{shown} is {whose}"))
    });
    wrong.map_or(Verdict::Approve, Verdict::Leave)
}

/// An address, however it is written: an IPv4 address within IPv6 is the same to those who verify a certificate.
fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn is_own(own: &BTreeSet<&str>, subject: &str) -> bool {
    own.contains(subject) || address(subject).is_some_and(|ip| own.iter().any(|own| address(own) == Some(ip)))
}

/// Whether a DNS name is the Node's, alone or with a domain. Addresses are.
fn is_below(node: &str, subject: &str) -> bool {
    let rest = || subject.strip_prefix(node);
    address(subject).is_some() || rest().is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Names of the API server and of Services, patterns, and addresses that are no machine's, or every machine's.
fn is_reserved(subject: &str) -> bool {
    if let Some(ip) = address(subject) {
        return ip.is_unspecified() || ip.is_multicast() || ip.is_loopback();
    }
    let name = subject.trim_end_matches('.').to_ascii_lowercase();
    let labels: Vec<&str> = name.split('.').collect();
    labels.contains(&"*")
        || labels.contains(&"svc")
        || labels.contains(&"localhost")
        || matches!(labels.as_slice(), ["kubernetes"] | ["kubernetes", "default", ..])
        || name.ends_with("cluster.local")
}

/// Whose a name or address is, other than the Node's.
fn taken(view: &ObjectCache, node: &Node, subject: &str) -> Option<String> {
    let born = |node: &Node| node.metadata.creation_timestamp.as_ref().map(|born| born.0);
    let first = |other: &Node| (born(other), &other.metadata.name) < (born(node), &node.metadata.name);
    let is_its_name =
        |other: &Node| other.metadata.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(subject));
    let others = || view.all::<Node>().filter(|other| other.metadata.name != node.metadata.name);
    if others().any(is_its_name) {
        return Some("another Node's name".to_owned());
    }
    if let Some(older) = others().filter(|other| first(other)).find(|other| is_own(&addresses(other), subject)) {
        return Some(format!("an address of the older Node {}", older.metadata.name.as_deref().unwrap_or_default()));
    }
    address(subject).and_then(|ip| taken_by_cluster(view, ip)).or_else(|| taken_by_server(view, node, subject))
}

/// What of the cluster has an address, or may get it.
fn taken_by_cluster(view: &ObjectCache, ip: IpAddr) -> Option<String> {
    let of_service = |service: &Service| {
        let spec = service.spec.as_ref();
        let cluster = spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
        let external = spec.and_then(|spec| spec.external_ips.as_ref()).into_iter().flatten();
        cluster.chain(external).any(|text| address(text) == Some(ip))
    };
    if view.all::<Service>().any(of_service) {
        return Some("an address of a Service".to_owned());
    }
    let is_in = |cidr: &String| cidr.parse::<IpNet>().is_ok_and(|cidr| cidr.contains(&ip));
    if view.all::<ServiceCIDR>().filter_map(|range| range.spec.as_ref()?.cidrs.as_ref()).flatten().any(is_in) {
        return Some("in a range of Services".to_owned());
    }
    if view.all::<Node>().filter_map(|node| node.spec.as_ref()?.pod_cidrs.as_ref()).flatten().any(is_in) {
        return Some("in a node's range of pods".to_owned());
    }
    None
}

/// Whether an API server serves under a name or address, as far as the Node isn't on the machine of one.
fn taken_by_server(view: &ObjectCache, node: &Node, subject: &str) -> Option<String> {
    if is_control_plane(node) {
        return None;
    }
    let Some(record) = view.get::<ConfigMap>(&record_key()) else {
        return Some(format!(
            "not known to be no API server's: the ConfigMap kube-system/{} is missing",
            names::API_SERVERS
        ));
    };
    let record = record.data.as_ref().and_then(|data| data.get(names::API_SERVER_ADDRESSES));
    let recorded = record.into_iter().flat_map(|lines| lines.lines());
    let servers = view.get::<Endpoints>(&ObjectKey::new("default", "kubernetes"));
    let subsets = servers.iter().flat_map(|servers| servers.subsets.iter().flatten());
    let present = subsets.flat_map(|subset| subset.addresses.iter().flatten()).map(|of| of.ip.as_str());
    recorded
        .chain(present)
        .any(|recorded| covers(recorded, subject))
        .then(|| format!("an API server's: if the node is on its machine, label the Node with {CONTROL_PLANE}"))
}

/// Whether a recorded address or name, also a pattern, is the requested one to those who verify a certificate.
fn covers(recorded: &str, subject: &str) -> bool {
    let name = |text: &str| text.trim().trim_end_matches('.').to_ascii_lowercase();
    if let Some(ip) = address(subject) {
        return address(recorded.trim()) == Some(ip);
    }
    let (recorded, subject) = (name(recorded), name(subject));
    match recorded.strip_prefix("*.") {
        Some(domain) => subject.split_once('.').is_some_and(|(_, rest)| rest == domain),
        None => recorded == subject,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::table_tests::{decide, start};

    const NAME: &str = "kubelet-serving-approving-controller";
    const SERVING: &str = include_str!("testdata/serving.pem");

    /// A subject of text attributes by the last arc of their type (3: CN, 10: O). Lengths below 128.
    fn subject(attributes: &[(u8, &str)]) -> Vec<u8> {
        let wrap = |tag: u8, body: Vec<u8>| [vec![tag, u8::try_from(body.len()).unwrap()], body].concat();
        let attribute = |(arc, text): &(u8, &str)| {
            let pair = [vec![6, 3, 0x55, 4, *arc], wrap(12, text.as_bytes().to_vec())].concat();
            wrap(0x31, wrap(0x30, pair))
        };
        wrap(0x30, attributes.iter().flat_map(attribute).collect())
    }

    fn request() -> CertificateRequest {
        CertificateRequest {
            common_name: "system:node:n1".into(),
            organizations: vec![NODES.into()],
            dns_names: vec!["n1".into()],
            ip_addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            emails: Vec::new(),
            uris: Vec::new(),
            subject_der: subject(&[(10, NODES), (3, "system:node:n1")]),
            public_key_der: Vec::new(),
        }
    }

    fn csr(change: Value) -> CertificateSigningRequest {
        let mut csr = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": "r", "creationTimestamp": "2025-12-31T23:59:00Z"},
            "spec": {
                "request": "", "signerName": KUBELET_SERVING_SIGNER, "usages": ["digital signature", "server auth"],
                "username": "system:node:n1", "groups": ["system:nodes", "system:authenticated"],
            },
        });
        for (pointer, value) in change.as_object().unwrap() {
            *csr.pointer_mut(pointer).unwrap() = value.clone();
        }
        serde_json::from_value(csr).unwrap()
    }

    fn node(name: &str, born: &str, addresses: &[(&str, &str)]) -> Value {
        let addresses = addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address}));
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "creationTimestamp": born},
            "status": {"addresses": addresses.collect::<Vec<_>>()},
        })
    }

    fn n1() -> Value {
        let addresses = [
            ("InternalIP", "192.0.2.1"),
            ("InternalIP", "2001:DB8:0::1"),
            ("Hostname", "n1"),
            ("ExternalDNS", "n1.example"),
            ("Hostname", "kubernetes.default"),
            ("ExternalDNS", "api.example"),
            ("InternalIP", "::ffff:192.0.2.9"),
            ("Hostname", "*.example"),
            ("InternalIP", "127.0.0.1"),
        ];
        node("n1", "2025-12-31T00:00:00Z", &addresses)
    }

    fn record(lines: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": names::API_SERVERS, "namespace": "kube-system"},
            "data": {names::API_SERVER_ADDRESSES: lines},
        })
    }

    /// The verdict in a cluster of objects, the Node n1 among them.
    fn verdict(csr: &CertificateSigningRequest, request: &CertificateRequest, others: Vec<Value>) -> Verdict {
        let simulation = crate::simulation(start(), others.into_iter().chain([n1(), record("192.0.2.77\n")]));
        let view = &simulation.view;
        let found = node_of(csr).and_then(|name| view.get(&ObjectKey::cluster(name)));
        judge(csr, request, found, start(), &|node, name| taken(view, node, name))
    }

    fn leaves(csr: &CertificateSigningRequest, request: &CertificateRequest, why: &str) {
        match verdict(csr, request, Vec::new()) {
            Verdict::Leave(reason) => assert!(reason.contains(why), "{reason}"),
            other => panic!("{other:?} instead of {why}"),
        }
    }

    #[test]
    fn a_node_gets_its_own_addresses() {
        let all = CertificateRequest { dns_names: vec!["n1".into(), "n1.example".into()], ..request() };
        assert_eq!(verdict(&csr(json!({})), &all, Vec::new()), Verdict::Approve);
        assert_eq!(verdict(&csr(json!({})), &request(), Vec::new()), Verdict::Approve);
    }

    #[test]
    fn hostile_requests_are_left_to_the_administrator() {
        let (ours, base) = (csr(json!({})), request());
        let with = |change: &dyn Fn(&mut CertificateRequest)| {
            let mut request = request();
            change(&mut request);
            request
        };
        // Another name.
        leaves(&csr(json!({"/spec/username": "system:node:n2"})), &base, "not the requester");
        leaves(&csr(json!({"/spec/username": "ann"})), &base, "no node");
        leaves(&csr(json!({"/spec/username": "system:node:"})), &base, "no node");
        leaves(&csr(json!({"/spec/groups": ["system:authenticated"]})), &base, "no node");
        leaves(&ours, &with(&|r| r.common_name = "system:node:n10".into()), "not the requester");
        leaves(&ours, &with(&|r| r.organizations.push("system:masters".into())), "organization");
        let two = subject(&[(3, "kube-apiserver"), (10, NODES), (3, "system:node:n1")]);
        leaves(&ours, &with(&|r| r.subject_der.clone_from(&two)), "more than");
        leaves(&ours, &with(&|r| r.subject_der.clear()), "more than");
        // Other names.
        leaves(&ours, &with(&|r| r.dns_names.push("n2".into())), "n2 is not among");
        leaves(&ours, &with(&|r| r.dns_names.push("N1.example.".into())), "is not among");
        leaves(&ours, &with(&|r| r.ip_addresses.push("192.0.2.2".parse().unwrap())), "192.0.2.2 is not among");
        leaves(&ours, &with(&|r| r.dns_names.push("*.example".into())), "is no node's");
        leaves(&ours, &with(&|r| r.ip_addresses.push("127.0.0.1".parse().unwrap())), "is no node's");
        leaves(&ours, &with(&|r| r.dns_names.push("kubernetes.default".into())), "is no node's");
        leaves(&ours, &with(&|r| r.dns_names.push("api.example".into())), "other than the Node's");
        leaves(&ours, &with(&|r| r.uris.push("https://n1".into())), "URI");
        leaves(&ours, &with(&|r| r.emails.push("a@n1".into())), "Email");
        let none = |r: &mut CertificateRequest| (r.dns_names, r.ip_addresses) = (Vec::new(), Vec::new());
        leaves(&ours, &with(&none), "required");
        leaves(&ours, &with(&|r| r.dns_names = vec!["n1".into(); 33]), "more than 32");
        // Other usages.
        for usages in [json!(["server auth"]), json!(["digital signature", "server auth", "client auth"]), json!([])] {
            leaves(&csr(json!({"/spec/usages": usages})), &base, "usages");
        }
        // Objects of another time.
        leaves(&csr(json!({"/metadata/creationTimestamp": "2025-12-31T22:59:00Z"})), &base, "older than an hour");
        leaves(&csr(json!({"/metadata/creationTimestamp": null})), &base, "no time");
        leaves(&csr(json!({"/metadata/creationTimestamp": "2027-01-01T00:00:00Z"})), &base, "in the future");
    }

    #[test]
    fn addresses_of_others_are_not_certified() {
        let why = |others: Vec<Value>| match verdict(&csr(json!({})), &request(), others) {
            Verdict::Leave(why) => why,
            other => format!("{other:?}"),
        };
        let old = node("old", "2025-01-01T00:00:00Z", &[("InternalIP", "192.0.2.1")]);
        assert_eq!(why(vec![old]), "192.0.2.1 is an address of the older Node old");
        let new = node("new", "2025-12-31T23:00:00Z", &[("InternalIP", "192.0.2.1"), ("Hostname", "n1")]);
        assert_eq!(why(vec![new]), "Approve", "a newer Node takes nothing from an older one");
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "a"},
            "spec": {"clusterIPs": ["192.0.2.1"]},
        });
        assert_eq!(why(vec![service]), "192.0.2.1 is an address of a Service");
        let range = |cidr: &str| {
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "r"},
                "spec": {"cidrs": [cidr]},
            })
        };
        assert_eq!(why(vec![range("2001:db8::/64")]), "2001:db8::1 is in a range of Services");
        assert_eq!(why(vec![range("198.51.100.0/24")]), "Approve");
        let mut with_pods = node("n2", "2025-12-31T23:00:00Z", &[]);
        with_pods["spec"] = json!({"podCIDRs": ["192.0.2.0/30"]});
        assert_eq!(why(vec![with_pods]), "192.0.2.1 is in a node's range of pods");
        // The same address in IPv6's notation.
        let mapped = CertificateRequest { ip_addresses: vec!["::ffff:192.0.2.9".parse().unwrap()], ..request() };
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "a"},
            "spec": {"clusterIPs": ["192.0.2.9"]},
        });
        let given = verdict(&csr(json!({})), &mapped, vec![service]);
        assert_eq!(given, Verdict::Leave("::ffff:192.0.2.9 is an address of a Service".into()));
        let servers = json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "kubernetes", "namespace": "default"},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}]}],
        });
        assert!(why(vec![servers.clone()]).starts_with("192.0.2.1 is an API server's"));
        let mut labelled = n1();
        labelled["metadata"]["labels"] = json!({CONTROL_PLANE: ""});
        let simulation = crate::simulation(start(), [servers, labelled, record("192.0.2.1")]);
        let found = simulation.view.get(&ObjectKey::cluster("n1"));
        let given =
            judge(&csr(json!({})), &request(), found, start(), &|node, name| taken(&simulation.view, node, name));
        assert_eq!(given, Verdict::Approve);
        let named = node("n1.example", "2025-12-31T23:00:00Z", &[]);
        let request = CertificateRequest { dns_names: vec!["n1.example".into()], ..request() };
        let given = verdict(&csr(json!({})), &request, vec![named]);
        assert_eq!(given, Verdict::Leave("n1.example is another Node's name".into()));
        for (name, reserved) in [
            ("localhost", true),
            ("Kubernetes", true),
            ("kubernetes.default.svc.cluster.local", true),
            ("web.shop.svc", true),
            ("0.0.0.0", true),
            ("ff02::1", true),
            ("127.0.0.1", true),
            ("127.64.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("kubernetes-1", false),
            ("n1.svcs.example", false),
        ] {
            assert_eq!(is_reserved(name), reserved, "{name}");
        }
    }

    /// A server that is stopped is no endpoint, but its clients come back.
    #[test]
    fn a_stopped_api_servers_address_is_not_given() {
        let given = |others: Vec<Value>| {
            let simulation = crate::simulation(start(), others.into_iter().chain([n1()]));
            let found = simulation.view.get(&ObjectKey::cluster("n1"));
            judge(&csr(json!({})), &request(), found, start(), &|node, name| taken(&simulation.view, node, name))
        };
        let leaves = |others: Vec<Value>, why: &str| match given(others) {
            Verdict::Leave(reason) => assert!(reason.starts_with(why), "{reason}"),
            other => panic!("{other:?} instead of {why}"),
        };
        leaves(vec![record("192.0.2.9\n192.0.2.1\n")], "192.0.2.1 is an API server's");
        leaves(vec![record(" ::ffff:192.0.2.1 ")], "192.0.2.1 is an API server's");
        leaves(Vec::new(), "n1 is not known to be no API server's");
        assert_eq!(given(vec![record("192.0.2.9\n2001:db8::2\n")]), Verdict::Approve);
        assert_eq!(given(vec![record("")]), Verdict::Approve);
        // The names of `--tls-san`: the bearer of a bootstrap token chooses the name of its node.
        leaves(vec![record("N1. \n")], "n1 is an API server's");
        assert_eq!(given(vec![record("n1.example\nn11\n*.n1\n*.example\n")]), Verdict::Approve);
        for (recorded, subject, is_covered) in [
            ("api.example", "API.Example.", true),
            (" api.example.\r", "api.example", true),
            ("*.example", "n1.example", true),
            ("*.example", "n1.zone.example", false),
            ("*.example", "example", false),
            ("api.example", "n1.example", false),
            ("2001:db8:0::1", "2001:db8::1", true),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "192.0.2.10", false),
            ("", "n1", false),
        ] {
            assert_eq!(covers(recorded, subject), is_covered, "{recorded:?} {subject}");
        }
    }

    #[test]
    fn a_request_waits_for_its_node() {
        let mut waiting = serde_json::to_value(csr(json!({}))).unwrap();
        (waiting["apiVersion"], waiting["kind"]) =
            ("certificates.k8s.io/v1".into(), "CertificateSigningRequest".into());
        waiting["spec"]["request"] = serde_json::to_value(k8s_openapi::ByteString(SERVING.into())).unwrap();
        let mut simulation = crate::simulation(start(), [waiting, record("")]);
        let key = ObjectKey::cluster("r");
        assert_eq!(decide(NAME, &simulation, &key), Plan::nothing());
        let mut registered = n1();
        registered["metadata"]["creationTimestamp"] = "2025-12-31T23:00:00Z".into();
        let kind = simulation.kind_of(&registered);
        simulation.create(&kind, registered);
        let plan = decide(NAME, &simulation, &key);
        let [machinery_client::Action::Update { object, subresource: Some("approval"), .. }] = plan.actions.as_slice()
        else {
            panic!("{plan:?}")
        };
        assert_eq!(object["status"]["conditions"][0]["type"], "Approved");
        assert_eq!(simulation.apply(plan), Vec::<String>::new());
        assert_eq!(decide(NAME, &simulation, &key), Plan::nothing());
        // The Node of another machine with that name.
        let mut later = n1();
        later["metadata"]["creationTimestamp"] = "2025-12-31T23:59:30Z".into();
        let later: Node = serde_json::from_value(later).unwrap();
        let verdict = judge(&csr(json!({})), &request(), Some(&later), start(), &|_, _| None);
        assert!(matches!(verdict, Verdict::Leave(why) if why.contains("earlier node")));
    }
}
