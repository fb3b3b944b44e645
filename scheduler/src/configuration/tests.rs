//! Configuration files as input; profiles or upstream's error texts as output, and decisions under those profiles.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Configuration;
use crate::decide::{Decision, decide};
use crate::plugins::{Point, Profile};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::tests::{node, pod};
use crate::wasm::FailurePolicy;

fn file(merge: &Value) -> Value {
    let mut file = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"});
    for (key, value) in merge.as_object().unwrap() {
        file[key] = value.clone();
    }
    file
}

fn parsed(merge: &Value) -> Result<Configuration, String> {
    Configuration::parse(&file(merge).to_string())
}

fn profile(merge: Value) -> Profile {
    parsed(&json!({"profiles": [merge]})).unwrap().profiles.remove(0)
}

fn reported(plugin: &str, args: Value) -> Profile {
    profile(json!({"pluginConfig": [{"name": plugin, "args": args}]}))
}

fn at(profile: &Profile, point: Point) -> Vec<(&'static str, i64)> {
    profile.at(point).map(|(plugin, weight)| (plugin.name, weight)).collect()
}

#[test]
fn an_empty_file_is_upstreams_default() {
    let Configuration { profiles, back_off, extenders, of_process } = parsed(&json!({})).unwrap();
    assert_eq!(extenders, []);
    assert_eq!((back_off.initial, back_off.max), (Duration::from_secs(1), Duration::from_secs(10)));
    assert!(of_process.is_empty());
    let ([only], usual) = (profiles.as_slice(), Profile::default()) else { panic!("one profile") };
    assert_eq!((&only.scheduler_name, &only.args), (&usual.scheduler_name, &usual.args));
    let names = |profile: &Profile| profile.plugins.iter().map(|(plugin, _)| plugin.name).collect::<Vec<_>>();
    assert_eq!(names(only), names(&usual));
    let with = |has: fn(&crate::plugins::Plugin) -> bool| {
        let rows = usual.plugins.iter().filter(move |(plugin, _)| has(plugin));
        rows.map(|(plugin, weight)| (plugin.name, *weight)).collect::<Vec<_>>()
    };
    let names_at = |point| at(only, point).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let scored =
        |(name, _): &(&str, i64)| usual.plugins.iter().any(|(row, _)| row.name == *name && row.pre_score.is_some());
    let scores: Vec<_> = at(only, Point::Score).into_iter().filter(scored).collect();
    assert_eq!(scores, with(|row| row.pre_score.is_some()));
    let filters: Vec<_> = with(|row| row.pre_filter.is_some()).into_iter().map(|(name, _)| name).collect();
    let made: Vec<_> = names_at(Point::Filter).into_iter().filter(|name| filters.contains(name)).collect();
    assert_eq!(made, filters);
    assert_eq!(names_at(Point::PostFilter), ["DynamicResources", "DefaultPreemption"]);
    assert_eq!(names_at(Point::QueueSort), ["PrioritySort"]);
    assert_eq!(names_at(Point::PreEnqueue)[0], "SchedulingGates");
}

/// As `pkg/scheduler/framework/runtime` expands `multiPoint`, and `apis/config/v1` merges it with the defaults.
#[test]
fn plugins_are_on_and_off_at_each_point() {
    let score = |plugins: Value| at(&profile(json!({"plugins": plugins})), Point::Score);
    let all_off = json!({"disabled": [{"name": "*"}]});
    let only = json!({"preScore": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeAffinity"}]},
        "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeAffinity", "weight": 5}]}});
    assert_eq!(score(only), [("NodeAffinity", 5)]);
    assert_eq!(score(json!({"preScore": all_off, "score": all_off})), []);
    let unscored = score(json!({"score": {"disabled": [{"name": "PodTopologySpread"}]}}));
    assert!(unscored.iter().all(|(name, _)| *name != "PodTopologySpread"), "{unscored:?}");
    assert_eq!(unscored.len() + 1, score(json!({})).len());
    let below = json!({"enabled": [{"name": "TaintToleration", "weight": 7}, {"name": "NodeAffinity", "weight": -1}], "disabled": [{"name": "*"}]});
    assert_eq!(score(json!({"score": below})), [("TaintToleration", 7), ("NodeAffinity", -1)]);
    let unfiltered = profile(json!({"plugins": {"filter": {"disabled": [{"name": "NodeAffinity"}]}}}));
    let named = |point: Point| at(&unfiltered, point).iter().any(|(name, _)| *name == "NodeAffinity");
    assert!(named(Point::PreFilter) && !named(Point::Filter));
    // A plugin named at its point comes first, with weight 1 unless one is given. The others keep their weights.
    let named =
        score(json!({"score": {"enabled": [{"name": "InterPodAffinity"}, {"name": "NodeAffinity", "weight": 9}]}}));
    assert_eq!(named[..3], [("InterPodAffinity", 1), ("NodeAffinity", 9), ("TaintToleration", 3)]);
    let multi = json!({"multiPoint": {"enabled": [{"name": "TaintToleration", "weight": 7}], "disabled": [{"name": "PodTopologySpread"}]}});
    let made = profile(json!({"plugins": multi}));
    assert_eq!(at(&made, Point::Score)[0], ("TaintToleration", 7));
    assert!(made.plugins.iter().all(|(plugin, _)| plugin.name != "PodTopologySpread"));
    let bare = json!({"multiPoint": {"disabled": [{"name": "*"}], "enabled":
        [{"name": "PrioritySort"}, {"name": "DefaultBinder"}, {"name": "NodeResourcesFit"}]}});
    let bare = profile(json!({"plugins": bare}));
    assert_eq!(at(&bare, Point::Filter), [("NodeResourcesFit", 1)]);
    assert_eq!(at(&bare, Point::PostFilter), []);
}

