//! The pod's end of data plane requests: passes them to the engine, measures the responses, and detects when no instance
//! can be created.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use machinery_api::names::REASON_HEADER;
use machinery_env::Env;
use machinery_serve::net::{Attached, Body, CallRejected, Origin, Serve};

use super::lifecycle::state::ContainerEvent;
use super::start::CreatedContainer;
use super::worker::{Message, PodView, container_message};
use crate::mailbox::Sender;
use crate::responses::ResponseMeter;
use runtime_api::{Container, NodeCall, Server, TrialOutcome};

/// The interval between trial instantiations of a broken server.
const TRY_INTERVAL: Duration = Duration::from_secs(10);

/// The address of a server, shared by its runner and its drain task; the first close releases it.
#[derive(Clone)]
pub(crate) struct AttachedAddress(Arc<Mutex<Option<Attached>>>);

impl AttachedAddress {
    pub(crate) fn new(attached: Attached) -> Self {
        Self(Arc::new(Mutex::new(Some(attached))))
    }

    /// Detaches the server: it gets no more requests, and its address is free.
    pub(crate) fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A server that monitors whether it can be instantiated.
pub(crate) struct ServerHandle {
    server: Arc<dyn Server>,
    container: Arc<dyn Container>,
    /// The container's index, and the number of the start.
    of: (usize, u32),
    view: Arc<PodView>,
    messages: Sender<Message>,
    checking: AtomicBool,
    responses: Option<Arc<ResponseMeter>>,
    env: Env,
    this: std::sync::Weak<ServerHandle>,
}

impl ServerHandle {
    pub(crate) fn new(
        created: &CreatedContainer,
        server: Arc<dyn Server>,
        of: (usize, u32),
        (view, messages): (Arc<PodView>, Sender<Message>),
        env: Env,
    ) -> Arc<Self> {
        let (container, responses) = (created.container.clone(), created.responses.clone());
        let checking = AtomicBool::new(false);
        Arc::new_cyclic(|this| Self {
            server,
            container,
            of,
            view,
            messages,
            checking,
            responses,
            env,
            this: this.clone(),
        })
    }

    /// Tries to create an instance until this succeeds, and reports each result to the worker.
    pub(crate) fn check_instances(&self) {
        if self.checking.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.this.clone();
        tokio::spawn(async move {
            loop {
                // A dropped handle means that the server was stopped.
                let Some(handle) = this.upgrade() else { return };
                let broken = match handle.container.try_instantiate().await {
                    TrialOutcome::Sound => None,
                    TrialOutcome::Broken(why) => Some(why),
                    // The trial has waited as long as a request may. The result is unknown, so nothing is reported.
                    TrialOutcome::NoCapacity => continue,
                };
                let again = broken.is_some();
                let (index, attempt) = handle.of;
                let tried = ContainerEvent::InstantiationTried { attempt, broken };
                if handle.messages.send(container_message(index, tried)).await.is_err() {
                    return;
                }
                if !again {
                    handle.checking.store(false, Ordering::Release);
                    return;
                }
                let again = handle.env.sleep(TRY_INTERVAL);
                drop(handle);
                again.await;
            }
        });
    }
}

#[async_trait::async_trait]
impl Serve for ServerHandle {
    fn outlives_agent(&self) -> bool {
        self.view.outlives_agent()
    }

    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        // The node's own calls say nothing about clients.
        let meter = self.responses.as_ref().filter(|_| request.extensions().get::<NodeCall>().is_none());
        let began = meter.map(|_| self.env.elapsed());
        let response = self.server.http(from, request).await?;
        if let (Some(meter), Some(began)) = (meter, began) {
            meter.record(from, response.status(), self.env.elapsed().saturating_sub(began));
        }
        if response.status().is_server_error()
            && response.headers().contains_key(REASON_HEADER)
            && self.container.broken().is_some()
        {
            self.check_instances();
        }
        Ok(response)
    }
}
