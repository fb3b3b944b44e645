//! One run: a cluster under a seed, in one thread whose time passes as soon as everything waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::checkers::convergence::unfinished;
use crate::cluster::{Cluster, Pace};
use crate::sabotage::Sabotage;
use crate::world::World;
use crate::{faults, log, workload};

/// How long the cluster may take to come to rest when faults have ended: longer than every back-off and grace period in it.
const REST_WITHIN: Duration = Duration::from_secs(900);
/// The same where something is broken on purpose, and may never come to rest.
const REST_WITHIN_BROKEN: Duration = Duration::from_secs(60);
/// At rest for so many looks in a row.
const LOOKS: u32 = 3;
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks that found it restless until users look again, too.
const RESTLESS: u32 = 15;
/// Things that users do in most runs, and in every eighth one.
const STEPS: u64 = 10;
const STEPS_LONG: u64 = 30;

/// What a run came to.
pub(crate) struct Report {
    pub(crate) log: String,
    pub(crate) violations: Vec<String>,
}

/// Runs a seed.
pub(crate) fn run(seed: u64, sabotage: Sabotage) -> Report {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(one(seed, sabotage))
}

async fn one(seed: u64, sabotage: Sabotage) -> Report {
    let world = Arc::new(World::new(seed, sabotage));
    let cluster = Cluster::new(seed, world.clone(), Pace::Usual);
    cluster.start(workload::NODES_MIN).await;
    let steps = if seed % 8 == 7 || sabotage != Sabotage::None { STEPS_LONG } else { STEPS };
    let working = workload::run(cluster.clone(), seed, steps);
    let until = Instant::now() + Duration::from_secs(2 * steps);
    tokio::join!(biased; working, faults::make(cluster.clone(), seed, until));
    world.calm();
    let deadline = Instant::now() + if sabotage == Sabotage::None { REST_WITHIN } else { REST_WITHIN_BROKEN };
    let rest = async {
        workload::settle(cluster.clone(), seed).await;
        rest(&cluster, seed).await
    };
    if tokio::time::timeout_at(deadline, rest).await.is_err() {
        let mut problems = unfinished(&world.history);
        problems.extend(world.autoscaling.unfinished(&world.history));
        problems.extend(cluster.stale(world.history.revision()));
        for problem in problems {
            world.violated(format!("never came to rest: {problem}"));
        }
        if world.violations().is_empty() {
            world.violated("never came to rest".into());
        }
    }
    let answered = cluster.network.answered.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    log::log!(world, "answers: {answered:?}; revision {}", world.history.revision());
    world.history.forget();
    Report { log: world.log.take(), violations: world.violations() }
}

/// Waits until nothing is left to do.
async fn rest(cluster: &Arc<Cluster>, seed: u64) {
    let (mut calm, mut restless) = (0, 0);
    let mut settled = cluster.world.history.revision();
    let broken = || cluster.world.sabotage != Sabotage::None && !cluster.world.violations().is_empty();
    while calm < LOOKS && !broken() {
        tokio::time::sleep(LOOK_EVERY).await;
        let before = std::mem::replace(&mut settled, cluster.world.history.revision());
        let mut problems = unfinished(&cluster.world.history);
        problems.extend(cluster.world.autoscaling.unfinished(&cluster.world.history));
        let stale = cluster.stale(before);
        if let Some(first) = problems.iter().chain(&stale).next() {
            log::log!(cluster.world, "not at rest: {} things, {first}", problems.len() + stale.len());
            calm = 0;
            restless += 1;
            // What was on its way when faults ended may leave more to mend by hand.
            if restless % RESTLESS == 0 {
                workload::settle(cluster.clone(), seed).await;
            }
        } else {
            calm += 1;
        }
    }
}
