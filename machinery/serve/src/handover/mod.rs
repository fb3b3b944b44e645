//! The exchange by which a process takes over the listening sockets of another one, over a Unix socket of the same user.
//!
//! ```text
//! new process                          old process
//! takeover VERSION PID PROGRAM    →
//!                                 ←    offer VERSION PID SOCKETS PROGRAM
//!                                 ←    sockets … (with descriptors; as often as needed)
//! commit                          →                                       nothing can be rolled back from here on
//!                                      ends its control plane and node agents, closes store and data folder
//!                                 ←    released
//! starts in the data folder            goes on to serve Services by its pods
//! serving                         →
//!                                      ends accepting, completes requests, ends
//! ```
//!
//! Until `commit` the old process goes on serving, whatever the new one does. A refusal is `refused REASON`. The end of the
//! connection stands for the messages that can't come any more: the locks say whether the other process has gone.
//!
//! - [`message`]: the messages' text. Pure.
//! - `frame`: messages with their descriptors on a stream.
//! - [`give`], [`take`]: the two sides.

mod frame;
#[cfg(test)]
mod fuzz;
mod message;
#[cfg(test)]
mod tests;

use std::time::Duration;

use machinery_env::Env;
use tokio::net::UnixStream;

use self::frame::{receive, send};
use self::message::Message;
use crate::sockets::{InheritedSocket, SocketTable};

/// The version of this exchange. Another one is refused.
pub const VERSION: u32 = 2;
/// Time for the exchange up to the commit: the other process only reads and writes.
const EXCHANGE_MAX: Duration = Duration::from_secs(10);
/// Sockets of a process: more than its quota of listeners (`descriptors`) and its own.
const SOCKETS_MAX: usize = 70_000;

/// Why sockets were not taken over. The other process goes on serving, except for [`HandoverError::Lost`].
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other process refuses.
    #[error("the running process refuses: {0}")]
    Refused(String),
    /// The other process sent something else than it had to.
    #[error("the running process sent an invalid message: {0}")]
    Invalid(String),
    /// The exchange failed.
    #[error("the exchange with the running process failed: {0}")]
    Io(#[from] std::io::Error),
    /// The other process was too slow.
    #[error("the running process did not answer within {} s", .0.as_secs())]
    Slow(Duration),
    /// The other process has not released its data folder after the commit.
    #[error("the running process did not release its data folder within {} s after it had given its sockets away", .0.as_secs())]
    Lost(Duration),
}

/// A process, as it introduces itself to the other one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Its id.
    pub pid: u32,
    /// Its program's version.
    pub program: String,
}

/// Returns a reason to refuse a peer of another user. `peer` is `None` if the system doesn't tell.
#[must_use]
pub fn refuse_user(peer: Option<u32>, own: u32) -> Option<String> {
    match peer {
        Some(peer) if peer == own => None,
        Some(peer) => Some(format!("user {peer} is not the user {own} of the process")),
        None => Some("the system does not tell the user of the other process".into()),
    }
}

/// Whether the peer of a connection is of this process's user.
///
/// # Errors
/// [`HandoverError::Refused`] if it is not.
pub fn check_user(stream: &UnixStream) -> Result<(), HandoverError> {
    let peer = stream.peer_cred().ok().map(|peer| peer.uid());
    match refuse_user(peer, rustix::process::geteuid().as_raw()) {
        Some(why) => Err(HandoverError::Refused(why)),
        None => Ok(()),
    }
}

/// A committed handover at the process that gives.
#[derive(Debug)]
pub struct HandedOver {
    stream: UnixStream,
    /// The process that takes over.
    pub to: Introduction,
}

impl HandedOver {
    /// Reports that this process uses its data folder and its store no more.
    pub async fn released(&self, env: &Env) {
        // A process that has gone is noticed by `taken`.
        let _ = env.timeout(EXCHANGE_MAX, send(&self.stream, &Message::Released, &[])).await;
    }

    /// Waits until the other process serves in place of this one. False if it has gone, or isn't ready within `time_max`.
    pub async fn taken(&self, env: &Env, time_max: Duration) -> bool {
        matches!(env.timeout(time_max, receive(&self.stream, 0)).await, Ok(Ok((Message::Serving, _))))
    }
}

/// Refuses the request of a peer.
pub async fn refuse(env: &Env, stream: &UnixStream, why: &str) {
    let _ = env.timeout(EXCHANGE_MAX, send(stream, &Message::Refused(why.to_owned()), &[])).await;
}

/// Reads the request of a peer.
///
/// # Errors
/// If the peer is slow, or sends something else.
pub async fn read_request(env: &Env, stream: &UnixStream) -> Result<Introduction, HandoverError> {
    match env.timeout(EXCHANGE_MAX, receive(stream, 0)).await {
        Err(_) => Err(HandoverError::Slow(EXCHANGE_MAX)),
        Ok(received) => match received?.0 {
            Message::Takeover { version: VERSION, from } => Ok(from),
            Message::Takeover { version, .. } => Err(HandoverError::Refused(other_version(version))),
            other => Err(HandoverError::Invalid(other.to_string())),
        },
    }
}

