//! Fuzz target of recordings: a broken recording is rejected, and a valid one gives the same explanation each time.

use bolero::check;
use serde_json::{Value, json};

use super::Recording;

/// Fragments of recordings, each with the field that it goes into.
fn pieces() -> [(&'static str, Value); 20] {
    let far = i64::MAX.to_string();
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]});
    let term = json!({"topologyKey": "zone", "labelSelector": selector});
    [
        (
            "nodes",
            json!({"metadata": {"name": "a", "labels": {"zone": "x"}}, "status": {"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "9"}}}),
        ),
        (
            "nodes",
            json!({"metadata": {"name": "b", "labels": {"zone": ""}}, "spec": {"unschedulable": true, "taints": [{"key": "k", "effect": "PreferNoSchedule"}]}}),
        ),
        (
            "nodes",
            json!({"metadata": {"name": "c\u{1b}[2J"}, "status": {"allocatable": {"cpu": far, "memory": far, "pods": far, "x/y": "-1"}}}),
        ),
        ("nodes", json!({"metadata": {}})),
        (
            "nodes",
            json!({"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "-9223372036854775808", "memory": "1e99", "pods": "none"}}}),
        ),
        (
            "pods",
            json!({"metadata": {"name": "p", "uid": "p"}, "spec": {"nodeName": "a", "containers": [{"name": "c", "resources": {"requests": {"cpu": far}}}]}}),
        ),
        (
            "pods",
            json!({"metadata": {"name": "q", "namespace": "n"}, "spec": {"nodeName": "none", "priority": -2147483648}}),
        ),
        (
            "pods",
            json!({"metadata": {"name": "r"}, "spec": {"schedulerName": "default-scheduler", "priority": 2147483647}, "status": {"nominatedNodeName": "a"}}),
        ),
        (
            "pods",
            json!({"metadata": {"name": "s", "labels": {"a": "c"}}, "spec": {"nodeName": "a", "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}}),
        ),
        ("pods", json!({"metadata": {"name": "mine"}, "spec": {"nodeName": "b"}, "status": {"phase": "Failed"}})),
        ("pods", json!(7)),
        (
            "pod",
            json!({"metadata": {"name": "mine", "labels": {"a": "c"}}, "spec": {"schedulerName": "default-scheduler", "priority": 5, "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 2147483647, "podAffinityTerm": term}]}}}}),
        ),
        (
            "pod",
            json!({"metadata": {"name": "mine"}, "spec": {"schedulerName": "default-scheduler", "topologySpreadConstraints": [{"maxSkew": -2147483648, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "minDomains": -1}], "containers": [{"name": "c", "resources": {"requests": {"cpu": far, "memory": far, "x/y": far}}}]}}),
        ),
        ("pod", json!({"metadata": {"name": "mine"}, "spec": {"schedulerName": "other"}})),
        (
            "pod",
            json!({"metadata": {"name": "mine"}, "spec": {"schedulerName": "default-scheduler", "schedulingGates": [{"name": "g"}], "nodeSelector": {"zone": "x"}, "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": -2147483648, "preference": {"matchFields": [{"key": "zone", "operator": "Gt", "values": []}]}}]}}}}),
        ),
        ("namespaces", json!({"metadata": {"name": "n", "labels": {"a": "b"}}})),
        ("services", json!({"metadata": {"name": "s"}, "spec": {"selector": {"a": "c"}}})),
        (
            "podDisruptionBudgets",
            json!({"metadata": {"name": "b"}, "spec": {"selector": selector}, "status": {"disruptionsAllowed": -1}}),
        ),
        (
            "configuration",
            json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "profiles": [{"plugins": {"multiPoint": {"enabled": [{"name": "InterPodAffinity", "weight": 2147483647}]}}}]}),
        ),
        ("form", json!(2)),
    ]
}

/// Fragments of answers of WebAssembly plugins.
fn plugin_pieces() -> [(&'static str, Value); 2] {
    [
        (
            "configuration",
            json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "profiles": [{
                "plugins": {"multiPoint": {"enabled": [{"name": "Mine", "weight": 2147483647}]}},
                "pluginConfig": [{"name": "Mine", "args": {"apiVersion": "scheduler.coracle.dev/v1", "kind": "WasmPluginArgs", "module": "/m"}}]}]}),
        ),
        (
            "pluginAnswers",
            json!({"asked": ["a", "none"], "refused": {"a": {"plugin": "Mine", "reason": "r"}, "b": {"plugin": "Mine"}},
                "scores": [{"plugin": "Mine", "nodes": {"a": i64::MAX, "none": 5}}, {"plugin": "Mine", "nodes": {"b": i64::MIN}}], "failed": [{"plugin": "x"}]}),
        ),
    ]
}

#[test]
fn a_broken_recording_is_refused_and_others_are_explained() {
    let pieces: Vec<_> = pieces().into_iter().chain(plugin_pieces()).collect();
    check!().with_type::<(Vec<u8>, Option<u16>)>().for_each(|(order, cut)| {
        let mut file = json!({"kind": "SchedulingRecord", "form": 1});
        for (field, piece) in order.iter().take(30).map(|at| &pieces[usize::from(*at) % pieces.len()]) {
            match *field {
                "pod" | "configuration" | "pluginAnswers" | "form" => file[field] = piece.clone(),
                list if file[list].is_array() => file[list].as_array_mut().unwrap().push(piece.clone()),
                list => file[list] = json!([piece]),
            }
        }
        let mut text = file.to_string();
        if let Some(cut) = cut {
            text.truncate(text.floor_char_boundary(usize::from(*cut)));
        }
        match Recording::parse(&text).and_then(|recording| Ok((recording.explain()?, recording))) {
            Ok((explained, recording)) => {
                assert!(explained.node.is_some() != explained.message.is_some());
                let again = serde_json::to_string(&recording).unwrap();
                assert_eq!(Recording::parse(&again).unwrap().explain().unwrap(), explained);
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    });
}
