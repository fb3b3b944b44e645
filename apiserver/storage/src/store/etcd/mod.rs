//! The store over an etcd cluster (v3.6), for several API servers on several machines.
//!
//! The values are ours and not upstream's protobuf; docs/operations.md ("etcd") has the format. Reads of the API server come from its
//! watch cache, which [`feed`](Store::feed) keeps; this store acknowledges before it feeds.

pub mod backup;
mod client;
mod compact;
mod feed;
mod format;
mod keys;
mod leases;
mod messages;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use machinery_env::Env;
use tokio::sync::{mpsc, oneshot, watch};

use self::client::{Client, Repeat};
use self::compact::Compactor;
use self::feed::Follower;
use self::keys::Mapping;
use self::leases::Leases;
use self::messages::{
    CompactionRequest, CompactionResponse, CompareRequest, LeaseGrantRequest, LeaseGrantResponse, RangeRequest,
    RangeResponse, Request, RequestOp, Response, TxnRequest, TxnResponse,
};
use super::plan::check;
use super::{
    Change, Compare, Current, Entry, History, Op, Outcome, Range, Revision, Sink, Store, StoreError, Txn, Watch,
};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";

/// The maximum time for a read of the newest revision. A reader may wait for one before its own.
const NEWEST_MAX: Duration = Duration::from_secs(5);
/// The number of readers that share a read of the newest revision.
const TURN_MAX: usize = 256;

/// How to reach an etcd cluster.
#[derive(Clone, Default)]
pub struct EtcdConfig {
    /// `http://` or `https://` with a host and a port, for each member.
    pub endpoints: Vec<String>,
    /// The prefix of all keys, such as `/registry`.
    pub prefix: String,
    /// PEM of the authorities of the members' certificates; required for `https`.
    pub ca: Option<Vec<u8>>,
    /// PEM of the client's certificate and of its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Name and password of a user, where etcd's authentication is enabled.
    pub user: Option<(String, String)>,
}

impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without secrets.
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A store over etcd.
pub struct EtcdStore {
    cluster: Arc<EtcdCluster>,
    /// The newest revision that a reader waits for.
    wanted: watch::Sender<Revision>,
    /// Readers that wait for the newest revision.
    readers: mpsc::Sender<Reader>,
    /// The revision up to which history was compacted, for the feed.
    compacted: watch::Sender<Revision>,
    leases: Mutex<Leases>,
    compactor: Mutex<Compactor>,
}

/// The part that tasks share.
struct EtcdCluster {
    client: Client,
    mapping: Mapping,
    env: Env,
    /// The newest revision in a response.
    newest: AtomicU64,
}

impl EtcdCluster {
    fn new(client: Client, mapping: Mapping, env: Env) -> Self {
        Self { client, mapping, env, newest: AtomicU64::new(0) }
    }

    fn saw(&self, at: Revision) -> Revision {
        self.newest.fetch_max(at, Ordering::AcqRel);
        at
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        let response: RangeResponse = self.client.call(RANGE, request, Repeat::Safe).await?;
        self.saw(self.mapping.header_revision(response.header));
        Ok(response)
    }

    /// The newest revision, read through the leader.
    async fn newest(&self) -> Result<Revision, StoreError> {
        // No object has this key: nothing is read but the revision.
        let (key, _) = self.mapping.all();
        let response = self.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(self.mapping.header_revision(response.header))
    }
}

/// A reader that waits for the newest revision.
type Reader = oneshot::Sender<Result<Revision, StoreError>>;

