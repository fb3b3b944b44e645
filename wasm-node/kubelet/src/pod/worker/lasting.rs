//! The part of a pod that outlives its worker at a takeover of the process ([`crate::pod::handover`]).

#[cfg(doc)]
use super::PodView;
use super::PodWorker;
use super::sandbox::PodSandbox;
use super::slot::LiveContainer;

/// The servers of a pod, with the resources of the node that they use.
pub(crate) struct LastingPod {
    servers: Vec<LiveContainer>,
    _sandbox: PodSandbox,
}

impl LastingPod {
    /// Ends the servers.
    pub(crate) fn end(mut self) {
        for server in &mut self.servers {
            server.runner.kill();
            server.created.log.close();
        }
    }
}

impl PodWorker {
    /// Ends the pod in this process without a status. Its containers go on if they [outlive](PodView::outlives_agent) the agent.
    pub(super) fn leave(mut self: Box<Self>) -> Option<LastingPod> {
        let servers: Vec<_> = self.slots.iter_mut().filter_map(|slot| slot.live.take()).collect();
        let pod = LastingPod { servers, _sandbox: std::mem::take(&mut self.sandbox) };
        if self.view.outlives_agent() {
            return Some(pod);
        }
        pod.end();
        None
    }
}
