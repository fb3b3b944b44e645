//! The store over an etcd cluster (v3.6), for several API servers on several machines.
//!
//! The values are ours and not upstream's protobuf; docs/shared-stores.md ("etcd") has the format. Reads of the API server come from its
//! watch cache, which [`feed`](Store::feed) keeps; this store acknowledges before it feeds.

pub mod backup;
mod client;
mod compact;
mod era;
mod feed;
mod format;
mod keys;
mod leases;
mod messages;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use machinery_env::Env;
use tokio::sync::{mpsc, oneshot, watch};

use self::client::{Client, Repeat};
use self::compact::Compactor;
use self::era::Era;
use self::feed::Follower;
use self::format::StoreRecord;
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
    /// The compactor, and the number of the era whose revisions it knows.
    compactor: Mutex<(u64, Compactor)>,
}

/// The part that tasks share.
struct EtcdCluster {
    client: Client,
    prefix: String,
    env: Env,
    era: RwLock<Arc<Era>>,
    /// The number of eras that have ended.
    ended: watch::Sender<u64>,
}

impl EtcdCluster {
    fn new(client: Client, prefix: &str, mapping: Mapping, env: Env) -> Self {
        let era = RwLock::new(Arc::new(Era::new(0, mapping)));
        Self { client, prefix: prefix.into(), env, era, ended: watch::Sender::new(0) }
    }

