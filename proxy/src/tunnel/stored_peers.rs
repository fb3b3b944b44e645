//! The peers of the last run, in a file: a node that starts while the API server is away reaches other nodes by it.
//!
//! [`encode`] and [`decode`] are pure. The body has one line of JSON per peer. An outdated peer does no harm: its identity
//! is verified, and the first list of Nodes replaces all.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use machinery_client::checkpoint::{self, CheckpointError};
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::peers::PeerConfig;

/// The kind of the file, in its header.
const KIND: &str = "peers";
/// The maximum length of the file in bytes: 5,000 nodes of some 150 bytes, with reserve.
const BYTES_MAX: usize = 4 << 20;
/// The minimum interval of writes.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Reads the peers; none if there is no usable file, which is removed.
pub(super) async fn load(path: PathBuf) -> Vec<PeerConfig> {
    let read =
        move || match checkpoint::read(&path, KIND, BYTES_MAX).and_then(|body| body.map(|b| decode(&b)).transpose()) {
            Ok(peers) => peers.unwrap_or_default(),
            Err(error) => {
                checkpoint::discard(&path, &error);
                Vec::new()
            }
        };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Writes the newest peers until the sender ends. A failed write is retried with the next change.
pub(super) async fn write(env: &Env, path: &Path, mut newest: watch::Receiver<Vec<PeerConfig>>) {
    while newest.changed().await.is_ok() {
        let body = encode(&newest.borrow_and_update());
        let file = path.to_owned();
        let store = move || {
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder)?;
            }
            checkpoint::write(&file, KIND, &body)
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(store).await {
            tracing::warn!(file = %path.display(), %error, "the peers cannot be written: a start without an API server would use older ones");
        }
        env.sleep(INTERVAL_MIN).await;
    }
}

fn encode(peers: &[PeerConfig]) -> Vec<u8> {
    let line = |peer: &PeerConfig| {
        let cidrs: Vec<String> = peer.pod_cidrs.iter().map(ToString::to_string).collect();
        let address = peer.address.map(|address| address.to_string());
        format!("{}\n", json!([&*peer.name, peer.created_at, cidrs, address]))
    };
    let mut lines: Vec<String> = peers.iter().map(line).collect();
    lines.sort();
    lines.concat().into_bytes()
}

fn decode(body: &[u8]) -> Result<Vec<PeerConfig>, CheckpointError> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let peer = |line: &[u8]| {
        let record: Value = serde_json::from_slice(line).ok()?;
        let cidrs = record[2].as_array()?.iter().map(|cidr| cidr.as_str()?.parse::<IpNet>().ok());
        Some(PeerConfig {
            name: record[0].as_str()?.into(),
            created_at: record[1].as_i64()?,
            pod_cidrs: cidrs.collect::<Option<_>>()?,
            address: match &record[3] {
                Value::Null => None,
                address => Some(address.as_str()?.parse::<SocketAddr>().ok()?),
            },
            // Only the API's Nodes say which modules a node offers.
            compiled: None,
        })
    };
    lines.map(|line| peer(line).ok_or_else(|| CheckpointError::damaged("a line is no peer"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Vec<PeerConfig> {
        let peer = |name: &str, cidr: &str, address: Option<&str>| PeerConfig {
            name: name.into(),
            created_at: 7,
            pod_cidrs: vec![cidr.parse().unwrap()],
            address: address.map(|address| address.parse().unwrap()),
            compiled: None,
        };
        vec![peer("a", "10.244.1.0/24", Some("10.0.0.1:10265")), peer("b", "10.244.2.0/24", None)]
    }

    #[test]
    fn peers_are_read_as_written_and_other_lines_are_damage() {
        assert_eq!(decode(&encode(&peers())).unwrap(), peers());
        assert_eq!(decode(b"").unwrap(), []);
        for bad in ["x", "[]", "[\"a\"]", "[\"a\",1,[\"x\"],null]", "[\"a\",1,[],\"host\"]", "[1,1,[],null]"] {
            assert!(decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_bytes_panic() {
        bolero::check!().for_each(|bytes| drop(decode(bytes)));
    }

    #[tokio::test]
    async fn a_file_outlives_its_process_and_a_damaged_one_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node/peers");
        assert_eq!(load(path.clone()).await, []);
        let (sender, newest) = watch::channel(Vec::new());
        sender.send_replace(peers());
        drop(sender);
        let env = Env::real();
        tokio::select! {
            () = write(&env, &path, newest) => {}
            () = async {
                while !path.exists() {
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        assert_eq!(load(path.clone()).await, peers());
        std::fs::write(&path, "x").unwrap();
        assert_eq!(load(path.clone()).await, []);
        assert!(!path.exists());
    }
}
