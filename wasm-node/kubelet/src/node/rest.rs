//! Packs what is held of pods that nobody looks at, behind all that they do.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::pod::shared::Shared;
use crate::pod::worker::Packers;

/// Between two rounds. What was not looked at from one to the next is packed.
const PERIOD: Duration = Duration::from_secs(4);
/// Pods that are looked at, and texts that are packed, before others have a turn.
const PODS_AT_ONCE: usize = 256;
const PACKED_AT_ONCE: usize = 32;

/// Runs until the node stops.
pub(super) async fn run(node: Arc<Shared>) {
    let mut packers = Packers::default();
    let mut rounds = tokio::time::interval(PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let round = async {
        loop {
            rounds.tick().await;
            let (mut looked, mut packed) = (0, 0);
            for view in node.pods.all() {
                looked += 1;
                packed += view.sleep(&mut packers);
                if looked >= PODS_AT_ONCE || packed >= PACKED_AT_ONCE {
                    (looked, packed) = (0, 0);
                    tokio::task::yield_now().await;
                }
            }
        }
    };
    tokio::select! {
        () = node.stop.cancelled() => {}
        () = round => {}
    }
}
