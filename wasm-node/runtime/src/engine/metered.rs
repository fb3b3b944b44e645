//! A guest as its container's CPU account sees it: measured, charged and held back at each poll.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::container::Shared;
use super::runtime::TURNS_BETWEEN_EVENTS;
use crate::bounds::epoch::take_interrupted;
use crate::bounds::priority;
use crate::bounds::shares::Turn;
use crate::bounds::thread_clock::measured;

/// A guest's future: each poll is measured and charged, held back while the bucket is empty, and waits for its turn while
/// CPU is short.
pub(crate) struct Metered<F> {
    guest: Pin<Box<F>>,
    container: Arc<Shared>,
    held: Option<Pin<Box<tokio::time::Sleep>>>,
    turn: Option<Turn>,
    /// It was interrupted, and others wait for it to come again.
    comes_again: bool,
    /// How often it steps aside before it asks for its next turn.
    steps_aside: u32,
    goes_first: bool,
}

impl<F: Future> Metered<F> {
    pub(crate) fn new(guest: F, container: Arc<Shared>) -> Self {
        let (held, turn) = (None, None);
        Self { guest: Box::pin(guest), container, held, turn, comes_again: false, steps_aside: 0, goes_first: false }
    }

    /// It is a call of the node's own, and waits for no other guest.
    pub(crate) fn going_first(mut self, goes_first: bool) -> Self {
        self.goes_first = goes_first;
        self
    }

    /// Whether it has to wait for its turn.
    fn waits(&mut self, cx: &Context<'_>) -> bool {
        match &self.turn {
            Some(turn) if !turn.has_come(cx.waker()) => return true,
            Some(_) => self.turn = None,
            None if self.comes_again || (self.container.engine.turns().crowded() && !self.goes_first) => {
                let again = std::mem::take(&mut self.comes_again);
                self.turn = self.container.engine.turns().ask(&self.container.cpu, again, cx.waker());
            }
            None => {}
        }
        self.turn.is_some()
    }
}

impl<F> Metered<F> {
    fn leave(&mut self) {
        if std::mem::take(&mut self.comes_again) {
            self.container.engine.turns().leave(&self.container.cpu);
        }
    }
}

impl<F> Drop for Metered<F> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if this.steps_aside > 0 {
            this.steps_aside -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some(held) = &mut this.held {
                std::task::ready!(held.as_mut().poll(cx));
                this.held = None;
            }
            let Some(delay) = this.container.cpu.hold_back() else { break };
            this.leave();
            this.held = Some(Box::pin(tokio::time::sleep(delay)));
        }
        if this.waits(cx) {
            return Poll::Pending;
        }
        let running = this.container.engine.ticker().enter();
        let (polled, took) = measured(|| this.guest.as_mut().poll(cx));
        this.container.cpu.charge(took);
        drop(running);
        priority::polled(took, this.container.engine.turns().crowded());
        let interrupted = take_interrupted() && polled.is_pending() && !this.goes_first;
        this.comes_again = this.container.engine.turns().ran(&this.container.cpu, interrupted);
        if this.comes_again {
            // Its thread has not looked at sockets for the length of a turn: each step counts as a turn, until it does.
            this.steps_aside = TURNS_BETWEEN_EVENTS - 1;
        }
        polled
    }
}
