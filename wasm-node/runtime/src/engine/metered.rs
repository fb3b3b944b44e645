//! CPU metering of a guest: measures, charges and throttles each poll.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use machinery_serve::trace::Scope;

use super::container::ContainerState;
use super::runtime::EVENT_INTERVAL;
use crate::bounds::epoch::take_interrupted;
use crate::bounds::priority;
use crate::bounds::shares::CpuTicket;
use crate::bounds::thread_clock::measured;

/// A guest's future: each poll is measured and charged, delayed while the bucket is empty, and waits for its turn under
/// CPU contention.
pub(crate) struct MeteredFuture<F> {
    guest: Pin<Box<F>>,
    container: Arc<ContainerState>,
    held: Option<Pin<Box<tokio::time::Sleep>>>,
    ticket: Option<CpuTicket>,
    /// Interrupted, with other guests waiting for its return.
    expected_back: bool,
    /// Yields left before its next CPU request.
    yields_left: u32,
    bypasses_queue: bool,
    /// The span within which it runs.
    scope: Option<Scope>,
}

impl<F: Future> MeteredFuture<F> {
    pub(crate) fn new(guest: F, container: Arc<ContainerState>) -> Self {
        let (held, ticket) = (None, None);
        Self {
            guest: Box::pin(guest),
            container,
            held,
            ticket,
            expected_back: false,
            yields_left: 0,
            bypasses_queue: false,
            scope: None,
        }
    }

    /// Runs the guest within a span, so that its outgoing requests and log lines belong to it.
    pub(crate) fn within(mut self, scope: Option<Scope>) -> Self {
        self.scope = scope;
        self
    }

    /// Lets a call of the node run without waiting for other guests.
    pub(crate) fn bypassing_queue(mut self, bypasses_queue: bool) -> Self {
        self.bypasses_queue = bypasses_queue;
        self
    }

    /// Whether it has to wait for CPU.
    fn must_wait(&mut self, cx: &Context<'_>) -> bool {
        match &self.ticket {
            Some(ticket) if !ticket.is_granted(cx.waker()) => return true,
            Some(_) => self.ticket = None,
            None if self.expected_back || (self.container.engine.scheduler().contended() && !self.bypasses_queue) => {
                let again = std::mem::take(&mut self.expected_back);
                self.ticket = self.container.engine.scheduler().request(&self.container.cpu, again, cx.waker());
            }
            None => {}
        }
        self.ticket.is_some()
    }
}

impl<F> MeteredFuture<F> {
    fn cancel_return(&mut self) {
        if std::mem::take(&mut self.expected_back) {
            self.container.engine.scheduler().cancel_return(&self.container.cpu);
        }
    }
}

impl<F> Drop for MeteredFuture<F> {
    fn drop(&mut self) {
        self.cancel_return();
    }
}

impl<F: Future> Future for MeteredFuture<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if this.yields_left > 0 {
            this.yields_left -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some(held) = &mut this.held {
                std::task::ready!(held.as_mut().poll(cx));
                this.held = None;
            }
            let Some(delay) = this.container.cpu.throttle_delay() else { break };
            this.cancel_return();
            this.held = Some(Box::pin(this.container.engine.env().sleep(delay)));
        }
        if this.must_wait(cx) {
            return Poll::Pending;
        }
        let running = this.container.engine.ticker().enter();
        let scope = this.scope.as_ref().map(Scope::enter);
        let (polled, took) = measured(|| this.guest.as_mut().poll(cx));
        drop(scope);
        this.container.cpu.charge(took);
        drop(running);
        priority::polled(took, this.container.engine.scheduler().contended());
        let interrupted = take_interrupted() && polled.is_pending() && !this.bypasses_queue;
        this.expected_back = this.container.engine.scheduler().charge_run(&this.container.cpu, interrupted);
        if this.expected_back {
            // The thread has polled no sockets for a whole slice: each yield counts as a scheduler tick, until it does.
            this.yields_left = EVENT_INTERVAL - 1;
        }
        polled
    }
}
