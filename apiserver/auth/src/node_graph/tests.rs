//! Tests that the graph agrees with a walk over all pods and volumes, and that its cost is the number of changes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use apiserver_resources::objects::memory::MemoryObjects;
use apiserver_storage::cache::{Lookup, Resource, WatchCache};
use apiserver_storage::store::memory::MemoryStore;
use apiserver_storage::store::{Op, Outcome, Record, Txn};
use futures::future::BoxFuture;
use jiff::Timestamp;
use machinery_api::StorageKey;
use machinery_env::Env;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use apiserver_catalog::Catalog;

fn secret(namespace: &str, name: &str) -> Reference {
    Reference::new(ReferenceKind::Secret, namespace, name)
}

fn pod(namespace: &str, name: &str, node: &str, secrets: &[&str], claims: &[&str]) -> Value {
    let secrets = secrets.iter().map(|name| json!({"name": name, "secret": {"secretName": name}}));
    let claims = claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let volumes: Vec<Value> = secrets.chain(claims).collect();
    let metadata = json!({"namespace": namespace, "name": name});
    json!({"metadata": metadata, "spec": {"nodeName": node, "volumes": volumes}})
}

/// A volume with a claim, and with a Secret in another namespace.
fn volume(name: &str, claim: (&str, &str), secret: (&str, &str)) -> Value {
    let claim = json!({"namespace": claim.0, "name": claim.1});
    let secret = json!({"namespace": secret.0, "name": secret.1});
    json!({"metadata": {"name": name}, "spec": {"claimRef": claim, "csi": {"nodeStageSecretRef": secret}}})
}

/// Counts pod reads, and calls a function before each read of changes.
struct Counted<'a, T> {
    objects: &'a T,
    before_changes: Box<dyn Fn(&str) + Send + Sync + 'a>,
    pods_visited: AtomicUsize,
    pods_read: AtomicUsize,
}

impl<'a, T> Counted<'a, T> {
    fn new(objects: &'a T) -> Self {
        let (pods_visited, pods_read) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { objects, before_changes: Box::new(|_| {}), pods_visited, pods_read }
    }

    /// Returns and resets the numbers of pods visited and read.
    fn take(&self) -> (usize, usize) {
        (self.pods_visited.swap(0, Ordering::Relaxed), self.pods_read.swap(0, Ordering::Relaxed))
    }
}

