//! One run: a cluster under a seed, in one thread with a paused clock.

use std::sync::Arc;
use std::time::Duration;

use crate::checkers::convergence::unmet;
use crate::clock;
use crate::cluster::{Cluster, Pace};
use crate::sabotage::Sabotage;
use crate::world::World;
use crate::{faults, log, workload};

/// Time limit of convergence after the faults: longer than every back-off and grace period.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(900);
/// The same with sabotage, which may prevent convergence.
const CONVERGENCE_TIMEOUT_SABOTAGED: Duration = Duration::from_secs(60);
/// Consecutive converged checks that are required.
const CONVERGED_CHECKS: u32 = 3;
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Unconverged checks before users intervene again.
const UNCONVERGED_CHECKS: u32 = 15;
/// Users' actions in most runs, and in every eighth one.
const STEPS: u64 = 10;
const STEPS_LONG: u64 = 30;

/// Result of a run.
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
    let until = clock::now() + Duration::from_secs(2 * steps);
    tokio::join!(biased; working, faults::make(cluster.clone(), seed, until));
    world.calm();
    let deadline =
        clock::now() + if sabotage == Sabotage::None { CONVERGENCE_TIMEOUT } else { CONVERGENCE_TIMEOUT_SABOTAGED };
    let rest = async {
        workload::settle(cluster.clone(), seed).await;
        wait_for_convergence(&cluster, seed).await
    };
    if clock::timeout_at(deadline, rest).await.is_err() {
        let mut problems = unmet(&world.history);
        problems.extend(world.autoscaling.unmet(&world.history));
        problems.extend(cluster.stale(world.history.revision()));
        for problem in problems {
            world.record_violation(format!("never came to rest: {problem}"));
        }
        if world.violations().is_empty() {
            world.record_violation("never came to rest".into());
        }
    }
    let answered = cluster.network.answered.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    log::log!(world, "answers: {answered:?}; revision {}", world.history.revision());
    world.history.forget();
    Report { log: world.log.take(), violations: world.violations() }
}

/// Waits for convergence.
async fn wait_for_convergence(cluster: &Arc<Cluster>, seed: u64) {
    let (mut calm, mut restless) = (0, 0);
    let mut settled = cluster.world.history.revision();
    let broken = || cluster.world.sabotage != Sabotage::None && !cluster.world.violations().is_empty();
    while calm < CONVERGED_CHECKS && !broken() {
        clock::sleep(CHECK_INTERVAL).await;
        let before = std::mem::replace(&mut settled, cluster.world.history.revision());
        let mut problems = unmet(&cluster.world.history);
        problems.extend(cluster.world.autoscaling.unmet(&cluster.world.history));
        let stale = cluster.stale(before);
        if let Some(first) = problems.iter().chain(&stale).next() {
            log::log!(cluster.world, "not at rest: {} things, {first}", problems.len() + stale.len());
            calm = 0;
            restless += 1;
            // Messages in transit at the end of faults may require another intervention.
            if restless % UNCONVERGED_CHECKS == 0 {
                workload::settle(cluster.clone(), seed).await;
            }
        } else {
            calm += 1;
        }
    }
}
