//! Messages on a stream: a length in four bytes, the text, and the descriptors that come with its first byte (`SCM_RIGHTS`,
//! unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Socket, Type};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::HandoverError;
use super::message::{MESSAGE_BYTES_MAX, Message};
use crate::net::Protocol;
use crate::sockets::{InheritedSocket, SocketKey};

/// Maximum descriptors of a message (Linux' `SCM_MAX_FD` is 253).
pub(super) const DESCRIPTORS_MAX: usize = 250;
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// A connection that broke is an error and no signal. Apple's systems lack the flag; Rust's programs ignore the signal there, too.
#[cfg(not(target_vendor = "apple"))]
const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND_FLAGS: SendFlags = SendFlags::empty();

/// Sends a message with descriptors.
///
/// # Errors
/// If the connection breaks.
pub(super) async fn send(stream: &UnixStream, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = message.to_string();
    let length = u32::try_from(text.len()).ok().filter(|_| text.len() <= MESSAGE_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    let bytes = [&length.to_be_bytes(), text.as_bytes()].concat();
    let mut sent = 0;
    while sent < bytes.len() {
        sent += stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if sent == 0 && !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
                {
                    return Err(io::Error::other("too many descriptors for one message"));
                }
                let rest = [IoSlice::new(&bytes[sent..])];
                Ok(sendmsg(stream.as_fd(), &rest, &mut ancillary, SEND_FLAGS)?)
            })
            .await?;
    }
    Ok(())
}

/// Receives a message with at most `descriptors_max` descriptors.
///
/// # Errors
/// If the connection breaks or ends, or the peer sends something else.
pub(super) async fn receive(
    stream: &UnixStream,
    descriptors_max: usize,
) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
    let mut descriptors = Vec::new();
    let mut length = [0; 4];
    fill(stream, &mut length, &mut descriptors).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(HandoverError::Invalid(format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    fill(stream, &mut bytes, &mut descriptors).await?;
    if descriptors.len() > descriptors_max {
        return Err(HandoverError::Invalid(format!("{} descriptors in a message", descriptors.len())));
    }
    Ok((Message::parse(&bytes)?, descriptors))
}

/// Reads exactly the buffer's length. Descriptors that come with it are added, those above the limit closed.
async fn fill(stream: &UnixStream, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        let read =
            stream.async_io(Interest::READABLE, || receive_some(stream, &mut into[filled..], descriptors)).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
    }
    Ok(())
}

fn receive_some(stream: &UnixStream, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(into)], &mut ancillary, CLOSE_ON_EXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            // One more than allowed is enough to refuse them.
            descriptors.extend(received.take((DESCRIPTORS_MAX + 1).saturating_sub(descriptors.len())));
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("descriptors are missing: the limit of open files may be reached (ulimit -n)"));
    }
    Ok(received.bytes)
}

/// The compiler's processes inherit no sockets.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOSE_ON_EXEC: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOSE_ON_EXEC: RecvFlags = RecvFlags::empty();

/// The socket of a key.
///
/// # Errors
/// If the descriptor is something else.
pub(super) fn inherited(key: SocketKey, descriptor: OwnedFd) -> Result<InheritedSocket, HandoverError> {
    let socket = Socket::from(descriptor);
    let other = |what: String| HandoverError::Invalid(format!("{what} instead of {:?} {}", key.protocol, key.address));
    let of = socket.r#type().map_err(|error| other(format!("a descriptor ({error})")))?;
    let wanted = match key.protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let address = socket.local_addr().ok().and_then(|address| address.as_socket());
    if of != wanted || address != Some(key.address) {
        return Err(other(format!("a socket of {address:?}")));
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    socket.set_cloexec(true)?;
    socket.set_nonblocking(true)?;
    Ok(InheritedSocket { key, socket })
}
