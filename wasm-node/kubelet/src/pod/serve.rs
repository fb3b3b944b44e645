//! The pod's end of the data plane's requests: hands them to the engine, and notices when no instance can be made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use machinery_api::names::REASON_HEADER;
use machinery_serve::net::{Attached, Body, Origin, Refused, Serve};

use super::state::CellEvent;
use super::worker::{Message, happened};
use crate::mailbox::Sender;
use runtime_api::{Container, Server, Trial};

/// How often a server that can't be instantiated is tried again.
const TRY_INTERVAL: Duration = Duration::from_secs(10);

/// The address of a server: held by what runs, closed by what stops it, whichever comes first.
#[derive(Clone)]
pub(crate) struct AttachedAddress(Arc<Mutex<Option<Attached>>>);

impl AttachedAddress {
    pub(crate) fn new(attached: Attached) -> Self {
        Self(Arc::new(Mutex::new(Some(attached))))
    }

    /// Nobody is sent to the server any more; the address is free.
    pub(crate) fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A server with an eye on it.
pub(crate) struct ServerHandle {
    server: Arc<dyn Server>,
    container: Arc<dyn Container>,
    /// Which container of the pod, and which start.
    of: (usize, u32),
    messages: Sender<Message>,
    looking: AtomicBool,
    this: std::sync::Weak<ServerHandle>,
}

impl ServerHandle {
    pub(crate) fn new(
        container: Arc<dyn Container>,
        server: Arc<dyn Server>,
        of: (usize, u32),
        messages: Sender<Message>,
    ) -> Arc<Self> {
        let looking = AtomicBool::new(false);
        Arc::new_cyclic(|this| Self { server, container, of, messages, looking, this: this.clone() })
    }

    /// Tries whether an instance can be made, until one can; tells the worker.
    pub(crate) fn look(&self) {
        if self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.this.clone();
        tokio::spawn(async move {
            loop {
                // A gate that nobody holds any more is a server that was stopped.
                let Some(gate) = this.upgrade() else { return };
                let broken = match gate.container.try_instantiate().await {
                    Trial::Sound => None,
                    Trial::Broken(why) => Some(why),
                    // It has waited as long as a request may; nothing is known, so nothing is said.
                    Trial::NoRoom => continue,
                };
                let again = broken.is_some();
                let (index, attempt) = gate.of;
                let tried = CellEvent::Tried { attempt, broken };
                if gate.messages.send(happened(index, tried)).await.is_err() {
                    return;
                }
                if !again {
                    gate.looking.store(false, Ordering::Release);
                    return;
                }
                drop(gate);
                tokio::time::sleep(TRY_INTERVAL).await;
            }
        });
    }
}

#[async_trait::async_trait]
impl Serve for ServerHandle {
    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, Refused<Request<Body>>> {
        let response = self.server.http(from, request).await?;
        if response.status().is_server_error()
            && response.headers().contains_key(REASON_HEADER)
            && self.container.broken().is_some()
        {
            self.look();
        }
        Ok(response)
    }
}