    /// The present era.
    fn era(&self) -> Arc<Era> {
        self.era.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends an era. The feed begins the next one; until then nothing is read and nothing is written.
    fn end(&self, era: &Era, why: &str) -> StoreError {
        let is_first = self.ended.send_if_modified(|ended| {
            let is_first = *ended <= era.number;
            *ended = (*ended).max(era.number + 1);
            is_first
        });
        if is_first {
            tracing::error!(why, "etcd went back in time: it was restored, or lost writes that it had acknowledged");
        }
        Self::went_back(why)
    }

    fn went_back(why: &str) -> StoreError {
        StoreError::Unavailable(format!("etcd went back in time: {why}"))
    }

    /// The present era, if it has not ended.
    fn present(&self) -> Result<Arc<Era>, StoreError> {
        let era = self.era();
        if *self.ended.borrow() > era.number {
            return Err(Self::went_back("the watch cache is built again"));
        }
        Ok(era)
    }

    /// Begins the era after one that has ended, with revisions above all of it. The offset is in etcd's record, so that all
    /// API servers have the same.
    async fn renew(&self) -> Result<(), StoreError> {
        let ended = self.era();
        let key = ended.mapping.record();
        let request = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let found: RangeResponse = self.client.call(RANGE, request, Repeat::Safe).await?;
        let Some(kv) = found.kvs.first() else {
            // Objects that vanish would end all pods.
            return Err(StoreError::Damaged(format!(
                "etcd: {} has no record of a store any more: restore a snapshot or a backup with it",
                self.prefix
            )));
        };
        let record = StoreRecord::read(kv)?;
        let at = found.header.map_or(0, |header| keys::revision(header.revision));
        let offset = era::next_offset(ended.mapping.offset(), ended.newest(), record.revision_offset, at);
        if offset != record.revision_offset {
            let value = record.with_offset(offset).value();
            let request = TxnRequest {
                compare: vec![CompareRequest::modified(key.clone(), kv.mod_revision)],
                success: vec![RequestOp::put(key, value, 0)],
                failure: Vec::new(),
            };
            // Written twice, the second attempt loses and the next call reads the record.
            let raised: TxnResponse = self.client.call(TXN, request, Repeat::Safe).await?;
            if !raised.succeeded {
                return Err(Self::went_back("another API server writes the record"));
            }
        }
        let next = Era::new(ended.number + 1, Mapping::new(&self.prefix, offset));
        *self.era.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    /// Reads within an era, whose mapping made the request.
    async fn range_in(&self, era: &Era, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        let before = era.newest();
        let response: RangeResponse = self.client.call(RANGE, request, Repeat::Safe).await?;
        era.observe(response.header, before).map_err(|why| self.end(era, &why))?;
        Ok(response)
    }

    /// A transaction within an era.
    async fn txn_in(&self, era: &Era, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        let before = era.newest();
        let response: TxnResponse = self.client.call(TXN, request, Repeat::Unsent).await?;
        era.observe(response.header, before).map_err(|why| self.end(era, &why))?;
        Ok(response)
    }

    /// The newest revision, read through the leader.
    async fn newest(&self) -> Result<Revision, StoreError> {
        let era = self.present()?;
        // No object has this key: nothing is read but the revision.
        let (key, _) = era.mapping.all();
        let response = self.range_in(&era, RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(era.mapping.header_revision(response.header))
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
        let cluster = EtcdCluster::new(client, &config.prefix, mapping, env);
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

    async fn request(&self, mapping: &Mapping, txn: &Txn) -> Result<TxnRequest, StoreError> {
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

    fn outcome(mapping: &Mapping, response: TxnResponse) -> Result<Outcome, StoreError> {
        if response.succeeded {
            return Ok(Outcome::Committed(mapping.header_revision(response.header)));
        }
        let entries = response.responses.into_iter().map(|answer| match answer.response {
            Some(Response::Range(range)) => range.kvs.first().map(|kv| mapping.entry(kv)).transpose(),
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
        self.cluster.era().newest()
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
        let era = self.cluster.present()?;
        let mapping = &era.mapping;
        let (key, revision) = (mapping.key(key)?, mapping.read_at(at)?);
        let request = RangeRequest { key, revision, ..RangeRequest::default() };
        let found = self.cluster.range_in(&era, request).await.map_err(|error| self.located(error))?;
        found.kvs.first().map(|kv| mapping.entry(kv)).transpose()
    }

    async fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError> {
        let era = self.cluster.present()?;
        let mapping = &era.mapping;
        let (key, range_end) = (mapping.bound(from), mapping.bound(to));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let request = RangeRequest { key, range_end, limit, revision: mapping.read_at(at)? };
        let found = self.cluster.range_in(&era, request).await.map_err(|error| self.located(error))?;
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
        let era = self.cluster.present()?;
        let mapping = &era.mapping;
        let request = self.request(mapping, &txn).await?;
        let answer = self.cluster.txn_in(&era, request.clone()).await;
        let outcome = match answer {
            // A lease may end before its time, if etcd's leader changed its clock: nothing was written.
            Err(StoreError::Unavailable(why)) if why.contains("requested lease not found") => {
                let put = |op: &RequestOp| match &op.request {
                    Some(Request::Put(put)) => Some(put.lease),
                    _ => None,
                };
                request.success.iter().filter_map(put).for_each(|lease| lock(&self.leases).forget(lease));
                let request = self.request(mapping, &txn).await?;
                Self::outcome(mapping, self.cluster.txn_in(&era, request).await?)
            }
            answer => Self::outcome(mapping, answer?),
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
        let (wanted, compacted) = (self.wanted.subscribe(), self.compacted.subscribe());
        tokio::spawn(Follower::new(self.cluster.clone(), sink, position, wanted, compacted).run());
        Ok(())
    }

    async fn compact(&self, to: Revision) -> Result<(), StoreError> {
        self.compact_etcd(self.cluster.era().mapping.read_at(Some(to))?).await?;
        self.compacted.send_replace(to);
        Ok(())
    }

    fn replaced_histories(&self) -> Option<u64> {
        Some(*self.cluster.ended.borrow())
    }

    async fn tick(&self) -> Result<(), StoreError> {
        let era = self.cluster.present()?;
        let due = {
            let mut compactor = lock(&self.compactor);
            if compactor.0 != era.number {
                *compactor = (era.number, Compactor::default());
            }
            compactor.1.due(self.cluster.env.elapsed())
        };
        let Some(turn) = due else { return Ok(()) };
        let response = self.cluster.txn_in(&era, turn.request()).await?;
        let to = lock(&self.compactor).1.took_turn(&turn, response);
        if to.is_ours {
            match self.compact_etcd(to.revision).await {
                // By another client of etcd.
                Ok(()) | Err(StoreError::Compacted(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let compacted = era.mapping.revision(to.revision);
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