#[test]
fn errors_have_upstreams_words() {
    let plugins = |plugins: Value| json!({"profiles": [{"plugins": plugins}]});
    let creating = "initializing profiles: creating profile for scheduler name default-scheduler:";
    let cases = [
        (json!({"foo": 1}), "strict decoding error: unknown field \"foo\"".to_owned()),
        (
            json!({"profiles": [{"plugin": {}}, {"plugins": {"filter": {"enable": []}}}]}),
            "strict decoding error: unknown field \"profiles[0].plugin\", unknown field \"profiles[1].plugins.filter.enable\"".into(),
        ),
        (json!({"kind": "Foo"}), "no kind \"Foo\" is registered for version \"kubescheduler.config.k8s.io/v1\"".into()),
        (json!({"parallelism": 0}), "parallelism: Invalid value: 0: should be an integer value greater than zero".into()),
        (
            json!({"percentageOfNodesToScore": 101, "podInitialBackoffSeconds": 0}),
            "[podInitialBackoffSeconds: Invalid value: 0: must be greater than 0, percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]]".into(),
        ),
        (
            json!({"podMaxBackoffSeconds": 0}),
            "podMaxBackoffSeconds: Invalid value: 0: must be greater than or equal to PodInitialBackoffSeconds".into(),
        ),
        (json!({"profiles": [{}, {"schedulerName": "a"}]}), "profiles[0].schedulerName: Required value".into()),
        (
            json!({"profiles": [{"schedulerName": "a"}, {"schedulerName": "a"}]}),
            "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"".into(),
        ),
        (
            plugins(json!({"score": {"enabled": [{"name": "Foo"}]}})),
            format!("{creating} ScorePlugin \"Foo\" does not exist"),
        ),
        (
            plugins(json!({"multiPoint": {"enabled": [{"name": "Foo"}]}})),
            format!("{creating} PreFilterPlugin \"Foo\" does not exist"),
        ),
        (
            plugins(json!({"score": {"enabled": [{"name": "NodeName"}]}})),
            format!("{creating} plugin \"NodeName\" does not extend ScorePlugin plugin"),
        ),
        (
            plugins(json!({"filter": {"enabled": [{"name": "NodeName"}, {"name": "NodeName"}]}})),
            format!("{creating} plugin \"NodeName\" already registered as \"FilterPlugin\""),
        ),
        (
            plugins(json!({"score": {"enabled": [{"name": "NodeAffinity", "weight": -1}]}})),
            format!("{creating} score plugins: total score of Score plugins could overflow"),
        ),
        (
            plugins(json!({"preScore": {"disabled": [{"name": "NodeAffinity"}]}})),
            format!("{creating} plugin \"NodeAffinity\" can't be enabled at score and not at preScore"),
        ),
        (
            plugins(json!({"bind": {"disabled": [{"name": "*"}]}})),
            format!("{creating} at least one bind plugin is needed for profile with scheduler name \"default-scheduler\""),
        ),
        (
            plugins(json!({"queueSort": {"disabled": [{"name": "*"}]}})),
            format!("{creating} only one queue sort plugin required for profile with scheduler name \"default-scheduler\", but got 0"),
        ),
    ];
    refused(cases);
}

