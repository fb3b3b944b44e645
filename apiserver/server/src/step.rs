//! What comes at once, or after waiting: chains of plugins, authenticators and authorizers pay nothing for links that don't wait.

use futures::future::BoxFuture;

/// See the module.
pub enum Step<'a, T> {
    /// It is decided.
    Done(T),
    /// It has to wait: for another object, or for somebody else's answer.
    Wait(BoxFuture<'a, T>),
}

impl<T> Step<'_, T> {
    /// What it comes to.
    pub async fn get(self) -> T {
        match self {
            Self::Done(done) => done,
            Self::Wait(waiting) => waiting.await,
        }
    }
}

impl<T> From<T> for Step<'_, T> {
    fn from(done: T) -> Self {
        Self::Done(done)
    }
}
