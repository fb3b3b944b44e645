//! Compresses objects of pods that were not used between two rounds, in the background and in small batches.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::pod::shared::NodeContext;
use crate::pod::worker::Packers;

/// The period of the packing rounds. An object that was not used between two rounds is packed.
const PERIOD: Duration = Duration::from_secs(4);
/// The numbers of pods and of packed texts before the task yields.
const PODS_AT_ONCE: usize = 256;
const PACKED_AT_ONCE: usize = 32;

/// Runs until the node stops.
pub(super) async fn run(node: Arc<NodeContext>) {
    let mut packers = Packers::default();
    let mut rounds = node.parts.env.interval(PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let round = async {
        loop {
            rounds.tick().await;
            let (mut visited, mut packed) = (0, 0);
            for view in node.pods.all() {
                visited += 1;
                packed += view.pack(&mut packers);
                if visited >= PODS_AT_ONCE || packed >= PACKED_AT_ONCE {
                    (visited, packed) = (0, 0);
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