fn refused<const N: usize>(cases: [(Value, String); N]) {
    for (given, expected) in cases {
        assert_eq!(parsed(&given).map(|_| ()), Err(expected), "{given}");
    }
}

#[test]
fn invalid_arguments_have_upstreams_message() {
    let config = |name: &str, args: Value| json!({"profiles": [{"pluginConfig": [{"name": name, "args": args}]}]});
    let at = "profiles[0].pluginConfig[0].args";
    let fit = |strategy: Value| config("NodeResourcesFit", json!({"scoringStrategy": strategy}));
    let cases = [
        (
            config("InterPodAffinity", json!({"hardPodAffinityWeight": 101})),
            format!("{at}.hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]"),
        ),
        (
            config("DefaultPreemption", json!({"minCandidateNodesPercentage": -1})),
            format!("{at}.minCandidateNodesPercentage: Invalid value: -1: not in valid range [0, 100]"),
        ),
        (
            config("DefaultPreemption", json!({"foo": 1})),
            "strict decoding error: decoding .profiles[0].pluginConfig[0]: strict decoding error: decoding args for plugin DefaultPreemption: strict decoding error: unknown field \"foo\"".into(),
        ),
        (
            config("DefaultPreemption", json!({"kind": "InterPodAffinityArgs"})),
            "decoding .profiles[0].pluginConfig[0]: args for plugin DefaultPreemption were not of type DefaultPreemptionArgs.kubescheduler.config.k8s.io, got InterPodAffinityArgs.kubescheduler.config.k8s.io".into(),
        ),
        (
            fit(json!({"type": "RequestedToCapacityRatio"})),
            format!("{at}.scoringStrategy.requestedToCapacityRatio: Required value: must be specified when type is RequestedToCapacityRatio"),
        ),
        (
            fit(json!({"type": "LeastAllocated", "resources": [{"name": "cpu", "weight": 101}]})),
            format!("{at}.scoringStrategy.resources[0].weight: Invalid value: 101: resource weight of cpu not in valid range (0, 100]"),
        ),
        (
            config("PodTopologySpread", json!({"defaultConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]})),
            format!("{at}.defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty"),
        ),
        (
            config("PodTopologySpread", json!({"defaultingType": "List", "defaultConstraints": [{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "X"}]})),
            format!("[{at}.defaultConstraints[0].maxSkew: Invalid value: 0: not in valid range (0, inf), {at}.defaultConstraints[0].topologyKey: Required value: can not be empty, {at}.defaultConstraints[0].whenUnsatisfiable: Unsupported value: \"X\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"]"),
        ),
    ];
    refused(cases);
}

fn cluster(nodes: &[(&str, Value)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, merge) in nodes {
        snapshot.set_node(node(name, merge.clone()));
    }
    snapshot
}

/// The nodes that are chosen over 16 seeds.
fn nodes_of(snapshot: &Snapshot, pod: &PodInfo, profile: &Profile) -> BTreeSet<String> {
    let decided = (0..16).map(|seed| match decide(snapshot, pod, profile, 0, seed) {
        Decision::Node { name, .. } => name,
        Decision::Unschedulable { message, .. } => message,
    });
    decided.collect()
}

fn asking(name: &str, requests: Value) -> PodInfo {
    pod(name, json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}))
}

#[test]
fn resources_are_scored_as_configured() {
    let gpus = |count: &str| json!({"status": {"allocatable": {"example.com/gpu": count}}});
    let mut snapshot = cluster(&[("empty", gpus("8")), ("full", gpus("8"))]);
    snapshot.put_pod(Arc::new(asking("p", json!({"example.com/gpu": "4"}))), "full", false);
    let new = asking("new", json!({"example.com/gpu": "1"}));
    let strategy = |strategy: Value| {
        let alone = json!({"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit"}]});
        profile(json!({"plugins": {"preScore": alone, "score": alone},
            "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": strategy}}]}))
    };
    let resources = json!([{"name": "example.com/gpu", "weight": 3}]);
    let of = |kind: &str| strategy(json!({"type": kind, "resources": resources}));
    let one = |name: &str| BTreeSet::from([name.to_owned()]);
    assert_eq!(nodes_of(&snapshot, &new, &of("LeastAllocated")), one("empty"));
    assert_eq!(nodes_of(&snapshot, &new, &of("MostAllocated")), one("full"));
    let ratio = |low: i32, high: i32| {
        let shape = json!([{"utilization": 0, "score": low}, {"utilization": 100, "score": high}]);
        strategy(
            json!({"type": "RequestedToCapacityRatio", "resources": resources, "requestedToCapacityRatio": {"shape": shape}}),
        )
    };
    assert_eq!(nodes_of(&snapshot, &new, &ratio(0, 10)), one("full"));
    assert_eq!(nodes_of(&snapshot, &new, &ratio(10, 0)), one("empty"));
    // A pod that requests none of the resource is indifferent.
    assert_eq!(nodes_of(&snapshot, &asking("other", json!({})), &of("MostAllocated")).len(), 2);
    let huge = asking("huge", json!({"example.com/gpu": "9"}));
    let ignoring = reported("NodeResourcesFit", json!({"ignoredResourceGroups": ["example.com"]}));
    assert!(
        nodes_of(&snapshot, &huge, &Profile::default()).first().unwrap().contains("2 Insufficient example.com/gpu")
    );
    assert!(nodes_of(&snapshot, &huge, &ignoring).iter().all(|node| ["empty", "full"].contains(&node.as_str())));
}

