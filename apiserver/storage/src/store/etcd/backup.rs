//! Backups of a prefix in etcd, and their restore into an empty one. The file is the embedded store's, so a backup of
//! either store is restored into either.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use machinery_env::Env;

use super::super::embedded::backup::{BackupError, Contents, check_absent, read_backup, write_backup};
use super::super::embedded::sealed::SealingKey;
use super::super::plan::{StoredValue, Write};
use super::super::{Revision, StoreError, TXN_OPS_MAX};
use super::client::{Client, Repeat};
use super::format::{self, StoreRecord};
use super::keys::{self, Mapping, number, revision};
use super::messages::{
    CompareRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, Request, RequestOp, TxnRequest, TxnResponse,
};
use super::{EtcdCluster, EtcdConfig, GRANT, TXN, feed};

const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
/// The size of a transaction of a restore, below etcd's limit of a request (1.5 MiB) by far.
const BATCH_BYTES: usize = 512 * 1024;
/// Keys that expire within the same step share a lease.
const EXPIRY_STEP: Duration = Duration::from_secs(10);
/// The attempts to read all keys at one revision, which a compaction may remove during the read.
const READS_MAX: usize = 3;

/// Writes the keys below the prefix, at one revision, to `file`, without those that begin with `left_out`; see [`backup`](super::super::embedded::backup::backup).
///
/// # Errors
/// If the file exists or can't be written, there are no keys, or etcd fails.
pub async fn backup(
    config: &EtcdConfig,
    env: &Env,
    file: &Path,
    key: Option<&SealingKey>,
    left_out: &str,
) -> Result<Contents, BackupError> {
    check_absent(file)?;
    let client = Client::new(config, env.clone())?;
    let mapping = format::read(&client, &config.prefix).await?;
    let cluster = EtcdCluster::new(client, &config.prefix, mapping, env.clone());
    let mut read = feed::read_values(&cluster).await;
    for _ in 1..READS_MAX {
        if !matches!(read, Err(StoreError::Compacted(_))) {
            break;
        }
        read = feed::read_values(&cluster).await;
    }
    let (kvs, revision) = read?;
    let mut expiries = BTreeMap::from([(0, Some(0))]);
    let mut rows = Vec::with_capacity(kvs.len());
    for kv in kvs {
        let expires_ms = match expiries.get(&kv.lease) {
            Some(known) => *known,
            None => *expiries.entry(kv.lease).or_insert(expiry(&cluster, kv.lease).await?),
        };
        let Some(expires_ms) = expires_ms else { continue };
        let entry = cluster.era().mapping.entry(&kv)?;
        if entry.key.starts_with(left_out) {
            continue;
        }
        let stored = StoredValue { record: entry.record, created: entry.created, expires_ms };
        rows.push(Write { revision: entry.modified, key: entry.key, stored: Some(Arc::new(stored)) });
    }
    if rows.is_empty() {
        return Err(BackupError::NoKeys(config.prefix.clone()));
    }
    write_backup(file, key, revision, rows)
}

/// When the keys of a lease expire (ms since the epoch); none: they have.
async fn expiry(cluster: &EtcdCluster, lease: i64) -> Result<Option<u64>, StoreError> {
    let now = now_ms(&cluster.env);
    let request = LeaseTimeToLiveRequest { id: lease };
    let answer: LeaseTimeToLiveResponse = cluster.client.call(TIME_TO_LIVE, request, Repeat::Safe).await?;
    Ok(u64::try_from(answer.ttl).ok().map(|seconds| now + 1000 * seconds))
}

fn now_ms(env: &Env) -> u64 {
    u64::try_from(env.now().as_millisecond()).unwrap_or(0)
}

/// Restores a backup below the prefix, which must be empty. Revisions begin above the backup's, as in
/// [`restore`](super::super::embedded::backup::restore). API servers refuse the prefix until it is complete; what a failure
/// leaves is removed.
///
/// # Errors
/// If the file is no whole backup, there are keys below the prefix, or etcd fails.
pub async fn restore(
    config: &EtcdConfig,
    env: &Env,
    file: &Path,
    key: Option<&SealingKey>,
) -> Result<Contents, BackupError> {
    let (wanted, rows) = read_backup(file, key)?;
    let client = Client::new(config, env.clone())?;
    let mapping = Mapping::new(&config.prefix, 0);
    let cluster = EtcdCluster::new(client, &config.prefix, mapping, env.clone());
    let record = StoreRecord::restoring(wanted.saturating_sub(cluster.newest().await?));
    let Some(at) = claim(&cluster, record).await? else {
        return Err(BackupError::Keys(config.prefix.clone()));
    };
    let restore = Restore { cluster: &cluster, record, at };
    match restore.run(&rows).await {
        Ok(done) => Ok(Contents { revision: done, keys: rows.len() }),
        Err(error) => {
            if let Err(left) = restore.remove_all().await {
                tracing::warn!(%left, prefix = config.prefix, "keys of the failed restore remain in etcd");
            }
            Err(error.into())
        }
    }
}

