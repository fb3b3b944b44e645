//! Freezes and resumes a component, as SIGSTOP, a machine's sleep or a paused virtual machine does: the component doesn't
//! notice the time between.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::network::Link;

/// A component's future that its link can freeze.
pub(crate) struct Freezable<F> {
    pub(crate) link: Arc<Link>,
    pub(crate) life: Pin<Box<F>>,
}

impl<F: Future> Future for Freezable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.link.is_frozen(context.waker()) {
            return Poll::Pending;
        }
        self.life.as_mut().poll(context)
    }
}
