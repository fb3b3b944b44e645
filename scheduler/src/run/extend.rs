//! Pods that extenders are asked about: they wait beside the queue, so that others don't wait for an extender's answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::{Kind, Pod};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Done, Nomination, Scheduler, Told, profile_of};
use crate::decide::feasible;
use crate::extender::Verdicts;
use crate::extender::client::{Extender, Nodes, ask};
use crate::metrics::Outcome;
use crate::pod::PodInfo;
use crate::queue::QueuedPodInfo;

/// Pods that extenders are asked about at once: each may hold a large answer.
const ASKED_MAX: usize = 16;

/// See the module.
pub(super) struct Asking {
    extenders: Arc<[Extender]>,
    slots: Arc<Semaphore>,
    /// Those that are still to be asked about.
    pub(super) waiting: VecDeque<QueuedPodInfo>,
    /// Those of which the answers are there.
    pub(super) answered: VecDeque<Box<Asked>>,
}

/// What was answered about a pod.
pub(super) struct Asked {
    waiting: QueuedPodInfo,
    /// Where its decision began in the order of nodes.
    start: usize,
    verdicts: Result<Verdicts, String>,
}

impl Asking {
    pub(super) fn new(extenders: Vec<Extender>) -> Self {
        let slots = Arc::new(Semaphore::new(ASKED_MAX));
        Self { extenders: extenders.into(), slots, waiting: VecDeque::new(), answered: VecDeque::new() }
    }

    /// Whether any is asked before a pod is given a node.
    pub(super) fn concerns(&self, pod: &PodInfo) -> bool {
        self.extenders.iter().any(|extender| extender.config.is_asked(pod))
    }

    /// Who binds a pod, if it isn't the scheduler.
    pub(super) fn binder(&self, pod: &PodInfo) -> Option<Extender> {
        let binds = |extender: &&Extender| !extender.config.bind_verb.is_empty() && extender.config.is_interested(pod);
        self.extenders.iter().find(binds).cloned()
    }
}

/// Has an extender bind a pod; none: it is to be done without one.
pub(super) async fn bind(binder: Option<Extender>, pod: &PodInfo, node: &str) -> Option<Result<(), String>> {
    let binder = binder?;
    match binder.bind(pod, node).await {
        Err(why) if binder.config.ignorable => {
            tracing::info!(extender = binder.config.url_prefix, pod = %pod.key, why, "an extender is done without");
            None
        }
        bound => Some(bound),
    }
}

impl Scheduler {
    /// Begins to ask about the next pods, as far as there are places.
    pub(super) fn ask_next(&mut self) {
        while !self.asking.waiting.is_empty()
            && let Ok(slot) = self.asking.slots.clone().try_acquire_owned()
            && let Some(waiting) = self.asking.waiting.pop_front()
        {
            self.ask(waiting, slot);
        }
    }

    /// The first half of the decision, and the questions.
    fn ask(&mut self, waiting: QueuedPodInfo, slot: OwnedSemaphorePermit) {
        let Some(at) = profile_of(&self.config.profiles, &waiting.pod) else { return };
        let start = self.start;
        let names = feasible(&self.snapshot, &waiting.pod, &self.config.profiles[at], start);
        let object =
            |name: &String| self.informer.read(|view| view.get_arc::<Node>(&ObjectKey::cluster(name.as_str())));
        let nodes: Nodes =
            names.into_iter().filter_map(|name| Some((object(&name)?, name))).map(|(n, name)| (name, n)).collect();
        let (client, done, extenders) = (self.client.clone(), self.done.clone(), self.asking.extenders.clone());
        self.tasks.spawn(async move {
            let verdicts = async {
                if nodes.is_empty() {
                    return Ok(Verdicts::default());
                }
                // Views hold what scheduling needs; extenders get all of it.
                let whole: Value = client.get(&Kind::of::<Pod>(), &waiting.pod.key).await.map_err(|e| e.to_string())?;
                if whole["metadata"]["uid"] != *waiting.pod.uid {
                    return Err("the pod is another one by now".to_owned());
                }
                ask(&extenders, &waiting.pod, &whole, &nodes).await
            };
            let verdicts = verdicts.await;
            drop(slot);
            let _ = done.send(Done::Asked(Box::new(Asked { waiting, start, verdicts }))).await;
        });
    }

    /// The second half of the decision.
    pub(super) fn answered(&mut self, asked: Asked, permit: OwnedSemaphorePermit) {
        let Asked { waiting, start, verdicts } = asked;
        let known = self.queue.get(&waiting.pod.key).filter(|known| known.pod.uid == waiting.pod.uid);
        // It is gone, or has a node by others.
        let Some(changed) = known.map(|known| !known.pod.waits_as(&waiting.pod)) else { return };
        match verdicts {
            Ok(verdicts) if !changed => self.decide(waiting, start, Some(&verdicts), permit),
            Ok(_) => self.queue.failed(&waiting, None, self.env.elapsed()),
            Err(message) => {
                let name = &waiting.pod.wants.scheduler;
                self.config.metrics.tried(name, Outcome::Error, Duration::ZERO);
                self.queue.failed(&waiting, None, self.env.elapsed());
                let told = Told { reason: "SchedulerError", message, nomination: Nomination::Clear };
                self.tell(&waiting, told, Some(permit));
            }
        }
    }
}