#[test]
fn affinity_and_spreading_are_as_configured() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"zone": zone}}});
    let snapshot = cluster(&[("a", zone("a")), ("b", zone("b"))]);
    let term = |zone: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]});
    let added = |zone: &str| {
        let required = json!({"nodeSelectorTerms": [term(zone)]});
        reported("NodeAffinity", json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}))
    };
    let plain = asking("new", json!({}));
    assert_eq!(nodes_of(&snapshot, &plain, &added("b")), BTreeSet::from(["b".into()]));
    let message = nodes_of(&snapshot, &plain, &added("c")).pop_first().unwrap();
    assert!(message.starts_with("0/2 nodes are available: 2 node(s) didn't match scheduler-enforced node affinity."));

    // An existing pod has a preferred affinity to such pods. The profile gives the weight.
    let labels = json!({"metadata": {"labels": {"app": "x"}}});
    let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}]}});
    let mut drawn = cluster(&[("a", zone("a")), ("b", zone("b"))]);
    drawn.put_pod(Arc::new(pod("old", json!({"spec": {"affinity": near}}))), "b", false);
    let new = pod("new", labels.clone());
    let weight = |weight: i32| {
        let alone = json!({"disabled": [{"name": "*"}], "enabled": [{"name": "InterPodAffinity"}]});
        profile(json!({"plugins": {"preScore": alone, "score": alone},
            "pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": weight}}]}))
    };
    assert_eq!(nodes_of(&drawn, &new, &weight(1)), BTreeSet::from(["b".into()]));
    assert_eq!(nodes_of(&drawn, &new, &weight(0)).len(), 2);

    let constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"});
    let spread = reported("PodTopologySpread", json!({"defaultingType": "List", "defaultConstraints": [constraint]}));
    let owned = |name: &str| {
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
        pod(name, json!({"metadata": {"ownerReferences": owner}}))
    };
    let mut uneven = cluster(&[("a", zone("a"))]);
    uneven.put_pod(Arc::new(owned("old")), "a", false);
    assert_eq!(nodes_of(&uneven, &owned("new"), &spread), BTreeSet::from(["a".into()]), "one zone is even");
    uneven.set_node(node("b", json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"unschedulable": true}})));
    let message = nodes_of(&uneven, &owned("new"), &spread).pop_first().unwrap();
    assert!(
        message.contains("1 node(s) didn't match pod topology spread constraints, 1 node(s) were unschedulable"),
        "{message}"
    );
    assert_eq!(nodes_of(&uneven, &plain, &spread), BTreeSet::from(["a".into()]), "it has no workload");
}

