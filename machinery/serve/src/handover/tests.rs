//! Tests of the exchange: two processes, hostile peers, rollback.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::accept::Listener;
use crate::net::Protocol;
use crate::sockets::{Layer, SocketKey};

const LOOPBACK: &str = "127.0.0.1:0";

fn own(pid: u32) -> Introduction {
    Introduction { pid, program: "0.1.0 (a1b2c3)".into() }
}

fn key(protocol: Protocol, address: SocketAddr, name: &str) -> SocketKey {
    SocketKey { protocol, address, name: name.into() }
}

/// A table with that many listeners of Services.
fn table(count: usize) -> (Arc<SocketTable>, Vec<Listener>) {
    let table = Arc::new(SocketTable::default());
    let bind = |_| Listener::bind_in(&table, LOOPBACK.parse().unwrap()).unwrap();
    let listeners = (0..count).map(bind).collect();
    (table, listeners)
}

#[tokio::test]
async fn all_sockets_of_a_process_are_given_in_order() {
    let (env, (old, listeners)) = (Env::real(), table(600));
    let udp = Arc::new(old.bind_udp("", LOOPBACK.parse().unwrap()).unwrap());
    old.register(key(Protocol::Udp, udp.local_addr().unwrap(), ""), &udp);
    let (near, far) = UnixStream::pair().unwrap();
    let giving = async {
        let to = read_request(&env, &far).await.unwrap();
        assert_eq!(to, own(2));
        give(&env, far, &old, own(1), to).await.unwrap()
    };
    let taking = async {
        let offer = take(&env, near, own(2)).await.unwrap();
        assert_eq!((offer.from.clone(), offer.sockets.len()), (own(1), 601));
        offer.commit(&env).await.unwrap()
    };
    let (given, (taken, sockets)) = tokio::join!(giving, taking);
    // The old process goes; no connect is refused at any time.
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    old.retire(Layer::Pods);
    drop((listeners, udp));
    let client = tokio::net::TcpStream::connect(addresses[599]).await.unwrap();
    let new = Arc::new(SocketTable::default());
    new.inherit(sockets);
    let listener = new.bind_tcp("", addresses[599]).unwrap();
    assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
    assert_eq!(new.close_unclaimed().len(), 600);
    drop(given);
    taken.ended().await;
}