/// Reads the newest revision for all readers that wait, until the store is dropped. Readers that come during a read wait for
/// the next one: they may have seen a write that this one has not.
async fn answer_readers(cluster: Arc<EtcdCluster>, mut waiting: mpsc::Receiver<Reader>) {
    let mut turn = Vec::new();
    while waiting.recv_many(&mut turn, TURN_MAX).await > 0 {
        let newest = cluster.env.timeout(NEWEST_MAX, cluster.newest()).await;
        let newest = newest
            .unwrap_or_else(|_| Err(StoreError::Unavailable(format!("etcd does not answer within {NEWEST_MAX:?}"))));
        for reader in turn.drain(..) {
            // One that no longer waits.
            let _ = reader.send(newest.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EtcdStore {
    /// Connects to etcd, claims the prefix for this store, and reads its revision.
    ///
    /// # Errors
    /// If the configuration is invalid, no member of a cluster with a leader answers within ten seconds, or the store was
    /// written by a newer program.
    pub async fn open(config: &EtcdConfig, env: Env) -> Result<Self, StoreError> {
        let client = Client::new(config, env.clone())?;
        let mapping = format::claim(&client, &config.prefix).await?;
        let cluster = EtcdCluster::new(client, mapping, env);
        cluster.newest().await?;
        let (cluster, (readers, waiting)) = (Arc::new(cluster), mpsc::channel(TURN_MAX));
        tokio::spawn(answer_readers(cluster.clone(), waiting));
        Ok(Self {
            cluster,
            readers,
            wanted: watch::Sender::new(0),
            compacted: watch::Sender::new(0),
            leases: Mutex::default(),
            compactor: Mutex::default(),
        })
    }

    /// Adds the revision to an error of etcd.
    fn located(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Compacted(_) => StoreError::Compacted(self.compacted()),
            StoreError::Future(_) => StoreError::Future(self.revision()),
            error => error,
        }
    }

    /// The lease for one more key.
    async fn lease(&self, ttl: Duration) -> Result<i64, StoreError> {
        let now = self.cluster.env.elapsed();
        if let Some(id) = lock(&self.leases).take(ttl, now) {
            return Ok(id);
        }
        let request = LeaseGrantRequest { ttl: leases::seconds(ttl) };
        // Granted twice, one of them expires unused.
        let granted: LeaseGrantResponse = self.cluster.client.call(GRANT, request, Repeat::Safe).await?;
        lock(&self.leases).granted(ttl, granted.id, now);
        Ok(granted.id)
    }

    async fn request(&self, txn: &Txn) -> Result<TxnRequest, StoreError> {
        let mapping = &self.cluster.mapping;
        let compare = txn.compares.iter().map(|compare| {
            let Compare { key, modified } = compare;
            Ok(CompareRequest::modified(mapping.key(key)?, mapping.compared(*modified)))
        });
        let mut success = Vec::with_capacity(txn.ops.len());
        for op in last_ops(&txn.ops) {
            let key = mapping.key(op.key())?;
            success.push(match op {
                Op::Put { record, ttl, .. } => {
                    let lease = match ttl {
                        Some(ttl) => self.lease(*ttl).await?,
                        None => 0,
                    };
                    RequestOp::put(key, keys::value(record), lease)
                }
                Op::Delete { .. } => RequestOp::delete(key),
            });
        }
        let read = |compare: &Compare| Ok(RequestOp::read(mapping.key(&compare.key)?));
        Ok(TxnRequest {
            compare: compare.collect::<Result<_, StoreError>>()?,
            success,
            failure: txn.compares.iter().map(read).collect::<Result<_, StoreError>>()?,
        })
    }

    fn outcome(&self, response: TxnResponse) -> Result<Outcome, StoreError> {
        let at = self.cluster.saw(self.cluster.mapping.header_revision(response.header));
        if response.succeeded {
            return Ok(Outcome::Committed(at));
        }
        let entries = response.responses.into_iter().map(|answer| match answer.response {
            Some(Response::Range(range)) => range.kvs.first().map(|kv| self.cluster.mapping.entry(kv)).transpose(),
            _ => Err(StoreError::Unavailable("etcd answers a read with another kind".into())),
        });
        Ok(Outcome::Conflict(entries.collect::<Result<_, StoreError>>()?))
    }

    /// Compacts to a revision of etcd.
    async fn compact_etcd(&self, revision: i64) -> Result<(), StoreError> {
        let request = CompactionRequest { revision };
        let compacted: Result<CompactionResponse, StoreError> =
            self.cluster.client.call(COMPACT, request, Repeat::Unsent).await;
        compacted.map(|_| ()).map_err(|error| self.located(error))
    }

    /// Notes a revision that a reader waits for.
    fn want(&self, at: Revision) {
        self.wanted.send_if_modified(|wanted| {
            let is_newer = at > *wanted;
            *wanted = at.max(*wanted);
            is_newer
        });
    }
}

/// The last write of each key, in order: etcd refuses several.
fn last_ops(ops: &[Op]) -> Vec<&Op> {
    let last: HashMap<&str, usize> = ops.iter().enumerate().map(|(index, op)| (op.key(), index)).collect();
    ops.iter().enumerate().filter(|(index, op)| last.get(op.key()) == Some(index)).map(|(_, op)| op).collect()
}

#[async_trait]
impl Store for EtcdStore {
    fn revision(&self) -> Revision {
        self.cluster.newest.load(Ordering::Acquire)
    }

    fn current(&self) -> Current<'_> {
        Current::WaitFor(Box::pin(async {
            let (reader, newest) = oneshot::channel();
            let gone = || StoreError::Unavailable("the store is closed".into());
            self.readers.send(reader).await.map_err(|_| gone())?;
            let newest = newest.await.map_err(|_| gone())??;
            self.want(newest);
            Ok(newest)
        }))
    }

    fn compacted(&self) -> Revision {
        *self.compacted.borrow()
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, StoreError> {
        let mapping = &self.cluster.mapping;
        let (key, revision) = (mapping.key(key)?, mapping.read_at(at)?);
        let request = RangeRequest { key, revision, ..RangeRequest::default() };
        let found = self.cluster.range(request).await.map_err(|error| self.located(error))?;
        found.kvs.first().map(|kv| mapping.entry(kv)).transpose()
    }

    async fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError> {
        let mapping = &self.cluster.mapping;
        let (key, range_end) = (mapping.bound(from), mapping.bound(to));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let request = RangeRequest { key, range_end, limit, revision: mapping.read_at(at)? };
        let found = self.cluster.range(request).await.map_err(|error| self.located(error))?;
        let entries = found.kvs.iter().map(|kv| mapping.entry(kv)).collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Range {
            revision: at.unwrap_or_else(|| mapping.header_revision(found.header)),
            // etcd counts the whole range.
            remaining: u64::try_from(found.count).unwrap_or(0).saturating_sub(entries.len() as u64),
            entries,
        })
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        check(&txn)?;
        let request = self.request(&txn).await?;
        let answer: Result<TxnResponse, StoreError> =
            self.cluster.client.call(TXN, request.clone(), Repeat::Unsent).await;
        let outcome = match answer {
            // A lease may end before its time, if etcd's leader changed its clock: nothing was written.
            Err(StoreError::Unavailable(why)) if why.contains("requested lease not found") => {
                let put = |op: &RequestOp| match &op.request {
                    Some(Request::Put(put)) => Some(put.lease),
                    _ => None,
                };
                request.success.iter().filter_map(put).for_each(|lease| lock(&self.leases).forget(lease));
                let request = self.request(&txn).await?;
                self.outcome(self.cluster.client.call(TXN, request, Repeat::Unsent).await?)
            }
            answer => self.outcome(answer?),
        }?;
        if let Outcome::Committed(at) = outcome
            && !txn.ops.iter().any(|op| matches!(op, Op::Put { .. }))
        {
            // It may have changed nothing, which no event shows.
            self.want(at);
        }
        Ok(outcome)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        // A watch from a compacted revision would begin after it without an error.
        if from > 0 && from <= self.cluster.newest().await? {
            self.range("", "", Some(from), 1).await?;
        }
        let (sender, changes) = mpsc::channel(64);
        let sent = watch::Sender::new(0);
        let moved = sent.subscribe();
        let cluster = self.cluster.clone();
        tokio::spawn(async move { feed::send_changes(&cluster, from, &sender, &sent).await });
        Ok(Watch::new(Arc::new(ReceivedChanges(Mutex::new(changes))), moved, prefix, from))
    }

    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError> {
        let (entries, position) = feed::read_all(&self.cluster).await?;
        sink.start(entries, position);
        let (cluster, wanted, compacted) = (self.cluster.clone(), self.wanted.subscribe(), self.compacted.subscribe());
        tokio::spawn(Follower { cluster, sink, position, wanted, compacted }.run());
        Ok(())
    }

    async fn compact(&self, to: Revision) -> Result<(), StoreError> {
        self.compact_etcd(self.cluster.mapping.read_at(Some(to))?).await?;
        self.compacted.send_replace(to);
        Ok(())
    }

    async fn tick(&self) -> Result<(), StoreError> {
        let due = lock(&self.compactor).due(self.cluster.env.elapsed());
        let Some(turn) = due else { return Ok(()) };
        let response: TxnResponse = self.cluster.client.call(TXN, turn.request(), Repeat::Unsent).await?;
        self.cluster.saw(self.cluster.mapping.header_revision(response.header));
        let to = lock(&self.compactor).took_turn(&turn, response);
        if to.is_ours {
            match self.compact_etcd(to.revision).await {
                // By another client of etcd.
                Ok(()) | Err(StoreError::Compacted(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let compacted = self.cluster.mapping.revision(to.revision);
        if compacted > self.compacted() {
            self.compacted.send_replace(compacted);
        }
        Ok(())
    }
}

/// The changes of a watch that were received.
struct ReceivedChanges(Mutex<mpsc::Receiver<Result<Change, StoreError>>>);

impl History for ReceivedChanges {
    fn since(&self, prefix: &str, after: Revision, most: usize) -> Result<(Vec<Change>, Revision), StoreError> {
        let mut receiver = lock(&self.0);
        let (mut changes, mut covered) = (Vec::new(), after);
        while changes.len() < most
            && let Ok(change) = receiver.try_recv()
        {
            let change = change?;
            covered = change.revision;
            if change.key.starts_with(prefix) {
                changes.push(change);
            }
        }
        Ok((changes, covered))
    }
}
