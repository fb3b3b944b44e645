//! Answers by kind of record, and exchanges over real sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use machinery_api::ObjectKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::answer::{ClusterAnswer, Decision, Zone, answer};
use super::records::absolute;
use super::server::DnsServer;
use super::{DnsSockets, serve};
use crate::plane::tests::{PlaneWithTable, plane};
use crate::routing::snapshot::RouteSnapshot;
use crate::routing::table::Table;

/// A table with routes: Services and slices as JSON.
pub(crate) fn routes(services: &[(&str, Value)], slices: &[(&str, Value)]) -> RouteSnapshot {
    let mut table = Table::default();
    let snapshot = RouteSnapshot::default();
    for (name, spec) in services {
        let service = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        let change = table.service(&ObjectKey::new("shop", *name), serde_json::from_value(service).unwrap());
        snapshot.install(&change);
    }
    for (index, (service, rest)) in slices.iter().enumerate() {
        let mut slice = json!({"addressType": "IPv4", "metadata": {"name": format!("s{index}"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service}}});
        slice.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let key = ObjectKey::new("shop", format!("s{index}"));
        for change in table.slice(&key, serde_json::from_value(slice).unwrap()) {
            snapshot.install(&change);
        }
    }
    snapshot
}

/// The shop: a ClusterIP, a headless, an external and a StatefulSet-like Service.
pub(crate) fn shop() -> RouteSnapshot {
    let http = json!({"name": "http", "port": 80, "protocol": "TCP"});
    let services = [
        (
            "catalog",
            json!({"clusterIP": "127.64.0.20", "ports": [http, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        ("crew", json!({"clusterIP": "None", "ports": [http]})),
        ("bare", json!({"clusterIP": "None"})),
        ("idle", json!({"clusterIP": "None", "ports": [http]})),
        ("db", json!({"type": "ExternalName", "externalName": "db.example.com"})),
        ("alias", json!({"type": "ExternalName", "externalName": "Catalog.shop.svc.cluster.local."})),
        ("loop", json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"})),
        ("six", json!({"clusterIP": "fd00::20", "clusterIPs": ["fd00::20", "127.64.0.21"], "ports": [http]})),
    ];
    let ports = json!([{"name": "http", "port": 8080}]);
    let slices = [
        ("catalog", json!({"ports": ports, "endpoints": [{"addresses": ["127.66.0.2"]}]})),
        (
            "crew",
            json!({"ports": ports, "endpoints": [{"addresses": ["127.66.0.3"], "hostname": "crew-0"},
            {"addresses": ["127.66.0.4"], "hostname": "crew-1"},
            {"addresses": ["127.66.0.5"], "hostname": "crew-2", "conditions": {"ready": false}}]}),
        ),
        ("bare", json!({"endpoints": [{"addresses": ["127.66.0.6"]}]})),
    ];
    routes(&services, &slices)
}

pub(crate) fn zone(routes: &RouteSnapshot) -> Zone<'_> {
    const CIDRS: [&str; 2] = ["127.64.0.0/16", "127.66.0.0/15"];
    let cidrs: Vec<ipnet::IpNet> = CIDRS.iter().map(|cidr| cidr.parse().unwrap()).collect();
    let server = Some("127.64.0.10".parse().unwrap());
    Zone { routes, cidrs: cidrs.leak(), server, serial: 7, synced: true, records_max: 4_096 }
}

fn ask(name: &str, kind: RecordType) -> Decision {
    answer(&zone(&shop()), &Query::query(absolute(name).unwrap(), kind))
}

fn answered(name: &str, kind: RecordType) -> ClusterAnswer {
    match ask(name, kind) {
        Decision::Answer(answer) => answer,
        Decision::Forward => panic!("{name} is forwarded"),
    }
}

fn texts(records: &[Record]) -> Vec<String> {
    let mut all: Vec<String> =
        records.iter().map(|record| format!("{} {} {}", record.name, record.record_type(), record.data)).collect();
    all.sort();
    all
}

#[test]
fn each_kind_of_name_has_its_records() {
    use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
    let catalog = "catalog.shop.svc.cluster.local.";
    for (name, kind, records) in [
        (catalog, A, vec!["127.64.0.20"]),
        ("six.shop.svc.cluster.local.", A, vec!["127.64.0.21"]),
        ("six.shop.svc.cluster.local.", AAAA, vec!["fd00::20"]),
        ("crew.shop.svc.cluster.local.", A, vec!["127.66.0.3", "127.66.0.4"]),
        ("bare.shop.svc.cluster.local.", A, vec!["127.66.0.6"]),
        ("crew-1.crew.shop.svc.cluster.local.", A, vec!["127.66.0.4"]),
        ("127-66-0-2.catalog.shop.svc.cluster.local.", A, vec!["127.66.0.2"]),
        ("_http._tcp.crew.shop.svc.cluster.local.", A, vec!["127.66.0.3", "127.66.0.4"]),
        ("127-66-9-9.any.pod.cluster.local.", A, vec!["127.66.9.9"]),
        ("2001-db8--1.any.pod.cluster.local.", AAAA, vec!["2001:db8::1"]),
        ("ns.dns.cluster.local.", A, vec!["127.64.0.10"]),
        ("dns-version.cluster.local.", TXT, vec!["1.1.0"]),
        ("cluster.local.", NS, vec!["ns.dns.cluster.local."]),
        ("cluster.local.", SOA, vec!["ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30"]),
        ("_http._tcp.catalog.shop.svc.cluster.local.", SRV, vec!["0 100 80 catalog.shop.svc.cluster.local."]),
        ("_dns._udp.catalog.shop.svc.cluster.local.", SRV, vec!["0 100 53 catalog.shop.svc.cluster.local."]),
        (catalog, SRV, vec!["0 50 53 catalog.shop.svc.cluster.local.", "0 50 80 catalog.shop.svc.cluster.local."]),
        (
            "_http._tcp.crew.shop.svc.cluster.local.",
            SRV,
            vec!["0 50 8080 crew-0.crew.shop.svc.cluster.local.", "0 50 8080 crew-1.crew.shop.svc.cluster.local."],
        ),
        ("20.0.64.127.in-addr.arpa.", PTR, vec![catalog]),
        ("3.0.66.127.in-addr.arpa.", PTR, vec!["crew-0.crew.shop.svc.cluster.local."]),
        ("6.0.66.127.in-addr.arpa.", PTR, vec!["127-66-0-6.bare.shop.svc.cluster.local."]),
        ("db.shop.svc.cluster.local.", CNAME, vec!["db.example.com."]),
    ] {
        let answer = answered(name, kind);
        let expected: Vec<String> = records.iter().map(|record| format!("{name} {kind} {record}")).collect();
        assert_eq!((texts(&answer.answers), answer.code), (expected, ResponseCode::NoError), "{name} {kind}");
        assert!(answer.answers.iter().all(|record| record.ttl == 30), "{name}");
    }
}

#[test]
fn srv_answers_have_the_targets_addresses() {
    let answer = answered("_http._tcp.crew.shop.svc.cluster.local", RecordType::SRV);
    assert_eq!(
        texts(&answer.additionals),
        ["crew-0.crew.shop.svc.cluster.local. A 127.66.0.3", "crew-1.crew.shop.svc.cluster.local. A 127.66.0.4"]
    );
}

#[test]
fn absence_of_a_name_and_of_a_record_differ() {
    use RecordType::{A, AAAA, MX, PTR, TXT};
    for (name, kind, code, zone) in [
        ("nope.shop.svc.cluster.local", A, ResponseCode::NXDomain, "cluster.local."),
        ("nope.cluster.local", A, ResponseCode::NXDomain, "cluster.local."),
        ("idle.shop.svc.cluster.local", A, ResponseCode::NXDomain, "cluster.local."),
        ("crew-2.crew.shop.svc.cluster.local", A, ResponseCode::NXDomain, "cluster.local."),
        ("_x._tcp.catalog.shop.svc.cluster.local", RecordType::SRV, ResponseCode::NXDomain, "cluster.local."),
        ("x.catalog.shop.svc.cluster.local", A, ResponseCode::NXDomain, "cluster.local."),
        ("none.svc.cluster.local", A, ResponseCode::NXDomain, "cluster.local."),
        ("a.b.c.d.e.svc.cluster.local", A, ResponseCode::NXDomain, "cluster.local."),
        ("1-2-3.any.pod.cluster.local", A, ResponseCode::NXDomain, "cluster.local."),
        ("9.9.64.127.in-addr.arpa", PTR, ResponseCode::NXDomain, "64.127.in-addr.arpa."),
        ("2.0.66.127.in-addr.arpa", PTR, ResponseCode::NXDomain, "66.127.in-addr.arpa."),
        ("catalog.shop.svc.cluster.local", AAAA, ResponseCode::NoError, "cluster.local."),
        ("catalog.shop.svc.cluster.local", MX, ResponseCode::NoError, "cluster.local."),
        ("bare.shop.svc.cluster.local", RecordType::SRV, ResponseCode::NoError, "cluster.local."),
        ("_tcp.catalog.shop.svc.cluster.local", A, ResponseCode::NoError, "cluster.local."),
        ("shop.svc.cluster.local", A, ResponseCode::NoError, "cluster.local."),
        ("svc.cluster.local", A, ResponseCode::NoError, "cluster.local."),
        ("cluster.local", TXT, ResponseCode::NoError, "cluster.local."),
        ("20.0.64.127.in-addr.arpa", A, ResponseCode::NoError, "64.127.in-addr.arpa."),
    ] {
        let answer = answered(name, kind);
        let soa = format!("{zone} SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30");
        assert_eq!((answer.code, answer.answers.len()), (code, 0), "{name}");
        assert_eq!(texts(&answer.authorities), [soa], "{name}");
        assert_eq!(answer.authorities[0].ttl, 30);
    }
}

#[test]
fn names_outside_are_forwarded_and_names_inside_never() {
    for name in ["example.com", "local", "xcluster.local", "7.2.0.192.in-addr.arpa", "64.127.in-addr.arpa", "."] {
        assert_eq!(ask(name, RecordType::PTR), Decision::Forward, "{name}");
    }
    for name in ["CLUSTER.local", "x.y.Cluster.LOCAL", "a\\.b.cluster.local", "*.cluster.local"] {
        assert!(matches!(ask(name, RecordType::A), Decision::Answer(_)), "{name}");
    }
}

#[test]
fn aliases_are_followed_within_the_cluster_only() {
    let outside = answered("db.shop.svc.cluster.local", RecordType::A);
    assert_eq!(texts(&outside.answers), ["db.shop.svc.cluster.local. CNAME db.example.com."]);
    assert_eq!(outside.alias, absolute("db.example.com"));
    let inside = answered("alias.shop.svc.cluster.local", RecordType::A);
    assert_eq!(inside.alias, None);
    assert!(matches!(&inside.answers[0].data, RData::CNAME(_)) && inside.answers.len() == 2, "{inside:?}");
    assert_eq!(answered("loop.shop.svc.cluster.local", RecordType::A).code, ResponseCode::ServFail);
    assert_eq!(answered("x.db.shop.svc.cluster.local", RecordType::A).code, ResponseCode::NXDomain);
}

#[test]
fn before_the_first_state_a_missing_name_is_a_failure() {
    let routes = shop();
    let early = Zone { synced: false, ..zone(&routes) };
    let code = |name: &str| match answer(&early, &Query::query(absolute(name).unwrap(), RecordType::A)) {
        Decision::Answer(answer) => (answer.code, answer.authorities.len()),
        Decision::Forward => panic!("forwarded"),
    };
    assert_eq!(code("nope.shop.svc.cluster.local"), (ResponseCode::ServFail, 0));
    assert_eq!(code("catalog.shop.svc.cluster.local").0, ResponseCode::NoError);
}

#[test]
fn names_follow_their_objects() {
    let mut table = Table::default();
    let snapshot = RouteSnapshot::default();
    let key = ObjectKey::new("shop", "crew");
    let service = json!({"metadata": {"name": "crew", "namespace": "shop"}, "spec": {"clusterIP": "None"}});
    let slice = |ip: &str| {
        json!({"metadata": {"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": "crew"}},
            "addressType": "IPv4", "endpoints": [{"addresses": [ip], "hostname": "crew-0"}]})
    };
    let code = |snapshot: &RouteSnapshot, name: &str, kind| match answer(
        &zone(snapshot),
        &Query::query(absolute(name).unwrap(), kind),
    ) {
        Decision::Answer(answer) => answer.code,
        Decision::Forward => panic!("forwarded"),
    };
    let (old, new) = ("3.0.66.127.in-addr.arpa", "4.0.66.127.in-addr.arpa");
    snapshot.install(&table.service(&key, serde_json::from_value(service).unwrap()));
    let slice_key = ObjectKey::new("shop", "s");
    for ip in ["127.66.0.3", "127.66.0.4"] {
        let changes = table.slice(&slice_key, serde_json::from_value(slice(ip)).unwrap());
        changes.iter().for_each(|change| snapshot.install(change));
    }
    assert_eq!(code(&snapshot, old, RecordType::PTR), ResponseCode::NXDomain);
    assert_eq!(code(&snapshot, new, RecordType::PTR), ResponseCode::NoError);
    assert_eq!(code(&snapshot, "shop.svc.cluster.local", RecordType::A), ResponseCode::NoError);
    snapshot.install(&table.service(&key, None));
    assert_eq!(code(&snapshot, new, RecordType::PTR), ResponseCode::NXDomain);
    assert_eq!(code(&snapshot, "shop.svc.cluster.local", RecordType::A), ResponseCode::NXDomain);
}

/// A running server on a free port, with its plane.
struct Served {
    plane: PlaneWithTable,
    address: SocketAddr,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start() -> Self {
        let mut plane = plane();
        plane.set_names(crate::egress::external::tests::tarpit().await);
        plane.state.set_synced();
        let spec = json!({"clusterIP": "127.64.0.20", "ports": [{"name": "http", "port": 80}]});
        crate::plane::tests::add_service(&plane, "catalog", spec, "127.66.0.2");
        let many: Vec<String> = (0..300).map(|n| format!("127.66.{}.{}", 1 + n / 200, n % 200)).collect();
        let spec = json!({"clusterIP": "None", "ports": [{"port": 80}]});
        crate::plane::tests::add_service(&plane, "crowd", spec, "127.66.0.9");
        crate::plane::tests::add_endpoints(&plane, "crowd", &many.iter().map(String::as_str).collect::<Vec<_>>());
        let sockets = DnsSockets::bind_local(None).unwrap();
        let (address, stop) = (sockets.address().unwrap(), CancellationToken::new());
        let (inner, until) = ((*plane).clone(), stop.clone());
        let running = tokio::spawn(async move { serve(&inner, vec![sockets], &until).await.unwrap() });
        Self { plane, address, stop, running }
    }

    async fn udp(&self, packet: &[u8]) -> Message {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(packet, self.address).await.unwrap();
        let mut buffer = [0; 4_096];
        let received = self.plane.state.env.timeout(Duration::from_secs(30), socket.recv(&mut buffer));
        let length = received.await.expect("an answer").unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn tcp(&self, packets: &[Vec<u8>]) -> BTreeMap<u16, Message> {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        for packet in packets {
            stream.write_u16(u16::try_from(packet.len()).unwrap()).await.unwrap();
            stream.write_all(packet).await.unwrap();
        }
        let mut answers = BTreeMap::new();
        for _ in packets {
            let length = stream.read_u16().await.unwrap();
            let mut answer = vec![0; usize::from(length)];
            stream.read_exact(&mut answer).await.unwrap();
            let message = Message::from_vec(&answer).unwrap();
            answers.insert(message.metadata.id, message);
        }
        answers
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

fn request(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(absolute(name).unwrap(), kind));
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap()
}

#[tokio::test]
async fn a_client_gets_its_answer_over_udp_with_its_own_case() {
    let served = Served::start().await;
    let reply = served.udp(&bytes(&request(77, "CaTaLoG.shop.SVC.cluster.local", RecordType::A))).await;
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (77, MessageType::Response));
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available && reply.metadata.recursion_desired);
    assert_eq!(reply.queries[0].name().to_ascii(), "CaTaLoG.shop.SVC.cluster.local.");
    assert_eq!(texts(&reply.answers), ["CaTaLoG.shop.SVC.cluster.local. A 127.64.0.20"]);
    assert!(reply.edns.is_none());
    served.end().await;
}

#[tokio::test]
async fn a_long_answer_is_truncated_over_udp_and_whole_over_tcp() {
    let served = Served::start().await;
    let mut crowd = request(1, "crowd.shop.svc.cluster.local", RecordType::A);
    let plain = served.udp(&bytes(&crowd)).await;
    assert!(plain.metadata.truncation && plain.answers.len() < 32 && plain.to_vec().unwrap().len() <= 512);
    crowd.set_edns({
        let mut edns = hickory_resolver::proto::op::Edns::new();
        edns.set_max_payload(4_096).set_dnssec_ok(true);
        edns
    });
    let larger = served.udp(&bytes(&crowd)).await;
    assert!(larger.metadata.truncation && larger.answers.len() > plain.answers.len());
    let edns = larger.edns.as_ref().unwrap();
    assert!(edns.max_payload() == 1_232 && edns.flags().dnssec_ok && larger.to_vec().unwrap().len() <= 1_232);
    let whole = &served.tcp(&[bytes(&crowd)]).await[&1];
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 300));
    served.end().await;
}

#[tokio::test]
async fn pipelined_requests_are_all_answered() {
    let served = Served::start().await;
    let packets: Vec<_> =
        (0..100).map(|id| bytes(&request(id, "catalog.shop.svc.cluster.local", RecordType::A))).collect();
    let answers = served.tcp(&packets).await;
    assert_eq!(answers.len(), 100);
    assert!(answers.values().all(|answer| answer.answers.len() == 1));
    served.end().await;
}

#[tokio::test]
async fn other_requests_are_rejected_with_their_code() {
    let served = Served::start().await;
    let name = "catalog.shop.svc.cluster.local";
    let code = async |packet: Vec<u8>| served.udp(&packet).await.metadata.response_code;
    for (kind, expected) in [
        (RecordType::ANY, ResponseCode::Refused),
        (RecordType::AXFR, ResponseCode::Refused),
        (RecordType::IXFR, ResponseCode::Refused),
    ] {
        assert_eq!(code(bytes(&request(5, name, kind))).await, expected, "{kind}");
    }
    let mut chaos = request(6, "version.bind", RecordType::TXT);
    chaos.queries[0].set_query_class(hickory_resolver::proto::rr::DNSClass::CH);
    assert_eq!(code(bytes(&chaos)).await, ResponseCode::Refused);
    let mut two = request(7, name, RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(bytes(&two)).await, ResponseCode::FormErr);
    for op_code in [1_u8, 2, 4, 5, 9] {
        let mut packet = bytes(&request(8, name, RecordType::A));
        packet[2] = op_code << 3;
        assert_eq!(code(packet).await, ResponseCode::NotImp, "{op_code}");
    }
    let mut cut = bytes(&request(9, name, RecordType::A));
    cut.truncate(20);
    assert_eq!(code(cut).await, ResponseCode::FormErr);
    let mut future = request(10, name, RecordType::A);
    future.set_edns({
        let mut edns = hickory_resolver::proto::op::Edns::new();
        edns.set_version(1);
        edns
    });
    let reply = served.udp(&bytes(&future)).await;
    // BADVERS and BADSIG have the same number.
    assert_eq!((u16::from(reply.metadata.response_code), reply.edns.unwrap().version()), (16, 0));
    served.end().await;
}

#[tokio::test]
async fn only_this_machine_is_served() {
    let plane = plane();
    let server = DnsServer::new(plane.state.clone());
    for (client, served) in [
        ("127.0.0.1", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("127.66.0.2", true),
        ("192.0.2.1", false),
        ("10.0.0.1", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(server.serves(client.parse::<IpAddr>().unwrap()), served, "{client}");
    }
}

#[tokio::test]
async fn outside_names_are_forwarded_once_and_cached() {
    let served = Served::start().await;
    let metrics = &served.plane.metrics().dns;
    let external = json!({"metadata": {"name": "db", "namespace": "shop"},
        "spec": {"type": "ExternalName", "externalName": "good.example.com"}});
    served.plane.service(&ObjectKey::new("shop", "db"), Some(external));
    for id in 0..3 {
        let reply = served.udp(&bytes(&request(id, "GOOD.example.com", RecordType::A))).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(!reply.metadata.authoritative && reply.metadata.recursion_available);
        assert_eq!(texts(&reply.answers), ["GOOD.example.com. A 192.0.2.1"], "in the client's case");
        assert!(reply.answers[0].ttl <= 60);
    }
    let reply = served.udp(&bytes(&request(9, "db.shop.svc.cluster.local", RecordType::A))).await;
    assert_eq!(
        texts(&reply.answers),
        ["db.shop.svc.cluster.local. CNAME good.example.com.", "good.example.com. A 192.0.2.1"]
    );
    assert_eq!((metrics.forwards.get(), metrics.cache_hits.get(), metrics.cache_misses.get()), (1, 3, 1));
    let none = served.udp(&bytes(&request(10, "good.example.com", RecordType::AAAA))).await;
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
    served.end().await;
}

#[tokio::test]
async fn an_outside_name_does_not_lead_into_the_cluster() {
    let served = Served::start().await;
    let reply = served.udp(&bytes(&request(1, "goodbad.example.com", RecordType::A))).await;
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    served.end().await;
}

#[tokio::test]
async fn silent_name_servers_end_in_a_failure_and_hold_no_other_client() {
    let served = Served::start().await;
    let server = super::forward::Forwarder::new(served.plane.state.clone());
    let client: IpAddr = "127.0.0.1".parse().unwrap();
    let places: Vec<_> = std::iter::from_fn(|| server.admit(client)).collect();
    assert_eq!(places.len(), crate::egress::external::FORWARDS_MAX / 2);
    assert!(server.admit("127.66.0.2".parse().unwrap()).is_some());
    drop(places);
    let silent = served.udp(&bytes(&request(1, "slow.example.com", RecordType::A))).await;
    assert_eq!(silent.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(served.plane.metrics().dns.forward_failures.get(), 1);
    let inside = served.udp(&bytes(&request(2, "catalog.shop.svc.cluster.local", RecordType::A))).await;
    assert_eq!(inside.answers.len(), 1);
    served.end().await;
}
