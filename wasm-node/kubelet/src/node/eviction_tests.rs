//! Eviction under memory pressure: the chosen pods, their order, and the node condition. On a paused clock.

use std::time::Duration;

use machinery_env::TokioClock;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::eviction::{self, CRITICAL_PRIORITY};
use super::lifecycle::{Node, is_ready};
use super::pressure::{MachineReading, Pressure, Pressures, ResourceAmount};
use super::thresholds::EvictionThresholds;

/// Name, priority, bytes held, bytes requested; in the order of their eviction.
const PODS: [(&str, i32, u64, u64); 5] = [
    ("far-over", 0, 500, 1),
    ("little-over", 0, 500, 400),
    ("important", 100, 900, 1),
    ("within", 0, 900, 1000),
    ("critical", CRITICAL_PRIORITY, 9000, 1),
];

fn reading(free: u64) -> MachineReading {
    MachineReading { guest_memory_bytes: Some(ResourceAmount { total: 1 << 30, free }), ..MachineReading::default() }
}

fn is_evicted(status: &Value) -> bool {
    status["phase"] == "Failed" && status["reason"] == "Evicted"
}

#[tokio::test(start_paused = true)]
async fn pods_go_one_at_a_time_while_memory_is_short() {
    let node = Node::with("127.66.0.0/24", TokioClock::env(7).0).await;
    // The order of creation doesn't decide.
    for (name, priority, holds, requests) in PODS.into_iter().rev() {
        let script = format!("command memory={holds}");
        let resources = json!({"requests": {"memory": requests.to_string()}});
        let container = json!({"name": "c", "image": node.image(name, &script), "resources": resources});
        node.run(name, &script, &json!({"containers": [container], "priority": priority}));
        node.until(name, "ready", is_ready).await;
    }
    let (tell, shortages) = watch::channel(Vec::new());
    tokio::spawn(eviction::run(node.shared.clone(), shortages));
    let evicted = || {
        let is_evicted = |name: &&str| node.api.with(|cluster| is_evicted(&cluster.pods[*name]["status"]));
        PODS.map(|(name, ..)| name).into_iter().filter(is_evicted).count()
    };
    for (already, (name, ..)) in PODS.into_iter().enumerate() {
        node.shared.parts.env.sleep(Duration::from_secs(60)).await;
        assert_eq!(evicted(), already, "one for each observation");
        tell.send(reading(1 << 20).shortages(&EvictionThresholds::default())).unwrap();
        if name != "critical" {
            let status = node.until(name, "evicted", is_evicted).await;
            let message = status["message"].as_str().unwrap();
            assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
            assert_eq!(message.contains("has larger consumption of memory"), name != "within", "{message}");
        }
    }
    node.shared.parts.env.sleep(Duration::from_secs(60)).await;
    assert!(evicted() == 4 && node.api.with(|cluster| is_ready(&cluster.pods["critical"]["status"])));
}

#[test]
fn the_condition_holds_for_a_while_after_the_last_shortage() {
    let (mut pressures, second) = (Pressures::default(), Duration::from_secs);
    let reported =
        |pressures: &Pressures, now| Pressure::Memory.condition(pressures.active(second(now)).has(Pressure::Memory));
    pressures.observe(&reading(1 << 29).shortages(&EvictionThresholds::default()), second(0));
    let sufficient = ("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available");
    assert_eq!(reported(&pressures, 0), sufficient);
    pressures.observe(&reading(1 << 20).shortages(&EvictionThresholds::default()), second(10));
    let short = ("MemoryPressure", true, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available");
    assert_eq!((reported(&pressures, 10), reported(&pressures, 309)), (short, short));
    pressures.observe(&reading(1 << 20).shortages(&EvictionThresholds::default()), second(309));
    assert_eq!((reported(&pressures, 310), reported(&pressures, 609)), (short, sufficient));
    assert!(!pressures.active(second(310)).has(Pressure::Disk) && !pressures.active(second(310)).has(Pressure::Pid));
}