#[tokio::test]
async fn the_folder_is_released_before_the_peer_serves_and_ends() {
    const SOON: Duration = Duration::from_millis(20);
    let (env, (old, _listeners)) = (Env::real(), table(1));
    let exchange = async || {
        let (near, far) = UnixStream::pair().unwrap();
        let giving = async {
            let to = read_request(&env, &far).await.unwrap();
            give(&env, far, &old, own(1), to).await.unwrap()
        };
        let taking = async { take(&env, near, own(2)).await.unwrap().commit(&env).await.unwrap().0 };
        tokio::join!(giving, taking)
    };
    let (given, taken) = exchange().await;
    assert!(matches!(taken.released(&env, SOON).await, Err(HandoverError::Lost(_))));
    given.released(&env).await;
    taken.released(&env, Duration::from_secs(10)).await.unwrap();
    assert!(!given.taken(&env, SOON).await, "it isn't ready");
    taken.serving(&env).await;
    assert!(given.taken(&env, Duration::from_secs(10)).await);
    // A process that has gone releases everything, and one that goes never serves.
    let (given, taken) = exchange().await;
    drop(given);
    taken.released(&env, Duration::from_secs(10)).await.unwrap();
    let (given, taken) = exchange().await;
    drop(taken);
    assert!(!given.taken(&env, Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_process_without_a_commit_goes_on() {
    let (env, (old, listeners)) = (Env::real(), table(1));
    let (near, far) = UnixStream::pair().unwrap();
    let giving = async {
        let to = read_request(&env, &far).await.unwrap();
        give(&env, far, &old, own(1), to).await.map(drop)
    };
    let taking = async { drop(take(&env, near, own(2)).await.unwrap()) };
    let (given, ()) = tokio::join!(giving, taking);
    assert!(matches!(given, Err(HandoverError::Io(_))), "{given:?}");
    assert_eq!(old.open().len(), 1);
    tokio::net::TcpStream::connect(listeners[0].local_addr().unwrap()).await.unwrap();
}

/// Sends bytes to a function that reads from the peer.
async fn against<T>(bytes: &[u8], reads: impl AsyncFnOnce(UnixStream) -> T) -> T {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(bytes).await.unwrap();
    far.shutdown().await.unwrap();
    let read = reads(near).await;
    let mut rest = Vec::new();
    let _ = far.read_to_end(&mut rest).await;
    read
}

fn framed(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap();
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

#[tokio::test]
async fn hostile_requests_are_refused() {
    let env = Env::real();
    for (bytes, wanted) in [
        (vec![0xff; 8], "a message of 4294967295 bytes"),
        (framed("GET / HTTP/1.1"), "GET / HTTP/1.1"),
        (framed("commit"), "invalid message: commit"),
        (framed("takeover 1 7 x"), "version 1 of the takeover, and this process version 2"),
        (framed("takeover 2 7 \u{1b}[2J"), "invalid"),
        (framed("takeover 2 7 x")[..9].to_vec(), "failed"),
        (Vec::new(), "failed"),
    ] {
        let refused = against(&bytes, async |near| read_request(&env, &near).await).await.unwrap_err().to_string();
        assert!(refused.contains(wanted), "{refused}");
    }
}

#[tokio::test]
async fn hostile_offers_are_refused() {
    let env = Env::real();
    for (messages, wanted) in [
        (vec!["refused busy"], "refuses: busy"),
        (vec!["offer 2 7 99999999 x"], "99999999 sockets"),
        (vec!["offer 9 7 1 x"], "version 9"),
        (vec!["offer 2 7 1 x", "sockets"], "0 names of 0 sockets"),
        (vec!["offer 2 7 1 x", "sockets\ntcp 127.0.0.1:1 "], "1 names of 0 sockets"),
        (vec!["offer 2 7 1 x", "commit"], "invalid message: commit"),
        (vec!["offer 2 7 1 x"], "failed"),
    ] {
        let bytes: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        let refused = against(&bytes, async |near| take(&env, near, own(2)).await).await.unwrap_err().to_string();
        assert!(refused.contains(wanted), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn silent_peers_are_left_in_time() {
    let env = Env::real();
    let (near, _far) = UnixStream::pair().unwrap();
    let begun = env.instant();
    assert!(matches!(read_request(&env, &near).await, Err(HandoverError::Slow(_))));
    assert_eq!(env.instant() - begun, EXCHANGE_MAX);
    assert!(matches!(take(&env, near, own(2)).await, Err(HandoverError::Slow(_))));
    let (near, _far) = UnixStream::pair().unwrap();
    let (table, _listeners) = table(0);
    assert!(matches!(give(&env, near, &table, own(1), own(2)).await, Err(HandoverError::Slow(_))));
}

#[test]
fn descriptors_of_something_else_are_refused() {
    let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    let given = |key: SocketKey| frame::inherited(key, listener.try_clone().unwrap().into());
    assert!(given(key(Protocol::Tcp, address, "")).is_ok());
    let other = SocketAddr::from(([127, 0, 0, 1], 1));
    for key in [key(Protocol::Udp, address, ""), key(Protocol::Tcp, other, "")] {
        assert!(matches!(given(key), Err(HandoverError::Invalid(_))));
    }
    assert!(matches!(frame::inherited(key(Protocol::Tcp, address, ""), pipe()), Err(HandoverError::Invalid(_))));
}

fn pipe() -> std::os::fd::OwnedFd {
    std::io::pipe().unwrap().0.into()
}

#[test]
fn only_the_same_user_takes_sockets() {
    assert_eq!(refuse_user(Some(1000), 1000), None);
    assert_eq!(refuse_user(Some(0), 1000).unwrap(), "user 0 is not the user 1000 of the process");
    assert!(refuse_user(None, 0).is_some());
}