/// As `pkg/scheduler/apis/config/validation` and `NewHTTPExtender`.
#[test]
fn extenders_are_read_and_refused_in_upstreams_words() {
    let all = json!([
        {"urlPrefix": "http://first:80/x", "filterVerb": "filter", "ignorable": true, "httpTimeout": "0s"},
        {"urlPrefix": "https://second", "bindVerb": "bind", "preemptVerb": "preempt", "prioritizeVerb": "p", "weight": 2, "httpTimeout": "100ms", "enableHTTPS": true,
            "nodeCacheCapable": true, "managedResources": [{"name": "a.b/c", "ignoredByScheduler": true}, {"name": "a.b/d"}]},
        {"urlPrefix": "https://third", "tlsConfig": {"caData": "QQ==", "serverName": "s", "keyFile": "k"}, "enableHTTPS": true},
    ]);
    let read = parsed(&json!({"extenders": all})).unwrap();
    let [second, third, first] = &read.extenders[..] else { panic!("{:?}", read.extenders) };
    assert_eq!((first.timeout.as_millis(), second.timeout.as_millis(), first.ignorable), (5000, 100, true));
    assert_eq!((&*second.preempt_verb, &*third.preempt_verb), ("preempt", ""));
    assert_eq!((second.weight, second.node_cache_capable, second.managed_resources.len()), (2, true, 2));
    assert_eq!((second.tls.insecure, third.tls.insecure, first.tls.insecure), (true, false, false));
    assert_eq!((&*third.tls.server_name, &*third.tls.files[1], &*third.tls.data[2]), ("s", "k", "QQ=="));
    assert_eq!(read.profiles[0].args.ignored_resources, ["a.b/c".to_owned()].into());
    let cases = [
        (
            json!([{"urlPrefix": "http://e", "prioritizeVerb": "p"}]),
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ),
        (
            json!([{"urlPrefix": "http://e", "bindVerb": "b"}, {"urlPrefix": "http://e", "bindVerb": "b"}]),
            "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
        ),
        (
            json!([{"urlPrefix": "http://e", "managedResources": [{"name": "kubernetes.io/x"}, {"name": "a.b/c"}]}, {"urlPrefix": "http://e", "managedResources": [{"name": "a.b/c"}]}]),
            "[extenders[0].managedResources[0].name: Invalid value: \"kubernetes.io/x\": is an invalid extended resource name, extenders[1].managedResources[0].name: Invalid value: \"a.b/c\": duplicate extender managed resource name]",
        ),
        (
            json!([{"urlPrefix": "nowhere"}]),
            "extenders[0].urlPrefix: Invalid value: \"nowhere\": must be a URL with a scheme and a host",
        ),
        (
            json!([{"urlPrefix": "http://e", "httpTimeout": "soon"}]),
            "extenders[0].httpTimeout: Invalid value: \"soon\": must be a duration, such as 5s",
        ),
        (json!([{"urlPrefix": "http://e", "verb": 1}]), "strict decoding error: unknown field \"extenders[0].verb\""),
    ];
    for (extenders, why) in cases {
        assert_eq!(parsed(&json!({"extenders": extenders})).unwrap_err(), why, "{extenders}");
    }
}

fn plugged(args: Value, plugins: Value) -> Value {
    let mut all = json!({"apiVersion": "scheduler.coracle.dev/v1", "kind": "WasmPluginArgs", "module": "/p.wasm"});
    all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
    json!({"profiles": [{"plugins": plugins, "pluginConfig": [{"name": "Mine", "args": all}]}]})
}

