//! Tests of the table and of accept loops that follow it.

use std::time::Duration;

use machinery_env::Env;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::accept::{self, Limit, Listener, Seats};

fn key(protocol: Protocol, address: &str, name: &str) -> SocketKey {
    SocketKey { protocol, address: address.parse().unwrap(), name: name.into() }
}

#[test]
fn a_socket_is_found_by_address_or_by_name() {
    let keys = [
        key(Protocol::Udp, "127.0.0.1:53", ""),
        key(Protocol::Tcp, "127.0.0.1:53", ""),
        key(Protocol::Tcp, "127.0.0.1:4711", "kubelet/a"),
    ];
    let find = |protocol, name: &str, address: &str| position(keys.iter(), protocol, name, address.parse().unwrap());
    assert_eq!(find(Protocol::Tcp, "", "127.0.0.1:53"), Some(1));
    assert_eq!(find(Protocol::Tcp, "other", "127.0.0.1:4711"), Some(2));
    assert_eq!(find(Protocol::Tcp, "kubelet/a", "127.0.0.1:0"), Some(2));
    assert_eq!(find(Protocol::Tcp, "kubelet/a", "0.0.0.0:0"), None);
    assert_eq!(find(Protocol::Tcp, "kubelet/b", "127.0.0.1:0"), None);
    assert_eq!(find(Protocol::Tcp, "", "127.0.0.1:0"), None, "any free port is wanted");
}

#[tokio::test]
async fn closed_sockets_leave_the_table() {
    let table = Arc::new(SocketTable::default());
    for _ in 0..SWEEP_AT * 4 {
        drop(Listener::bind_in(&table, "127.0.0.1:0".parse().unwrap()).unwrap());
    }
    assert!(table.open().is_empty());
    assert!(lock(&table.open).by_key.len() <= SWEEP_AT, "bounded");
}

/// A listener whose connections echo one line after another and end once their token is cancelled.
fn echoing(table: &Arc<SocketTable>, stop: &CancellationToken) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = Listener::bind_in(table, "127.0.0.1:0".parse().unwrap()).unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), stop.clone());
    let limit = Limit::new(&Seats::new(8), "test");
    let running = tokio::spawn(async move {
        accept::serve(listener, limit, None, &Env::real(), &stop, |mut stream, _, _, ending| async move {
            while let Ok(byte) = stream.read_u8().await {
                let _ = stream.write_u8(byte).await;
                if ending.is_cancelled() {
                    return;
                }
            }
        })
        .await;
    });
    (address, running)
}

#[tokio::test]
async fn a_retired_table_completes_accepted_connections_only() {
    let (table, stop) = (Arc::new(SocketTable::default()), CancellationToken::new());
    let (address, running) = echoing(&table, &stop);
    let held = table.open();
    let mut accepted = TcpStream::connect(address).await.unwrap();
    accepted.write_u8(1).await.unwrap();
    assert_eq!(accepted.read_u8().await.unwrap(), 1);
    table.retire(Layer::Pods);
    let mut drained = Box::pin(table.drained(Layer::Pods));
    assert!(Env::real().timeout(Duration::from_millis(50), drained.as_mut()).await.is_err(), "one is open");
    let mut waiting = TcpStream::connect(address).await.expect("the socket stays open");
    waiting.write_u8(7).await.unwrap();
    accepted.write_u8(2).await.unwrap();
    assert_eq!(accepted.read_u8().await.unwrap(), 2);
    assert!(accepted.read_u8().await.is_err(), "it ended");
    drained.await;
    running.await.unwrap();
    let mut unread = [0; 1];
    assert!(Env::real().timeout(Duration::from_millis(50), waiting.read(&mut unread)).await.is_err(), "it waits");
    drop(held);
}

#[tokio::test]
async fn listeners_of_services_wait_for_their_pods() {
    let (table, stop) = (Arc::new(SocketTable::default()), CancellationToken::new());
    table.inherit(Vec::new());
    let (address, running) = echoing(&table, &stop);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_u8(1).await.unwrap();
    assert!(Env::real().timeout(Duration::from_millis(50), client.read_u8()).await.is_err(), "it waits");
    table.admit();
    assert_eq!(client.read_u8().await.unwrap(), 1);
    drop(client);
    stop.cancel();
    running.await.unwrap();
}
