//! The store that several nodes share: an external Redis, or a server of its protocol such as Valkey
//! (`docs/decisions/0114-shared-keyvalue.md`).
//!
//! Each operation is one script on the server, so it is atomic for all nodes; quota and removal are decided there, too.
//! A cluster's keys begin with the uid of its namespace `kube-system`, so that clusters may share a server.

mod config;
mod connection;
#[cfg(test)]
mod fuzz;
mod scripts;
#[cfg(test)]
pub(crate) mod server;
mod store;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use machinery_env::Env;
use runtime_api::KeyvalueOwner;
use runtime_api::keyvalue::StoreError;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::config::{SharedStoreConfig, SharedStoreFiles};
use self::connection::Link;
use self::scripts::{Call, OWNERS, REMOVE, ScriptReply};
pub(crate) use self::store::SharedStore;
use super::Quota;
use super::names::{file_name, owner};

/// The longest wait of a call for its turn. The answer has a timeout of its own (`connection.rs`), so a call ends within 13 s.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of requests and of the largest possible answers that may be on their way at once, of all containers together.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// The unit in which these bytes are counted. A call counts one unit at least: an increment is small.
const IN_FLIGHT_UNIT_BYTES: usize = 64 << 10;
/// Maximum calls of one container at once: an eighth of all units.
const CONTAINER_CALLS_MAX: usize = IN_FLIGHT_BYTES_MAX / IN_FLIGHT_UNIT_BYTES / 8;
/// Late writes of a removed namespace are refused for this time. Its pods end long before.
const REMOVED_FOR: Duration = Duration::from_secs(3600);
/// A node's turn to look for deleted namespaces: the other nodes of the cluster skip theirs meanwhile.
const COLLECTOR_TURN: Duration = Duration::from_secs(15);
/// Maximum bytes of a namespace in the index: two names of 63 bytes and a dot.
const MEMBER_BYTES_MAX: usize = 127;

/// The shared stores of all namespaces, over one connection.
pub(crate) struct SharedStores {
    env: Env,
    quota: Quota,
    link: Link,
    handle: Handle,
    in_flight: Arc<Semaphore>,
}

impl SharedStores {
    /// Connects at the first call. Calls run on `handle`.
    pub(crate) fn new(config: SharedStoreConfig, quota: Quota, env: &Env, handle: &Handle) -> Arc<Self> {
        Arc::new(Self {
            env: env.clone(),
            quota,
            link: Link::new(config, env, handle),
            handle: handle.clone(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX / IN_FLIGHT_UNIT_BYTES)),
        })
    }

    /// A namespace's store for one container.
    ///
    /// # Errors
    /// The owner has no cluster or no valid names.
    pub(crate) fn of(self: &Arc<Self>, owner: &KeyvalueOwner) -> std::io::Result<SharedStore> {
        let keys = Keys::of(owner).ok_or_else(|| std::io::Error::other(format!("{owner:?} names no namespace")))?;
        Ok(SharedStore::new(self.clone(), keys, Arc::new(Semaphore::new(CONTAINER_CALLS_MAX))))
    }

    /// A page of the namespaces of a cluster that have data, each page the next one; empty while it is another node's
    /// turn.
    ///
    /// # Errors
    /// The server fails.
    pub(crate) async fn owners(&self, cluster: &str) -> Result<Vec<KeyvalueOwner>, StoreError> {
        let prefix = prefix(cluster).ok_or(StoreError::NoCluster)?;
        let mut call = Call::new(&OWNERS, 2000 * MEMBER_BYTES_MAX);
        for name in ["namespaces", "collector", "cursor"] {
            call.key(&format!("{prefix}{name}"));
        }
        call.arg(COLLECTOR_TURN.as_millis().to_string()).arg(MEMBER_BYTES_MAX.to_string());
        let names = self.call(call, None).await?.names()?;
        let owners = names.iter().filter_map(|name| owner(&format!("{name}.redb")));
        Ok(owners.map(|owner| KeyvalueOwner { cluster: Some(cluster.to_owned()), ..owner }).collect())
    }

    /// Removes a namespace's data: the server frees the memory in the background. Idempotent.
    ///
    /// # Errors
    /// The server fails.
    pub(crate) async fn remove(&self, owner: &KeyvalueOwner) -> Result<(), StoreError> {
        let keys = Keys::of(owner).ok_or(StoreError::NoCluster)?;
        let mut call = Call::new(&REMOVE, 0);
        keys.all().for_each(|key| call.key(key));
        call.arg(keys.member).arg(REMOVED_FOR.as_millis().to_string());
        self.call(call, None).await.map(drop)
    }

    /// Runs a call at its turn. A caller that goes away ends its wait; the call keeps its place until the
    /// server has answered, as it holds memory until then.
    async fn call(&self, call: Call, container: Option<&Arc<Semaphore>>) -> Result<ScriptReply, StoreError> {
        let units = (call.bytes().div_ceil(IN_FLIGHT_UNIT_BYTES)).max(1);
        let units = u32::try_from(units.min(IN_FLIGHT_BYTES_MAX / IN_FLIGHT_UNIT_BYTES)).unwrap_or(u32::MAX);
        let turn = async {
            let own = match container {
                Some(container) => Some(container.clone().acquire_owned().await.ok()?),
                None => None,
            };
            Some((own, self.in_flight.clone().acquire_many_owned(units).await.ok()?))
        };
        let held: (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit) =
            self.env.timeout(TURN_TIMEOUT, turn).await.ok().flatten().ok_or(StoreError::SharedBusy)?;
        let link = self.link.clone();
        let running = self.handle.spawn(async move {
            let _held = held;
            link.run(call).await
        });
        running.await.unwrap_or(Err(StoreError::NotAnswering))
    }
}

/// The prefix of a cluster's keys. The braces keep all of them on one shard of a proxy or cluster that hashes keys.
fn prefix(cluster: &str) -> Option<String> {
    let plain = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'-';
    (!cluster.is_empty() && cluster.len() <= 63 && cluster.bytes().all(plain))
        .then(|| format!("coracle:{{{cluster}}}:"))
}

/// The keys of one namespace on the server.
struct Keys {
    /// A hash of values by bucket and key.
    values: String,
    /// Buckets and keys in order.
    names: String,
    /// Set for a while after the removal.
    tombstone: String,
    /// Used bytes, and the last revision.
    usage: String,
    /// The set of the cluster's namespaces with data.
    index: String,
    /// This namespace in the index.
    member: String,
}

impl Keys {
    fn of(owner: &KeyvalueOwner) -> Option<Self> {
        let prefix = prefix(owner.cluster.as_deref()?)?;
        let member = file_name(owner)?.strip_suffix(".redb")?.to_owned();
        let of = |kind: &str| format!("{prefix}{}:{kind}", owner.uid);
        Some(Self {
            values: of("values"),
            names: of("names"),
            tombstone: of("removed"),
            usage: of("usage"),
            index: format!("{prefix}namespaces"),
            member,
        })
    }

    /// The keys of a read.
    fn read(&self) -> impl Iterator<Item = &str> {
        [&self.values, &self.names, &self.tombstone].into_iter().map(String::as_str)
    }

    /// The keys of a write and of the removal.
    fn all(&self) -> impl Iterator<Item = &str> {
        self.read().chain([self.usage.as_str(), self.index.as_str()])
    }
}
