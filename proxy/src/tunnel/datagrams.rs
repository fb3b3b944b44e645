//! Datagrams on a stream: each with its length in two bytes before it (big endian). The codec is pure.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use machinery_serve::net::DatagramPipe;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::io::TunnelIo;

/// Size of the length.
const LENGTH_BYTES: usize = 2;
/// Size of one read.
const READ_BYTES: usize = 16 << 10;

/// Appends a datagram to `into`; false if it is longer than any datagram.
pub(super) fn encode(datagram: &[u8], into: &mut BytesMut) -> bool {
    let Ok(length) = u16::try_from(datagram.len()) else { return false };
    into.reserve(LENGTH_BYTES + datagram.len());
    into.put_u16(length);
    into.extend_from_slice(datagram);
    true
}

/// Takes the first datagram from `from`; `None` while it isn't complete.
pub(super) fn decode(from: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes([*from.first()?, *from.get(1)?]));
    if from.len() < LENGTH_BYTES + length {
        return None;
    }
    from.advance(LENGTH_BYTES);
    Some(from.split_to(length).freeze())
}

/// Carries datagrams between a pipe and a stream until either ends. The pipe drops what its reader has no space for; the
/// stream slows its writer down, whose pipe then drops.
pub(super) async fn carry(mut pipe: DatagramPipe, io: TunnelIo) {
    let (mut reads, mut writes) = tokio::io::split(io);
    let incoming = async {
        let mut buffer = BytesMut::new();
        loop {
            while let Some(datagram) = decode(&mut buffer) {
                if let Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) = pipe.send.try_send(datagram) {
                    return;
                }
            }
            buffer.reserve(READ_BYTES);
            match reads.read_buf(&mut buffer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    };
    let outgoing = async {
        let mut buffer = BytesMut::new();
        while let Some(datagram) = pipe.receive.recv().await {
            buffer.clear();
            if encode(&datagram, &mut buffer) && writes.write_all(&buffer).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = incoming => {}
        () = outgoing => {}
        () = pipe.send.closed() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bolero::check;

    #[test]
    fn datagrams_survive_any_split() {
        check!().with_type::<(Vec<Vec<u8>>, u8)>().for_each(|(datagrams, piece)| {
            let mut wire = BytesMut::new();
            assert!(datagrams.iter().all(|datagram| encode(datagram, &mut wire)));
            let (mut buffer, mut received) = (BytesMut::new(), Vec::new());
            for bytes in wire.chunks(usize::from(*piece).max(1)) {
                buffer.extend_from_slice(bytes);
                while let Some(datagram) = decode(&mut buffer) {
                    received.push(datagram.to_vec());
                }
            }
            assert_eq!((&received, buffer.len()), (datagrams, 0));
        });
    }

    #[test]
    fn any_bytes_are_datagrams_or_wait() {
        check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut total = 0;
            while let Some(datagram) = decode(&mut buffer) {
                total += LENGTH_BYTES + datagram.len();
            }
            assert_eq!(total + buffer.len(), bytes.len());
            assert!(buffer.len() < LENGTH_BYTES + usize::from(u16::MAX));
        });
    }

    #[test]
    fn a_datagram_has_a_maximum() {
        let mut wire = BytesMut::new();
        assert!(encode(&[7; u16::MAX as usize], &mut wire));
        assert!(!encode(&[7; 1 << 16], &mut wire));
        assert_eq!(decode(&mut wire).unwrap().len(), usize::from(u16::MAX));
        assert!(wire.is_empty());
    }
}
