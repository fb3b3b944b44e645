//! What the table makes of Services and slices.

use super::*;
use serde_json::{Value, json};

pub(crate) fn endpoint(ip: &str, port: u16) -> Arc<Endpoint> {
    let hostname = ip.replace('.', "-");
    Arc::new(Endpoint {
        ip: ip.parse().unwrap(),
        port,
        node: None,
        hints: Hints::default(),
        hostname,
        in_flight: InFlightCount::default(),
    })
}

pub(crate) fn route(ips: &[&str]) -> PortRoute {
    PortRoute { ready: ips.iter().map(|ip| endpoint(ip, 80)).collect(), ..PortRoute::default() }
}

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec})).unwrap()
}

fn slice(service: &str, endpoints: &Value) -> EndpointSlice {
    serde_json::from_value(
        json!({"metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints}),
    )
    .unwrap()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

#[test]
fn a_service_gets_its_listeners_and_endpoints() {
    let mut table = Table::default();
    let change = table.service(
        &key("web"),
        Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80, "nodePort": 30080}]}))),
    );
    assert_eq!(
        change.set.keys().copied().collect::<Vec<_>>(),
        [Listen::Cluster("127.64.0.10".parse().unwrap(), 80), Listen::Node(30080)]
    );
    let changes = table.slice(
        &key("web-1"),
        Some(slice("web", &json!([{"addresses": ["127.66.0.2"], "conditions": {"ready": true}}]))),
    );
    let route = changes[0].set.values().next().unwrap();
    assert_eq!((route.usable()[0].ip.to_string(), route.usable()[0].port), ("127.66.0.2".to_owned(), 8080));
    assert_eq!(table.routed_ips().len(), 1);
    let change = table.service(&key("web"), None);
    assert_eq!(change.closed.len(), 2);
    assert!(table.routed_ips().is_empty());
}

