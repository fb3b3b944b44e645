//! A value that is available at once or after waiting, so that chains of plugins, authenticators and authorizers pay
//! nothing for synchronous links.

use futures::future::BoxFuture;

/// An immediate or a pending result.
pub enum MaybeReady<'a, T> {
    /// The result.
    Ready(T),
    /// A future: for another object, or for a remote call.
    Pending(BoxFuture<'a, T>),
}

impl<T> MaybeReady<'_, T> {
    /// Awaits the result.
    pub async fn get(self) -> T {
        match self {
            Self::Ready(done) => done,
            Self::Pending(waiting) => waiting.await,
        }
    }
}

impl<T> From<T> for MaybeReady<'_, T> {
    fn from(done: T) -> Self {
        Self::Ready(done)
    }
}