impl<T: ObjectReader> ObjectReader for Counted<'_, T> {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        if plural == "pods" {
            self.pods_read.fetch_add(1, Ordering::Relaxed);
        }
        self.objects.get(group, plural, namespace, name)
    }

    fn version(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<u64> {
        self.objects.version(group, plural, namespace, name)
    }

    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.objects.list(group, plural, namespace)
    }

    fn each(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
        field: Option<(&'static str, &str)>,
        visit: &mut dyn FnMut(&str, &str, u64),
    ) {
        self.objects.each(group, plural, namespace, field, &mut |namespace, name, version| {
            self.pods_visited.fetch_add(usize::from(plural == "pods"), Ordering::Relaxed);
            visit(namespace, name, version);
        });
    }

    fn field_changes(
        &self,
        group: &str,
        plural: &str,
        field: (&'static str, &str),
        after: u64,
        visit: &mut dyn FnMut(&str, &str, Option<u64>),
    ) -> ChangesRead {
        (self.before_changes)(field.1);
        self.objects.field_changes(group, plural, field, after, &mut |namespace, name, version| {
            self.pods_visited.fetch_add(1, Ordering::Relaxed);
            visit(namespace, name, version);
        })
    }

    fn revision(&self, group: &str, plural: &str) -> u64 {
        self.objects.revision(group, plural)
    }

    fn key(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<StorageKey> {
        self.objects.key(group, plural, namespace, name)
    }

    fn at(&self, key: &StorageKey) -> Option<(Arc<Value>, u64)> {
        self.objects.at(key)
    }

    fn now(&self) -> u64 {
        self.objects.now()
    }

    fn changed(&self, after: u64) -> BoxFuture<'_, ()> {
        self.objects.changed(after)
    }
}

/// The nodes that have an entry.
fn entries(graph: &NodeGraph) -> Vec<String> {
    let mut nodes: Vec<String> = lock(&graph.nodes).entries.keys().map(ToString::to_string).collect();
    nodes.sort();
    nodes
}

#[test]
fn a_witness_is_believed_no_longer_than_it_holds() {
    let (map, graph) = (MemoryObjects::default(), NodeGraph::default());
    let put = |name: &str, node: &str, secret: &str| map.put("", "pods", pod("ns", name, node, &[secret], &[]));
    let named = || graph.references(&map, "n1", &secret("ns", "s"));
    assert!(!named());
    put("a", "n1", "s");
    assert!(named() && named());
    put("a", "n1", "other");
    assert!(!named(), "it names another");
    put("a", "n1", "s");
    assert!(named());
    put("a", "n2", "s");
    assert!(!named(), "another pod has its name, elsewhere");
    put("b", "n1", "s");
    assert!(named());
    put("c", "n1", "s");
    map.remove("", "pods", "ns", "b");
    assert!(named(), "another names it");
    map.remove("", "pods", "ns", "c");
    assert!(!named());
}

#[test]
fn allowed_requests_read_no_pod_and_denied_ones_read_changes() {
    let map = MemoryObjects::default();
    for n in 0..30 {
        map.put("", "pods", pod("ns", &format!("p{n}"), "n1", &[&format!("s{n}")], &[]));
    }
    let (counted, graph) = (Counted::new(&map), NodeGraph::default());
    assert!(!graph.references(&counted, "n1", &secret("ns", "other")));
    assert_eq!(counted.take(), (30, 30));
    for n in 0..30 {
        assert!(graph.references(&counted, "n1", &secret("ns", &format!("s{n}"))));
        assert!(!graph.references(&counted, "n1", &secret("ns", &format!("other{n}"))));
    }
    assert_eq!(counted.take(), (0, 0));
    map.put("", "pods", pod("ns", "p7", "n1", &["s7", "more"], &[]));
    map.remove("", "pods", "ns", "p8");
    map.put("", "pods", pod("ns", "elsewhere", "n2", &["s8"], &[]));
    assert!(graph.references(&counted, "n1", &secret("ns", "s6")));
    assert_eq!(counted.take(), (0, 0));
    assert!(!graph.references(&counted, "n1", &secret("ns", "s8")));
    assert_eq!(counted.take(), (2, 1));
    assert!(graph.references(&counted, "n1", &secret("ns", "more")));
    assert_eq!(counted.take(), (0, 0));
}

#[test]
fn an_entry_goes_with_its_nodes_last_pod() {
    let (map, graph) = (MemoryObjects::default(), NodeGraph::default());
    assert!(!graph.references(&map, "n1", &secret("ns", "s")));
    assert!(entries(&graph).is_empty(), "a node without pods has none");
    for namespace in ["a", "b"] {
        map.put("", "pods", pod(namespace, "p", "n1", &["s"], &["c"]));
        assert!(graph.references(&map, "n1", &secret(namespace, "s")));
    }
    map.remove("", "pods", "a", "p");
    assert!(!graph.references(&map, "n1", &secret("a", "s")));
    {
        let entry = lock(&graph.nodes).open("n1");
        let pods = lock(&entry);
        assert_eq!(
            (pods.pods.len(), pods.pods_by_reference.len(), pods.claims),
            (1, 3, 1),
            "nothing is left of the other namespace"
        );
    }
    map.remove("", "pods", "b", "p");
    assert!(!graph.references(&map, "n1", &secret("b", "s")));
    assert!(entries(&graph).is_empty());
    let nodes = lock(&graph.nodes);
    assert_eq!((nodes.pods, nodes.uses.len()), (0, 0));
}

#[test]
fn the_least_recently_used_entry_is_evicted() {
    let (map, graph) = (MemoryObjects::default(), NodeGraph::with_pods_max(4));
    for node in ["n1", "n2", "n3"] {
        for name in ["a", "b"] {
            map.put("", "pods", pod("ns", &format!("{node}-{name}"), node, &["s"], &[]));
        }
    }
    let ask = |node| assert!(graph.references(&map, node, &secret("ns", "s")));
    ["n1", "n2", "n1", "n3"].into_iter().for_each(ask);
    assert_eq!(entries(&graph), ["n1", "n3"]);
    ask("n2");
    assert_eq!(entries(&graph), ["n2", "n3"]);
    for n in 0..10 {
        map.put("", "pods", pod("ns", &format!("more{n}"), "n3", &[&format!("s{n}")], &[]));
    }
    assert!(graph.references(&map, "n3", &secret("ns", "s9")));
    assert_eq!(entries(&graph), ["n3"], "more than the bound allows is held for one node only");
    assert_eq!(lock(&graph.nodes).pods, 12);
}

#[test]
fn entries_of_nodes_that_are_gone_are_swept() {
    let (map, graph) = (MemoryObjects::default(), NodeGraph::default());
    for n in 0..3 * FIRST_SWEEP_NODES {
        let node = format!("n{n}");
        map.put("", "pods", pod("ns", &node, &node, &["s"], &[]));
        assert!(graph.references(&map, &node, &secret("ns", "s")));
        map.remove("", "pods", "ns", &node);
    }
    assert!(entries(&graph).len() <= FIRST_SWEEP_NODES, "{:?}", entries(&graph));
}

#[test]
fn a_walk_of_one_node_holds_up_no_other() {
    let map = MemoryObjects::default();
    for node in ["slow", "quick"] {
        map.put("", "pods", pod("ns", node, node, &["s"], &[]));
    }
    let (arrived, arrivals) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = Mutex::new(may_go);
    let mut counted = Counted::new(&map);
    counted.before_changes = Box::new(move |node| {
        if node == "slow" {
            arrived.send(()).unwrap();
            lock(&may_go).recv().unwrap();
        }
    });
    let graph = NodeGraph::default();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| graph.references(&counted, "slow", &secret("ns", "s")));
        arrivals.recv().unwrap();
        assert!(graph.references(&counted, "quick", &secret("ns", "s")));
        assert!(!graph.references(&counted, "quick", &secret("ns", "other")));
        assert!(!slow.is_finished());
        go.send(()).unwrap();
        assert!(slow.join().unwrap());
    });
}