#[test]
fn a_load_balancer_is_served_at_addresses_of_the_pool() {
    let mut table = Table::of("127.59.0.0/24".parse().unwrap(), BTreeSet::new());
    let balancer = |kind: &str, ingress: Value| {
        serde_json::from_value::<Service>(json!({"metadata": {"name": "web", "namespace": "default",
                "annotations": {SOURCE_RANGES: "192.0.2.0/24, 198.51.100.0/24"}},
            "spec": {"type": kind, "clusterIP": "127.64.0.10", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": ingress}}}))
        .ok()
    };
    let given = json!([{"ip": "127.59.0.1", "ipMode": "VIP"}, {"ip": "127.59.0.2"}, {"ip": "127.59.0.3", "ipMode": "Proxy"},
        {"ip": "127.0.0.1"}, {"hostname": "x"}]);
    let change = table.service(&key("web"), balancer("LoadBalancer", given.clone()));
    let at = |ip: &str| Listen::Balancer(ip.parse().unwrap(), 80);
    let cluster = Listen::Cluster("127.64.0.10".parse().unwrap(), 80);
    assert_eq!(change.set.keys().copied().collect::<Vec<_>>(), [cluster, at("127.59.0.1"), at("127.59.0.2")]);
    assert_eq!(change.cluster_ips.len(), 3, "guests find it there");
    let route = &change.set[&at("127.59.0.1")];
    let admits = |ip: &str| route.admits(Some(ip.parse().unwrap()));
    assert!(admits("192.0.2.7") && admits("::ffff:198.51.100.1") && !admits("127.0.0.1") && !route.admits(None));
    let change = table.service(&key("web"), balancer("ClusterIP", given));
    assert_eq!(change.closed, [at("127.59.0.1"), at("127.59.0.2")].into());
    assert!(table.by_ip("127.59.0.1".parse().unwrap()).is_none());
}

#[test]
fn a_local_external_policy_keeps_traffic_on_this_machine() {
    let mut table =
        Table::of("127.59.0.0/24".parse().unwrap(), ["coracle-1".to_owned(), "coracle-2".to_owned()].into());
    let balancer = |policy: &str| {
        json!({"type": "LoadBalancer", "clusterIP": "127.64.0.10", "externalTrafficPolicy": policy, "healthCheckNodePort": 32000,
            "ports": [{"port": 80, "nodePort": 30080}, {"name": "too", "port": 81}]})
    };
    let of = |policy: &str| {
        let status = json!({"loadBalancer": {"ingress": [{"ip": "127.59.0.1"}]}});
        Some(Service { status: serde_json::from_value(status).unwrap(), ..service(balancer(policy)) })
    };
    let on = |ip: &str, node: Option<&str>, ready: bool| {
        json!({"addresses": [ip], "nodeName": node,
        "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    };
    let endpoints = json!([
        on("127.66.0.2", Some("coracle-2"), true),
        on("127.66.0.3", Some("coracle-1"), false),
        on("192.0.2.1", Some("elsewhere"), true),
        on("192.0.2.2", None, true)
    ]);
    let mut two = slice("web", &endpoints);
    two.ports = serde_json::from_value(json!([{"name": "", "port": 8080}, {"name": "too", "port": 8081}])).unwrap();
    table.slice(&key("web-1"), Some(two.clone()));
    let change = table.service(&key("web"), of("Local"));
    let ips = |route: &PortRoute| route.usable().iter().map(|one| one.ip.to_string()).collect::<Vec<_>>();
    let (node, outside) = (Listen::Node(30080), Listen::Balancer("127.59.0.1".parse().unwrap(), 80));
    assert_eq!(
        (ips(&change.set[&node]), ips(&change.set[&outside])),
        (vec!["127.66.0.2".into()], vec!["127.66.0.2".into()])
    );
    let cluster = &change.set[&Listen::Cluster("127.64.0.10".parse().unwrap(), 80)];
    assert_eq!(ips(cluster).len(), 3, "guests and ClusterIPs have them all");
    assert_eq!(ips(&change.set[&Listen::Health(32000)]), ["127.66.0.2"], "once, whatever its ports");
    two.endpoints = serde_json::from_value(json!([on("127.66.0.3", Some("coracle-1"), false), endpoints[2]])).unwrap();
    let change = table.slice(&key("web-1"), Some(two)).remove(0);
    assert_eq!(ips(&change.set[&outside]), ["127.66.0.3"], "one that ends and serves, before none");
    assert!(change.set[&Listen::Health(32000)].ready.is_empty(), "and nobody is to begin with it");
    let change = table.service(&key("web"), of("Cluster"));
    assert_eq!(change.closed, [Listen::Health(32000)].into());
    assert_eq!(ips(&change.set[&outside]), ["192.0.2.1"]);
}

#[test]
fn terminating_endpoints_serve_only_where_none_is_ready() {
    let mut table = Table::default();
    table.service(&key("web"), Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}))));
    let going =
        json!({"addresses": ["127.66.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    table.slice(&key("web-1"), Some(slice("web", &json!([going, {"addresses": ["127.66.0.3"]}]))));
    let ips = |table: &Table| -> Vec<String> {
        table
            .routes(&key("web"))
            .unwrap()
            .tcp(80)
            .unwrap()
            .usable()
            .iter()
            .map(|endpoint| endpoint.ip.to_string())
            .collect()
    };
    assert_eq!(ips(&table), ["127.66.0.3"]);
    table.slice(&key("web-1"), Some(slice("web", &json!([going]))));
    assert_eq!(ips(&table), ["127.66.0.2"]);
    assert!(table.routed_ips().is_empty(), "a draining pod need not wait for itself");
}

#[test]
fn a_slice_that_changes_hands_moves_its_endpoints() {
    let mut table = Table::default();
    for name in ["web", "api"] {
        table.service(&key(name), Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}))));
    }
    let endpoints = json!([{"addresses": ["127.66.0.2"]}]);
    table.slice(&key("web-1"), Some(slice("web", &endpoints)));
    assert_eq!(table.slice(&key("web-1"), Some(slice("api", &endpoints))).len(), 2);
    assert!(table.routes(&key("web")).unwrap().tcp(80).unwrap().usable().is_empty());
    assert_eq!(table.routes(&key("api")).unwrap().tcp(80).unwrap().usable().len(), 1);
}

#[test]
fn a_new_owner_keeps_the_ports_of_a_deleted_service() {
    let mut table = Table::default();
    let spec = || Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80, "nodePort": 30080}]})));
    table.service(&key("dead"), spec());
    // A list after a gap delivers the new owner before the deletion.
    assert_eq!(table.service(&key("heir"), spec()).set.len(), 2);
    let change = table.service(&key("dead"), None);
    assert!(change.closed.is_empty() && change.set.is_empty(), "{change:?}");
    assert_eq!(table.by_ip("127.64.0.10".parse().unwrap()).unwrap().tcp(80).unwrap().node_port, Some(30080));
    assert_eq!(table.service(&key("heir"), None).closed.len(), 2);
}

#[test]
fn a_port_claimed_twice_returns_to_the_first_service() {
    let mut table = Table::default();
    let spec = || Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]})));
    table.service(&key("first"), spec());
    table.service(&key("second"), spec());
    assert!(table.service(&key("first"), spec()).set.is_empty(), "an update is no claim");
    let change = table.service(&key("second"), None);
    assert_eq!(change.set.values().next().unwrap().via.as_ref().unwrap().service, key("first"));
    assert!(change.closed.is_empty() && table.by_ip("127.64.0.10".parse().unwrap()).is_some());
}

