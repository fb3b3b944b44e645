//! A component that is stopped and goes on later, as by SIGSTOP, a machine's sleep or a paused virtual machine: it knows nothing of
//! the time between.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::network::Link;

/// A life that its link can stop.
pub(crate) struct Freezable<F> {
    pub(crate) link: Arc<Link>,
    pub(crate) life: Pin<Box<F>>,
}

impl<F: Future> Future for Freezable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.link.freezes(context.waker()) {
            return Poll::Pending;
        }
        self.life.as_mut().poll(context)
    }
}
