//! Simulated lives of nodes.

use super::*;
use k8s_openapi::api::coordination::v1::Lease;
use machinery_client::Kind;
use machinery_client::simulate::Simulation;
use serde_json::Value;

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]}})
}

fn lease(name: &str, renewed: &str) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"renewTime": renewed}})
}

/// The tests' times assume a grace period of 40 s.
fn settings() -> Settings {
    with(NodeLifecycle { monitor_grace: Duration::from_secs(40), ..NodeLifecycle::default() })
}

fn with(node_lifecycle: NodeLifecycle) -> Settings {
    let mut settings = Settings::default();
    settings.options.node_lifecycle = node_lifecycle;
    settings
}

fn settle(cluster: &mut Simulation) {
    settle_with(cluster, &settings());
}

/// Reconciles all keys until nothing is left to do at this moment.
fn settle_with(cluster: &mut Simulation, settings: &Settings) {
    for _ in 0..200 {
        let names: Vec<String> = cluster.view.all::<Node>().filter_map(|node| node.metadata.name.clone()).collect();
        let mut idle = true;
        for name in names.iter().map(String::as_str).chain([""]) {
            let plan = reconcile(&cluster.view, &ObjectKey::cluster(name), &cluster.context(settings));
            idle &= plan.actions.is_empty();
            assert_eq!(cluster.apply(plan), Vec::<String>::new(), "{name}");
        }
        if idle {
            return;
        }
    }
    panic!("the controller never comes to rest");
}

fn state(cluster: &Simulation, name: &str) -> (String, Vec<String>) {
    let node = cluster.view.get::<Node>(&ObjectKey::cluster(name)).unwrap();
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let taints = taints
        .map(|taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect))
        .collect();
    (condition(node, "Ready").unwrap().status.clone(), taints)
}

fn at(second: i64) -> Timestamp {
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    start.saturating_add(Duration::from_secs(second.unsigned_abs())).unwrap()
}

fn running_pod(node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "conditions": [
            {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]}})
}

#[test]
fn a_silent_node_is_tainted_and_an_audible_one_is_freed() {
    let objects = [
        node("one"),
        node("two"),
        running_pod("one"),
        lease("one", "2026-01-01T00:00:00.000000Z"),
        lease("two", "2026-01-01T00:00:00.000000Z"),
    ];
    let mut cluster = crate::simulation(at(0), objects);
    let leases = Kind::of::<Lease>();
    cluster.now = at(30);
    cluster.write(&leases, lease("two", "2026-01-01T00:00:30.000000Z"));
    cluster.now = at(39);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "one"), ("True".into(), vec![]));
    cluster.now = at(41);
    settle(&mut cluster);
    assert_eq!(
        state(&cluster, "one"),
        ("Unknown".into(), vec!["unreachable:NoSchedule".into(), "unreachable:NoExecute".into()])
    );
    assert_eq!(state(&cluster, "two"), ("True".into(), vec![]));
    assert!(cluster.view.all::<Pod>().all(|pod| !pods::is_ready(pod)));
    let kind = Kind::of::<Node>();
    let mut heard = node("one");
    heard["spec"] =
        json!({"taints": value_of(cluster.view.get::<Node>(&ObjectKey::cluster("one")).unwrap())["spec"]["taints"]});
    heard["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2026-01-01T00:00:41Z");
    cluster.write(&kind, heard);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "one"), ("True".into(), vec![]));
}

/// Heartbeats of thousands of nodes requeue nothing: see `of_lease`.
#[test]
fn a_renewed_lease_is_work_only_where_the_node_is_not_ready() {
    let mut silent = node("two");
    silent["status"]["conditions"][0]["status"] = json!("Unknown");
    let leases = ["one", "two", "three"].map(|name| lease(name, "2026-01-01T00:00:00.000000Z"));
    let cluster = crate::simulation(at(0), [node("one"), silent].into_iter().chain(leases));
    let keys = |name: &str| {
        let (kind, key) = (Kind::of::<Lease>(), ObjectKey::new("kube-node-lease", name));
        let new = cluster.view.object(&kind, &key).cloned();
        assert!(new.is_some());
        of_lease(&cluster.view, &Change { kind, key: key.into(), old: new.clone(), new })
    };
    assert_eq!(keys("one"), []);
    assert_eq!(keys("two"), [ObjectKey::cluster("two")]);
    assert_eq!(keys("three"), [], "there is no such node");
}