fn other_version(version: u32) -> String {
    format!(
        "it speaks version {version} of the takeover, and this process version {VERSION}: stop one and start the other"
    )
}

/// Offers the sockets of `table` to the process `to`, and waits for its commit.
///
/// # Errors
/// If the peer doesn't commit in time. Nothing has changed then.
pub async fn give(
    env: &Env,
    stream: UnixStream,
    table: &SocketTable,
    own: Introduction,
    to: Introduction,
) -> Result<HandedOver, HandoverError> {
    let offered = async {
        let open = table.open();
        send(&stream, &Message::Offer { version: VERSION, sockets: open.len(), from: own }, &[]).await?;
        for some in open.chunks(frame::DESCRIPTORS_MAX) {
            let keys = some.iter().map(|(key, _)| key.clone()).collect();
            let descriptors: Vec<_> = some.iter().map(|(_, socket)| socket.as_fd()).collect();
            send(&stream, &Message::Sockets(keys), &descriptors).await?;
        }
        match receive(&stream, 0).await?.0 {
            Message::Commit => Ok(()),
            other => Err(HandoverError::Invalid(other.to_string())),
        }
    };
    env.timeout(EXCHANGE_MAX, offered).await.map_err(|_| HandoverError::Slow(EXCHANGE_MAX))??;
    Ok(HandedOver { stream, to })
}

/// Offered sockets, before the commit.
#[derive(Debug)]
pub struct Offer {
    stream: UnixStream,
    /// The process that gives.
    pub from: Introduction,
    /// Its sockets.
    pub sockets: Vec<InheritedSocket>,
}

/// Asks the process at the other end for its sockets.
///
/// # Errors
/// If it refuses, is slow, or sends something else. It goes on serving then.
pub async fn take(env: &Env, stream: UnixStream, own: Introduction) -> Result<Offer, HandoverError> {
    let exchange = async {
        send(&stream, &Message::Takeover { version: VERSION, from: own }, &[]).await?;
        let (count, from) = match receive(&stream, 0).await?.0 {
            Message::Offer { version: VERSION, sockets, from } => (sockets, from),
            Message::Offer { version, .. } => return Err(HandoverError::Refused(other_version(version))),
            Message::Refused(why) => return Err(HandoverError::Refused(why)),
            other => return Err(HandoverError::Invalid(other.to_string())),
        };
        if count > SOCKETS_MAX {
            return Err(HandoverError::Invalid(format!("{count} sockets")));
        }
        let mut sockets = Vec::new();
        while sockets.len() < count {
            let (message, descriptors) = receive(&stream, frame::DESCRIPTORS_MAX).await?;
            let Message::Sockets(keys) = message else { return Err(HandoverError::Invalid(message.to_string())) };
            if keys.is_empty() || keys.len() != descriptors.len() || sockets.len() + keys.len() > count {
                let (keys, all) = (keys.len(), descriptors.len());
                return Err(HandoverError::Invalid(format!("{keys} names of {all} sockets")));
            }
            for (key, descriptor) in keys.into_iter().zip(descriptors) {
                sockets.push(frame::inherited(key, descriptor)?);
            }
        }
        Ok((from, sockets))
    };
    let (from, sockets) =
        env.timeout(EXCHANGE_MAX, exchange).await.map_err(|_| HandoverError::Slow(EXCHANGE_MAX))??;
    Ok(Offer { stream, from, sockets })
}

/// A committed handover at the process that takes: the peer stops, step by step.
#[derive(Debug)]
pub struct EndingPeer(UnixStream);

impl Offer {
    /// Commits: the other process ends. Returns its sockets.
    ///
    /// # Errors
    /// If the other process has gone.
    pub async fn commit(self, env: &Env) -> Result<(EndingPeer, Vec<InheritedSocket>), HandoverError> {
        let committed = env.timeout(EXCHANGE_MAX, send(&self.stream, &Message::Commit, &[])).await;
        committed.map_err(|_| HandoverError::Slow(EXCHANGE_MAX))??;
        Ok((EndingPeer(self.stream), self.sockets))
    }
}

impl EndingPeer {
    /// Resolves when the other process has released its data folder, or has ended.
    ///
    /// # Errors
    /// [`HandoverError::Lost`] if it has not within `time_max`.
    pub async fn released(&self, env: &Env, time_max: Duration) -> Result<(), HandoverError> {
        // The locks say for sure whether it uses anything.
        env.timeout(time_max, receive(&self.0, 0)).await.map(drop).map_err(|_| HandoverError::Lost(time_max))
    }

    /// Reports that this process serves. The other one completes its requests and ends.
    pub async fn serving(&self, env: &Env) {
        // It may have ended already.
        let _ = env.timeout(EXCHANGE_MAX, send(&self.0, &Message::Serving, &[])).await;
    }

    /// Resolves when the other process has ended.
    pub async fn ended(&self) {
        // It sends nothing any more.
        while receive(&self.0, 0).await.is_ok() {}
    }
}