/// Writes the record if there are no keys; returns etcd's revision of the record.
async fn claim(cluster: &EtcdCluster, record: StoreRecord) -> Result<Option<i64>, StoreError> {
    let ((from, to), key) = (cluster.era().mapping.all(), cluster.era().mapping.record());
    let request = TxnRequest {
        compare: vec![CompareRequest::empty(from, to), CompareRequest::version(key.clone(), 0)],
        success: vec![RequestOp::put(key, record.value(), 0)],
        failure: Vec::new(),
    };
    let claimed: TxnResponse = cluster.client.call(TXN, request, Repeat::Unsent).await?;
    let at = claimed.header.map_or(0, |header| header.revision);
    Ok(claimed.succeeded.then_some(at))
}

/// A restore that has claimed its prefix.
struct Restore<'a> {
    /// With etcd's own revisions.
    cluster: &'a EtcdCluster,
    record: StoreRecord,
    /// etcd's revision of the record: every write holds only while it is unchanged.
    at: i64,
}

impl Restore<'_> {
    /// Writes all rows; returns the store's revision.
    async fn run(&self, rows: &[Write]) -> Result<Revision, StoreError> {
        let mut leases = BTreeMap::new();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for row in rows {
            let Some(stored) = &row.stored else { continue };
            let Some(lease) = self.lease(stored.expires_ms, &mut leases).await? else { continue };
            let value = keys::value(&stored.record);
            if batch.len() == TXN_OPS_MAX || (bytes + value.len() > BATCH_BYTES && !batch.is_empty()) {
                self.write(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            bytes += value.len();
            batch.push(RequestOp::put(self.cluster.era().mapping.key(&row.key)?, value, lease));
        }
        self.write(batch).await?;
        let complete = RequestOp::put(self.cluster.era().mapping.record(), self.record.restored().value(), 0);
        let last = self.write(vec![complete]).await?;
        Ok(revision(last).saturating_add(self.record.revision_offset))
    }

    /// The lease of a key that expires; 0 for one that doesn't. None: it has expired.
    async fn lease(&self, expires_ms: u64, leases: &mut BTreeMap<u64, i64>) -> Result<Option<i64>, StoreError> {
        if expires_ms == 0 {
            return Ok(Some(0));
        }
        let Some(left) = expires_ms.checked_sub(now_ms(&self.cluster.env)).filter(|left| *left > 0) else {
            return Ok(None);
        };
        let step = expires_ms / u64::try_from(EXPIRY_STEP.as_millis()).unwrap_or(1);
        if let Some(lease) = leases.get(&step) {
            return Ok(Some(*lease));
        }
        let ttl = number(Duration::from_millis(left).as_secs() + EXPIRY_STEP.as_secs());
        let granted: LeaseGrantResponse =
            self.cluster.client.call(GRANT, LeaseGrantRequest { ttl }, Repeat::Safe).await?;
        leases.insert(step, granted.id);
        Ok(Some(granted.id))
    }

    /// Writes in one transaction; returns etcd's revision. A repetition of the same writes changes nothing.
    async fn write(&self, success: Vec<RequestOp>) -> Result<i64, StoreError> {
        let compare = vec![CompareRequest::modified(self.cluster.era().mapping.record(), self.at)];
        let request = TxnRequest { compare, success, failure: Vec::new() };
        let written: TxnResponse = self.cluster.client.call(TXN, request, Repeat::Safe).await?;
        if !written.succeeded {
            return Err(StoreError::Unavailable("the keys of the restore were changed by another program".into()));
        }
        Ok(written.header.map_or(0, |header| header.revision))
    }

    /// Removes all keys.
    async fn remove_all(&self) -> Result<(), StoreError> {
        let (key, range_end) = self.cluster.era().mapping.all();
        let all = RequestOp { request: Some(Request::Delete(DeleteRangeRequest { key, range_end })) };
        self.write(vec![all, RequestOp::delete(self.cluster.era().mapping.record())]).await.map(|_| ())
    }
}