#[test]
fn clients_are_forgotten_with_their_service() {
    let mut table = Table::default();
    let spec = json!({"clusterIP": "127.64.0.10", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
    table.service(&key("web"), Some(service(spec)));
    let clients = Arc::downgrade(&table.routes(&key("web")).unwrap().tcp(80).unwrap().sticky.as_ref().unwrap().clients);
    table.slice(&key("web-1"), Some(slice("web", &json!([{"addresses": ["127.66.0.2"]}]))));
    assert!(clients.upgrade().is_some(), "a change of endpoints forgets nobody");
    table.service(&key("web"), None);
    assert!(clients.upgrade().is_none());
}

#[test]
fn tcp_and_udp_of_one_number_are_two_ports() {
    let mut table = Table::default();
    let ports = json!([{"name": "tcp", "port": 53, "protocol": "TCP"}, {"name": "udp", "port": 53, "protocol": "UDP"}]);
    let change = table.service(&key("dns"), Some(service(json!({"clusterIP": "127.64.0.10", "ports": ports}))));
    assert_eq!(change.set.values().map(|route| route.name.as_str()).collect::<Vec<_>>(), ["tcp", "udp"]);
}

#[test]
fn only_changes_are_published() {
    let mut table = Table::default();
    table.service(&key("web"), Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}))));
    let with = |table: &mut Table, ips: &[&str]| {
        let endpoints: Vec<Value> = ips.iter().map(|ip| json!({"addresses": [ip]})).collect();
        let change = table.slice(&key("web-1"), Some(slice("web", &json!(endpoints)))).remove(0);
        (change.begun.len(), change.ceased.len())
    };
    assert_eq!(with(&mut table, &["127.66.0.2", "127.66.0.3"]), (2, 0));
    assert_eq!(with(&mut table, &["127.66.0.2", "127.66.0.4"]), (1, 1));
    assert_eq!(with(&mut table, &["127.66.0.2", "127.66.0.4"]), (0, 0));
}

#[test]
fn counters_survive_a_change_of_the_table() {
    let mut table = Table::default();
    table.service(&key("web"), Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}))));
    let endpoints = json!([{"addresses": ["127.66.0.2"]}]);
    table.slice(&key("web-1"), Some(slice("web", &endpoints)));
    let open = table.routes(&key("web")).unwrap().tcp(80).unwrap().usable()[0].in_flight.start();
    table.slice(
        &key("web-1"),
        Some(slice("web", &json!([{"addresses": ["127.66.0.2"]}, {"addresses": ["127.66.0.3"]}]))),
    );
    assert_eq!(table.routes(&key("web")).unwrap().tcp(80).unwrap().usable()[0].in_flight.count(), 1);
    drop(open);
}

#[test]
fn datagrams_have_listeners_of_their_own() {
    let mut table = Table::default();
    let ports = json!([{"name": "a", "port": 53, "nodePort": 30053, "protocol": "UDP"}, {"name": "b", "port": 53},
        {"name": "c", "port": 54, "protocol": "SCTP"}]);
    let change = table.service(&key("web"), Some(service(json!({"clusterIP": "127.64.0.10", "ports": ports}))));
    let cluster = "127.64.0.10".parse().unwrap();
    let udp = [Entrance::Cluster(cluster, 53), Entrance::Node(30053)].map(Listen::Datagrams);
    assert_eq!(change.set.keys().copied().collect::<Vec<_>>(), [&[Listen::Cluster(cluster, 53)], &udp[..]].concat());
}

#[test]
fn an_external_address_is_of_the_pool_and_takes_no_others() {
    let mut table = Table::of("127.59.0.0/24".parse().unwrap(), BTreeSet::new());
    let external =
        |ips: &[&str]| Some(service(json!({"clusterIP": "None", "ports": [{"port": 80}], "externalIPs": ips})));
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let at = |text: &str| Listen::External(ip(text), 80);
    let change = table.service(&key("web"), external(&["127.59.0.1", "127.59.0.2", "127.0.0.1", "192.0.2.1"]));
    assert_eq!(change.set.keys().copied().collect::<Vec<_>>(), [at("127.59.0.1"), at("127.59.0.2")]);
    // Another Service takes none of them (CVE-2020-8554).
    let change = table.service(&key("thief"), external(&["127.59.0.1"]));
    assert!(change.set.is_empty());
    assert_eq!(table.by_ip(ip("127.59.0.1")).unwrap().key, Some(key("web")));
    // A load balancer's address is the load balancer's.
    let balancer = serde_json::from_value::<Service>(json!({"metadata": {"name": "lb", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "clusterIP": "None", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "127.59.0.2"}]}}}));
    table.service(&key("lb"), balancer.ok());
    assert_eq!(table.by_ip(ip("127.59.0.2")).unwrap().key, Some(key("lb")));
    let change = table.service(&key("web"), None);
    assert_eq!((change.set.len(), change.closed.len()), (1, 1), "the address goes to the next");
    assert!(change.set.contains_key(&at("127.59.0.1")) && change.closed.contains(&at("127.59.0.2")));
    assert_eq!(table.by_ip(ip("127.59.0.1")).unwrap().key, Some(key("thief")));
}