/// After a downtime of the controllers the Leases are old: nodes get the whole grace period for a heartbeat.
#[test]
fn a_heartbeat_older_than_this_process_counts_from_its_start() {
    let mut old = node("one");
    old["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2025-12-31T00:00:00Z");
    let mut cluster =
        crate::simulation(at(0), [old, running_pod("one"), lease("one", "2025-12-31T00:00:00.000000Z"), node("two")]);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "one"), ("True".into(), vec![]));
    assert!(cluster.view.all::<Pod>().all(pods::is_ready));
    cluster.now = at(39);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "one").0, "True");
    cluster.now = at(40);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "one").0, "Unknown");
}

#[test]
fn a_nodes_clock_decides_nothing() {
    let ahead = lease("one", "2026-01-01T01:00:00.000000Z");
    let mut cluster = crate::simulation(at(0), [node("one"), ahead, node("two")]);
    cluster.now = at(40);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "one").0, "Unknown", "its lease is of an hour later, and is not renewed");
    let behind = |second: i64| lease("two", &at(second).to_string().replace("2026", "2025"));
    let mut cluster = crate::simulation(at(0), [node("one"), behind(0), node("two")]);
    for second in (10..120).step_by(10) {
        cluster.now = at(second);
        cluster.write(&Kind::of::<Lease>(), behind(second));
        settle(&mut cluster);
    }
    assert_eq!(state(&cluster, "two").0, "True", "its clock is a year behind, and it renews");
}

#[test]
fn pods_are_marked_at_the_version_that_was_read() {
    let mut cluster = crate::simulation(at(0), [node("one"), running_pod("one")]);
    cluster.now = at(41);
    let key = ObjectKey::cluster("one");
    let settings = settings();
    assert!(cluster.apply(reconcile(&cluster.view, &key, &cluster.context(&settings))).is_empty());
    let plan = reconcile(&cluster.view, &key, &cluster.context(&settings));
    let mut reported = running_pod("one");
    reported["status"]["conditions"][0]["message"] = json!("newer");
    cluster.write(&Kind::of::<Pod>(), reported);
    assert_eq!(cluster.apply(plan), ["pods default/p conflicts"], "the node has spoken meanwhile");
}

#[test]
fn without_ready_nodes_no_pod_is_evicted() {
    let mut cluster = crate::simulation(at(0), [node("one"), node("two")]);
    cluster.now = at(600);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "one").1, ["unreachable:NoSchedule"]);
}

#[test]
fn a_cordoned_node_is_tainted_and_other_taints_stay() {
    let mut cordoned = node("one");
    cordoned["spec"] = json!({"unschedulable": true, "taints": [{"key": "mine", "effect": "NoExecute"}]});
    let mut cluster = crate::simulation("2026-01-01T00:00:01Z".parse().unwrap(), [cordoned, node("two")]);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "one").1, ["mine:NoExecute", "unschedulable:NoSchedule"]);
}

/// Nodes of a zone, all with heartbeats at the start.
fn of_zone(zone: &str, count: usize) -> Vec<Value> {
    let labelled = |number| {
        let mut node = node(&format!("{zone}-{number:02}"));
        node["metadata"]["labels"] = json!({"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": zone});
        node
    };
    (0..count).map(labelled).collect()
}

/// Advances to a second, in steps of five; these nodes have a heartbeat at each step.
fn pass(cluster: &mut Simulation, to: i64, heard: impl Fn(&str) -> bool, settings: &Settings) {
    let names: Vec<String> = cluster.view.all::<Node>().filter_map(|node| node.metadata.name.clone()).collect();
    let mut second = i64::try_from(cluster.elapsed().as_secs()).unwrap();
    while second < to {
        second = (second + 5).min(to);
        cluster.now = at(second);
        for name in names.iter().filter(|name| heard(name)) {
            cluster.write(&Kind::of::<Lease>(), lease(name, &at(second).to_string()));
        }
        settle_with(cluster, settings);
    }
}

fn given_up(cluster: &Simulation) -> Vec<String> {
    let nodes = cluster.view.all::<Node>().filter(|node| taints::evicting(node).next().is_some());
    nodes.filter_map(|node| node.metadata.name.clone()).collect()
}

/// Upstream's `ComputeZoneState`.
#[test]
fn a_zones_state_follows_from_its_nodes() {
    use zones::ZoneState::{FullDisruption, Normal, PartialDisruption};
    let cases = [(1, 0), (1, 1), (2, 1), (3, 2), (5, 2), (5, 3), (6, 3), (20, 11), (20, 10), (4, 4), (0, 0)];
    let states = cases.map(|(nodes, down)| zones::state(nodes, down, 0.55));
    let wanted = [
        Normal,
        FullDisruption,
        Normal,
        Normal,
        Normal,
        PartialDisruption,
        Normal,
        PartialDisruption,
        Normal,
        FullDisruption,
        Normal,
    ];
    assert_eq!(states, wanted);
}