#[test]
fn a_secret_is_related_by_the_volume_of_a_claim() {
    let (map, graph) = (MemoryObjects::default(), NodeGraph::default());
    map.put("", "pods", pod("ns", "p", "n1", &[], &["c"]));
    map.put("", "pods", pod("ns", "q", "n2", &["s"], &[]));
    let named = |node| graph.references(&map, node, &secret("storage", "key"));
    assert!(!named("n1"));
    map.put("", "persistentvolumes", volume("v", ("ns", "c"), ("storage", "key")));
    assert!(named("n1") && named("n1"));
    assert!(!named("n2"), "its pods use no claim");
    assert!(!graph.references(&map, "n1", &secret("ns", "key")), "in the namespace that the volume says only");
    assert!(!graph.references(&map, "n1", &Reference::new(ReferenceKind::ConfigMap, "storage", "key")));
    map.put("", "persistentvolumes", volume("v", ("ns", "d"), ("storage", "key")));
    assert!(!named("n1"), "the volume is another claim's");
    map.put("", "persistentvolumes", volume("w", ("ns", "c"), ("storage", "key")));
    assert!(named("n1"));
    map.remove("", "pods", "ns", "p");
    assert!(!named("n1"), "the pod has gone");
    map.put("", "pods", pod("ns", "p", "n1", &[], &["c"]));
    assert!(named("n1"));
    map.remove("", "persistentvolumes", "", "w");
    assert!(!named("n1"), "the volume has gone");
}