#[test]
fn a_component_is_a_plugin_by_its_arguments() {
    let everywhere = json!({"multiPoint": {"enabled": [{"name": "Mine", "weight": 7}]}});
    let read = parsed(&plugged(json!({}), everywhere.clone())).unwrap();
    let [mine] = &read.profiles[0].wasm[..] else { panic!() };
    assert_eq!((mine.name, mine.filters, mine.weight, mine.fuel), ("Mine", true, Some(7), None));
    assert_eq!(
        (mine.timeout.as_millis(), mine.memory_bytes, mine.failure_policy),
        (1000, 64 << 20, FailurePolicy::Fail)
    );
    let reported =
        json!({"config": {"a": 1}, "failurePolicy": "Ignore", "timeout": "50ms", "memory": 2_097_152, "fuel": 5});
    let read = parsed(&plugged(reported, json!({"score": {"enabled": [{"name": "Mine"}]}}))).unwrap();
    let [mine] = &read.profiles[0].wasm[..] else { panic!() };
    assert_eq!((&*mine.config, mine.filters, mine.weight, mine.fuel), (r#"{"a":1}"#, false, Some(1), Some(5)));
    assert_eq!(
        (mine.timeout.as_millis(), mine.memory_bytes, mine.failure_policy),
        (50, 2 << 20, FailurePolicy::Ignore)
    );
    assert!(at(&read.profiles[0], Point::Score).iter().all(|(name, _)| *name != "Mine"), "it is no row of ours");
}

#[test]
fn wrong_arguments_of_a_component_are_refused() {
    let everywhere = json!({"multiPoint": {"enabled": [{"name": "Mine", "weight": 7}]}});
    let cases = [
        (
            json!({"modul": ""}),
            everywhere.clone(),
            "strict decoding error: decoding .profiles[0].pluginConfig[0]: strict decoding error: decoding args for plugin Mine: strict decoding error: unknown field \"modul\"",
        ),
        (
            json!({"apiVersion": "v1"}),
            everywhere.clone(),
            "decoding .profiles[0].pluginConfig[0]: no kind \"WasmPluginArgs\" is registered for version \"v1\"",
        ),
        (
            json!({"module": ""}),
            everywhere.clone(),
            "profiles[0].pluginConfig[0].args.module: Required value: the file of a component",
        ),
        (
            json!({"failurePolicy": "Skip"}),
            everywhere.clone(),
            "profiles[0].pluginConfig[0].args.failurePolicy: Unsupported value: \"Skip\": supported values: \"Fail\", \"Ignore\"",
        ),
        (
            json!({"timeout": "0s"}),
            everywhere.clone(),
            "profiles[0].pluginConfig[0].args.timeout: Invalid value: \"0s\": must be a duration of at most 1m, such as 500ms",
        ),
        (
            json!({"timeout": "2m"}),
            everywhere.clone(),
            "profiles[0].pluginConfig[0].args.timeout: Invalid value: \"2m\": must be a duration of at most 1m, such as 500ms",
        ),
        (
            json!({"memory": "-1"}),
            everywhere.clone(),
            "profiles[0].pluginConfig[0].args.memory: Invalid value: \"-1\": must be a quantity from 1Mi to 4Gi",
        ),
        (
            json!({"fuel": 0}),
            everywhere.clone(),
            "profiles[0].pluginConfig[0].args.fuel: Invalid value: 0: must be greater than 0",
        ),
        (
            json!({}),
            json!({}),
            "profiles[0].pluginConfig[0]: Invalid value: \"Mine\": the profile enables it neither at filter nor at score nor at multiPoint",
        ),
        (
            json!({}),
            json!({"filter": {"enabled": [{"name": "Mine"}]}, "reserve": {"enabled": [{"name": "Mine"}]}}),
            "initializing profiles: creating profile for scheduler name default-scheduler: plugin \"Mine\" does not extend ReservePlugin plugin",
        ),
    ];
    for (args, plugins, why) in cases {
        assert_eq!(parsed(&plugged(args.clone(), plugins)).unwrap_err(), why, "{args}");
    }
}

#[test]
fn a_component_has_a_name_of_its_own() {
    let everywhere = json!({"multiPoint": {"enabled": [{"name": "Mine"}]}});
    let mut file = plugged(json!({}), everywhere);
    for (name, why) in [
        ("NodeName", "profiles[0].pluginConfig[0]: Invalid value: \"NodeName\": this name is another plugin's"),
        (
            "a b",
            "profiles[0].pluginConfig[0].args: Invalid value: \"a b\": a plugin's name has 1 to 63 letters, digits, '-', '_' and '.'",
        ),
    ] {
        file["profiles"][0]["pluginConfig"][0]["name"] = name.into();
        file["profiles"][0]["plugins"]["multiPoint"]["enabled"][0]["name"] = name.into();
        assert_eq!(parsed(&file).unwrap_err(), why);
    }
}

#[test]
fn a_disabled_filter_keeps_the_results_of_pre_filters() {
    let snapshot = cluster(&[("a", json!({})), ("b", json!({}))]);
    let off = |name: &str| profile(json!({"plugins": {"filter": {"disabled": [{"name": name}]}}}));
    let huge = asking("huge", json!({"cpu": "5000"}));
    assert!(nodes_of(&snapshot, &huge, &Profile::default()).first().unwrap().contains("2 Insufficient cpu"));
    assert_eq!(nodes_of(&snapshot, &huge, &off("NodeResourcesFit")).len(), 2);
    let picky = pod("picky", json!({"spec": {"nodeSelector": {"zone": "x"}}}));
    assert_eq!(nodes_of(&snapshot, &picky, &off("NodeAffinity")).len(), 2);
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]});
    let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}});
    let named = pod("named", json!({"spec": {"affinity": {"nodeAffinity": required}}}));
    assert_eq!(nodes_of(&snapshot, &named, &off("NodeAffinity")), BTreeSet::from(["b".to_owned()]));
}