#[test]
fn a_zone_that_is_well_gives_up_one_node_in_ten_seconds() {
    let mut cluster = crate::simulation(at(0), of_zone("z", 10));
    let settings = settings();
    let heard = |name: &str| !["z-03", "z-05", "z-07"].contains(&name);
    pass(&mut cluster, 39, heard, &settings);
    assert!(given_up(&cluster).is_empty());
    pass(&mut cluster, 40, heard, &settings);
    assert_eq!(given_up(&cluster), ["z-03"]);
    pass(&mut cluster, 49, heard, &settings);
    assert_eq!(given_up(&cluster).len(), 1);
    pass(&mut cluster, 50, heard, &settings);
    assert_eq!(given_up(&cluster), ["z-03", "z-05"]);
    let fast = NodeLifecycle { eviction_rate: 2.0, ..settings.options.node_lifecycle };
    let mut cluster = crate::simulation(at(0), of_zone("z", 10));
    pass(&mut cluster, 40, heard, &with(fast));
    assert_eq!(given_up(&cluster), ["z-03", "z-05"], "two a second");
}

#[test]
fn a_partition_of_most_or_all_nodes_evicts_nothing() {
    let settings = settings();
    for lost in [6, 10] {
        let mut cluster = crate::simulation(at(0), of_zone("z", 10));
        // Their last heartbeats differ in time: the first is not evicted before the others are silent, too.
        let lost = |name: &str| name.rsplit('-').next().unwrap().parse::<usize>().unwrap() < lost;
        let last = |name: &str| i64::try_from(name.rsplit('-').next().unwrap().parse::<usize>().unwrap()).unwrap();
        for second in 0..=300 {
            cluster.now = at(second);
            for (number, name) in (0..10).map(|number| (number, format!("z-{number:02}"))) {
                if second % 10 == number && (second <= last(&name) || !lost(&name)) {
                    cluster.write(&Kind::of::<Lease>(), lease(&name, &at(second).to_string()));
                }
            }
            settle_with(&mut cluster, &settings);
            assert_eq!(given_up(&cluster), Vec::<String>::new(), "second {second}");
        }
        assert_eq!(state(&cluster, "z-01"), ("Unknown".into(), vec!["unreachable:NoSchedule".into()]));
    }
}

#[test]
fn a_zone_that_is_down_is_given_up_while_another_is_well() {
    let mut cluster = crate::simulation(at(0), of_zone("a", 3).into_iter().chain(of_zone("b", 2)));
    let settings = settings();
    pass(&mut cluster, 70, |name| name.starts_with('b'), &settings);
    assert_eq!(given_up(&cluster), ["a-00", "a-01", "a-02"], "at the usual rate");
    pass(&mut cluster, 140, |_| false, &settings);
    assert!(given_up(&cluster).is_empty(), "the last zone went, too: who was given up is so no longer");
}

#[test]
fn a_large_zone_that_is_partly_down_gives_up_nodes_slowly() {
    let settings = settings();
    let heard = |name: &str| name.rsplit('-').next().unwrap().parse::<usize>().unwrap() >= 40;
    for (nodes, wanted) in [(50, 0), (60, 2)] {
        let mut cluster = crate::simulation(at(0), of_zone("z", nodes));
        pass(&mut cluster, 145, heard, &settings);
        assert_eq!(given_up(&cluster).len(), wanted, "of {nodes}, in 105 s at 0.01 a second");
    }
}

#[test]
fn an_excluded_node_does_not_count_for_its_zone() {
    let mut nodes = of_zone("z", 2);
    nodes[0]["metadata"]["labels"]["node.kubernetes.io/exclude-disruption"] = json!("");
    let mut cluster = crate::simulation(at(0), nodes);
    pass(&mut cluster, 60, |name| name == "z-00", &settings());
    assert!(given_up(&cluster).is_empty(), "the only one that counts is down");
}

/// Upstream swaps the taints at once, whatever the rate.
#[test]
fn a_node_that_returns_unready_stays_lost() {
    let mut cluster = crate::simulation(at(0), of_zone("z", 3));
    pass(&mut cluster, 45, |name| name != "z-00", &settings());
    assert_eq!(state(&cluster, "z-00").1, ["unreachable:NoSchedule", "unreachable:NoExecute"]);
    let mut reported = cluster.view.object(&Kind::of::<Node>(), &ObjectKey::cluster("z-00")).unwrap().to_value();
    reported["status"]["conditions"][0] = json!({"type": "Ready", "status": "False", "lastHeartbeatTime": at(45)});
    cluster.write(&Kind::of::<Node>(), reported);
    settle(&mut cluster);
    assert_eq!(state(&cluster, "z-00").1, ["not-ready:NoSchedule", "not-ready:NoExecute"]);
}