/// The result of a walk over all pods and volumes.
fn references_by_walk(objects: &MemoryObjects, node: &str, wanted: &Reference) -> bool {
    let pods = objects.list("", "pods", None);
    let pod_names = |wanted: &Reference| pods.iter().any(|pod| is_on_node(pod, node) && of_pod(pod).contains(wanted));
    let volumes = objects.list("", "persistentvolumes", None);
    let by_volume = volumes.iter().any(|volume| {
        claim_of_volume(volume).is_some_and(|claim| {
            secrets_of_volume(volume, &claim).contains(&wanted.object)
                && pod_names(&Reference { kind: ReferenceKind::Claim, object: claim })
        })
    });
    pod_names(wanted) || (wanted.kind == ReferenceKind::Secret && by_volume)
}

#[derive(Debug, Clone)]
enum GraphChange {
    Put { namespace: u8, name: u8, node: u8, secrets: Vec<u8>, claims: Vec<u8> },
    Remove { namespace: u8, name: u8 },
    Volume { name: u8, claim: (u8, u8), secret: (u8, u8) },
    RemoveVolume(u8),
    LoseChanges,
    Ask { node: u8, kind: u8, namespace: u8, name: u8 },
}

fn step() -> impl Strategy<Value = GraphChange> {
    let names = || prop::collection::vec(0u8..4, 0..3);
    prop_oneof![
        4 => (0u8..2, 0u8..4, 0u8..3, names(), names())
            .prop_map(|(namespace, name, node, secrets, claims)| GraphChange::Put { namespace, name, node, secrets, claims }),
        2 => (0u8..2, 0u8..4).prop_map(|(namespace, name)| GraphChange::Remove { namespace, name }),
        2 => (0u8..3, (0u8..2, 0u8..4), (0u8..2, 0u8..4))
            .prop_map(|(name, claim, secret)| GraphChange::Volume { name, claim, secret }),
        1 => (0u8..3).prop_map(GraphChange::RemoveVolume),
        1 => Just(GraphChange::LoseChanges),
        8 => (0u8..3, 0u8..3, 0u8..2, 0u8..4)
            .prop_map(|(node, kind, namespace, name)| GraphChange::Ask { node, kind, namespace, name }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn answers_are_those_of_a_walk_over_everything(
        steps in prop::collection::vec(step(), 1..60), pods_max in prop_oneof![Just(3usize), Just(100)]
    ) {
        let (map, graph) = (MemoryObjects::default(), NodeGraph::with_pods_max(pods_max));
        let namespaces = ["a", "b"];
        let texts = |names: &[u8]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        for step in steps {
            match step {
                GraphChange::Put { namespace, name, node, secrets, claims } => {
                    let (secrets, claims) = (texts(&secrets), texts(&claims));
                    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
                    let claims: Vec<&str> = claims.iter().map(String::as_str).collect();
                    let namespace = namespaces[usize::from(namespace)];
                    map.put("", "pods", pod(namespace, &name.to_string(), &format!("n{node}"), &secrets, &claims));
                }
                GraphChange::Remove { namespace, name } => {
                    map.remove("", "pods", namespaces[usize::from(namespace)], &name.to_string());
                }
                GraphChange::Volume { name, claim, secret } => {
                    let (claim_name, secret_name) = (claim.1.to_string(), secret.1.to_string());
                    let claim = (namespaces[usize::from(claim.0)], &*claim_name);
                    let secret = (namespaces[usize::from(secret.0)], &*secret_name);
                    map.put("", "persistentvolumes", volume(&name.to_string(), claim, secret));
                }
                GraphChange::RemoveVolume(name) => map.remove("", "persistentvolumes", "", &name.to_string()),
                GraphChange::LoseChanges => map.compact_history(),
                GraphChange::Ask { node, kind, namespace, name } => {
                    let kind = [ReferenceKind::Secret, ReferenceKind::Secret, ReferenceKind::Claim][usize::from(kind)];
                    let wanted = Reference::new(kind, namespaces[usize::from(namespace)], &name.to_string());
                    let node = format!("n{node}");
                    let expected = references_by_walk(&map, &node, &wanted);
                    prop_assert_eq!(graph.references(&map, &node, &wanted), expected, "{} {:?}", node, wanted);
                    let nodes = lock(&graph.nodes);
                    let held: usize = nodes.entries.values().map(|held| lock(&held.entry).len()).sum();
                    prop_assert_eq!(nodes.pods, held);
                    prop_assert_eq!(nodes.uses.len(), nodes.entries.len());
                    prop_assert!(held <= pods_max || nodes.entries.len() == 1);
                }
            }
        }
    }
}

const NODES: usize = 1_000;
const PODS_OF_NODE: usize = 30;
const NAMESPACES: usize = 3;
/// The number of pods in each transaction that fills the store. The maximum is 128.
const BATCH_PODS: usize = 100;

/// Creates 30,000 pods on 1,000 nodes. Each node has 10 pods in each of three namespaces, each with its own Secret.
async fn cluster() -> (Arc<WatchCache>, Lookup) {
    let (env, _) = Env::seeded(1, Timestamp::UNIX_EPOCH);
    let catalog = Catalog::built_in("127.0.0.1:6443");
    let resources = catalog.all_stored().filter_map(Resource::of).collect();
    let cache = WatchCache::open(&env, Arc::new(MemoryStore::new(env.clone())), resources).await.unwrap();
    let lookup = Lookup::new(cache.clone(), move |group, plural| catalog.prefix(group, plural));
    let all: Vec<(usize, usize)> = (0..NODES).flat_map(|node| (0..PODS_OF_NODE).map(move |pod| (node, pod))).collect();
    for batch in all.chunks(BATCH_PODS) {
        write(&cache, &lookup, batch, "Pending").await;
    }
    (cache, lookup)
}

async fn write(cache: &WatchCache, lookup: &Lookup, pods: &[(usize, usize)], phase: &str) {
    let ops = pods.iter().map(|(node, n)| {
        let (namespace, name) = (format!("ns{}", n % NAMESPACES), format!("p{node}-{n}"));
        let mut pod = pod(&namespace, &name, &format!("n{node}"), &[&format!("s{node}-{n}")], &[]);
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["status"] = json!({"phase": phase});
        let key = lookup.key("", "pods", &namespace, &name).unwrap().into();
        Op::Put { key, record: Record::read(pod.to_string().as_bytes(), |_| None), ttl: None }
    });
    let txn = Txn { compares: vec![], ops: ops.collect() };
    assert!(matches!(cache.commit(txn).await.unwrap(), Outcome::Committed(_)));
}

#[tokio::test]
async fn a_thousand_nodes_request_forbidden_objects() {
    let (cache, lookup) = cluster().await;
    let (counted, graph) = (Counted::new(&lookup), NodeGraph::default());
    // Each node requests the Secrets of another node's pods, in namespaces with and without pods of its own.
    let ask = |from: usize| {
        for node in (from..NODES).step_by(2) {
            let name = format!("n{node}");
            for n in 0..PODS_OF_NODE {
                let others = format!("s{}-{n}", (node + 1) % NODES);
                assert!(!graph.references(&counted, &name, &secret(&format!("ns{}", n % NAMESPACES), &others)));
                assert!(!graph.references(&counted, &name, &secret("elsewhere", &others)));
            }
        }
    };
    let round = |what: &str| {
        let clock = Env::real();
        std::thread::scope(|scope| {
            for from in 0..2 {
                scope.spawn(move || ask(from));
            }
        });
        let (visited, read) = counted.take();
        let millis = clock.elapsed().as_millis();
        println!("{what}: {} refusals in {millis} ms, {visited} pods visited, {read} read", 2 * NODES * PODS_OF_NODE);
        (visited, read)
    };
    let pods = NODES * PODS_OF_NODE;
    assert_eq!(round("first round"), (pods, pods), "each pod is read once");
    assert_eq!(round("second round"), (0, 0), "nothing changed");
    let changed: Vec<(usize, usize)> = (0..NODES).map(|node| (node, 0)).collect();
    for batch in changed.chunks(BATCH_PODS) {
        write(&cache, &lookup, batch, "Running").await;
    }
    assert_eq!(round("after a change on each node"), (NODES, NODES), "what changed");
}
