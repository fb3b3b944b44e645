//! Draws faults from the seed, until the cluster is to converge.

use std::sync::Arc;

use apiserver_storage::store::Store as _;
use tokio::time::Instant;

use crate::clock;
use crate::cluster::Cluster;
use crate::log::log;
use crate::network::Doom;
use crate::random::Random;
use crate::world::Weather;

/// Injects faults until `until`.
pub(crate) async fn make(cluster: Arc<Cluster>, seed: u64, until: Instant) {
    let random = Random::new(seed, "faults");
    let world = cluster.world.clone();
    world.set_weather(weather(&random));
    while clock::now() < until {
        clock::sleep(random.millis(300, 6000)).await;
        match random.below(17) {
            0 => {
                log!(world, "fault: the API server is killed");
                cluster.network.kill_server();
            }
            1 | 2 => {
                if let Some(link) = random.pick(&cluster.names()).and_then(|name| cluster.link(name)) {
                    log!(world, "fault: {} is killed", link.name);
                    link.dead.cancel();
                }
            }
            3 | 4 => {
                let doom = Doom { writes: random.between(1, 12), done: random.chance(500) };
                if let Some(link) = random.pick(&cluster.names()).and_then(|name| cluster.link(name)) {
                    log!(world, "fault: {} dies with its writes: {doom:?}", link.name);
                    link.schedule_death(Some(doom));
                }
            }
            5 | 6 => partition(&cluster, &random),
            7 | 8 => {
                if let Some(link) = random.pick(&cluster.names()).and_then(|name| cluster.link(name)) {
                    log!(world, "fault: the watches of {} break", link.name);
                    cluster.network.pump.break_all(|stream| Arc::ptr_eq(&stream.link, &link));
                }
            }
            9 => {
                let revision = cluster.store.revision();
                log!(world, "fault: history is compacted to {revision}");
                if cluster.store.compact(revision).await.is_ok() && random.chance(700) {
                    cluster.network.pump.break_all(|_| true);
                }
            }
            10 => {
                let far = i64::try_from(random.below(61)).unwrap_or(0);
                world.step_clock(if random.chance(500) { far } else { -far });
            }
            11 | 12 => freeze(&cluster, &random),
            13 => {
                let server_ms = *random.pick(&[300, 3000, 20_000]).unwrap_or(&300);
                world.set_weather(Weather { server_ms, ..weather(&random) });
            }
            _ => world.set_weather(weather(&random)),
        }
    }
    log!(world, "faults end");
    world.set_weather(Weather::CALM);
    for link in cluster.links() {
        link.schedule_death(None);
        link.heal();
        link.thaw();
    }
}

/// Cuts a component's link for a while.
fn partition(cluster: &Arc<Cluster>, random: &Random) {
    let Some(link) = random.pick(&cluster.names()).and_then(|name| cluster.link(name)) else { return };
    let lasts = if random.chance(300) { random.millis(10_000, 40_000) } else { random.millis(200, 5000) };
    log!(cluster.world, "fault: {} is cut off for {} ms", link.name, lasts.as_millis());
    link.cut();
    let (cluster, breaks) = (cluster.clone(), random.chance(500));
    tokio::spawn(async move {
        clock::sleep(lasts).await;
        log!(cluster.world, "fault: {} is back", link.name);
        if breaks {
            cluster.network.pump.break_all(|stream| Arc::ptr_eq(&stream.link, &link));
        }
        link.heal();
    });
}

/// Freezes a node, which resumes with its state and operations in progress: its pods keep running, and others see it as silent.
fn freeze(cluster: &Arc<Cluster>, random: &Random) {
    let Some(link) = random.pick(&cluster.nodes()).and_then(|name| cluster.link(name)) else { return };
    let lasts = if random.chance(500) { random.millis(15_000, 45_000) } else { random.millis(200, 15_000) };
    log!(cluster.world, "fault: {} is frozen for {} ms", link.name, lasts.as_millis());
    link.freeze();
    let cluster = cluster.clone();
    tokio::spawn(async move {
        clock::sleep(lasts).await;
        log!(cluster.world, "fault: {} goes on", link.name);
        link.thaw();
    });
}

fn weather(random: &Random) -> Weather {
    let level = |most: u64| if random.chance(400) { random.between(1, most) } else { 0 };
    Weather {
        delay_ms: *random.pick(&[1, 3, 20, 100]).unwrap_or(&1),
        slow: level(100),
        slow_watches: 0,
        lost: level(80),
        unanswered: level(80),
        cut: level(40),
        busy: level(150),
        store: level(60),
        server_ms: 0,
    }
}