#[test]
fn a_later_report_of_an_unready_node_stays() {
    let ready_since = |second| {
        let mut pod = running_pod("one");
        pod["status"]["conditions"][1]["lastTransitionTime"] = json!(at(second));
        pod
    };
    for (second, wanted) in [(4, false), (5, false), (6, true)] {
        let mut down = node("one");
        down["status"]["conditions"][0] =
            json!({"type": "Ready", "status": "False", "lastHeartbeatTime": at(5), "lastTransitionTime": at(5)});
        let mut cluster = crate::simulation(at(10), [down, node("two"), ready_since(second)]);
        settle(&mut cluster);
        assert_eq!(cluster.view.all::<Pod>().all(pods::is_ready), wanted, "ready since {second}");
    }
}

#[test]
fn labels_by_old_names_follow() {
    let mut named = node("one");
    named["metadata"]["labels"] =
        json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "beta.kubernetes.io/arch": "arm"});
    let mut cluster = crate::simulation(at(0), [named]);
    settle(&mut cluster);
    let labels = cluster.view.get::<Node>(&ObjectKey::cluster("one")).unwrap().metadata.labels.clone().unwrap();
    assert_eq!(
        (labels["beta.kubernetes.io/os"].as_str(), labels["beta.kubernetes.io/arch"].as_str()),
        ("linux", "amd64")
    );
}

/// With fast failover the Lease gives the grace period. Without it, and for Leases with upstream's duration, the usual
/// grace period applies.
#[test]
fn with_fast_failover_a_short_lease_counts_by_its_own() {
    let with = |name: &str, seconds: i64| {
        let mut lease = lease(name, "2026-01-01T00:00:00.000000Z");
        lease["spec"]["leaseDurationSeconds"] = json!(seconds);
        lease
    };
    for (fast, wanted) in [(true, "Unknown"), (false, "True")] {
        let settings = self::with(NodeLifecycle { fast_failover: fast, ..settings().options.node_lifecycle });
        let names = ["one", "two", "three"];
        let mut cluster = crate::simulation(
            at(0),
            names.map(node).into_iter().chain([with("one", 2), with("two", 2), with("three", 40)]),
        );
        let millis = |millis: i64| at(0).saturating_add(jiff::SignedDuration::from_millis(millis)).unwrap();
        for step in 1..=3 {
            cluster.now = millis(step * 500 - 10);
            cluster.write(&Kind::of::<Lease>(), with("two", 2 + step % 2));
            settle_with(&mut cluster, &settings);
            assert_eq!(state(&cluster, "one").0, "True");
        }
        cluster.now = millis(1500);
        settle_with(&mut cluster, &settings);
        assert_eq!(state(&cluster, "one").0, wanted);
        assert_eq!((state(&cluster, "two").0, state(&cluster, "three").0), ("True".into(), "True".into()));
        assert_eq!(given_up(&cluster).len(), usize::from(fast));
    }
}

/// A node may be ready before it has a Lease: the check that is planned for the usual grace period is then too late.
#[test]
fn a_lease_of_another_length_is_evaluated_at_once() {
    let lasting = |seconds: i64| {
        let mut lease = lease("one", "2026-01-01T00:00:00.000000Z");
        lease["spec"]["leaseDurationSeconds"] = json!(seconds);
        lease
    };
    let kind = Kind::of::<Lease>();
    let key = ObjectKey::new("kube-node-lease", "one");
    let mut cluster = crate::simulation(at(0), [node("one"), lasting(40)]);
    let keys = |cluster: &Simulation, old: Option<_>| {
        let new = cluster.view.object(&kind, &key).cloned();
        of_lease(&cluster.view, &Change { kind: kind.clone(), key: key.clone().into(), old, new })
    };
    assert_eq!(keys(&cluster, None), [ObjectKey::cluster("one")], "it is new");
    let old = cluster.view.object(&kind, &key).cloned();
    cluster.write(&kind, lasting(2));
    assert_eq!(keys(&cluster, old), [ObjectKey::cluster("one")], "it is shorter");
    let same = cluster.view.object(&kind, &key).cloned();
    assert_eq!(keys(&cluster, same), []);
}
