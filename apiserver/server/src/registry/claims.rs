//! Reservations: keys that an object claims exclusively ([`Strategy::claims`](apiserver_resources::Strategy::claims)),
//! written and removed in the object's own transactions.

use std::collections::BTreeMap;

use jiff::Timestamp;
use machinery_api::{ApiError, ObjectName, StorageKey, StoragePrefix};
use machinery_env::Env;
use serde_json::{Value, json};

use super::{Registry, object, store_error};
use apiserver_resources::objects::ObjectReader;
use apiserver_resources::{Claim, ResourceInfo};
use apiserver_storage::cache::Selectors;
use apiserver_storage::store::{Compare, Op, Outcome, Record, Revision, Txn};

/// The maximum number of reservations in one repair transaction: well within the store's limit.
const REPAIRS_PER_TXN_MAX: usize = 64;
/// The key prefix of the markers for repaired resources, by plural name. No resource is stored there.
const REPAIRED_PREFIX: &str = "coracle/reserved";
/// The maximum number of attempts when other writers conflict.
const TRIES_MAX: usize = 3;

/// The dependencies of reservations.
pub(super) struct ClaimWriter<'a> {
    pub(super) objects: &'a dyn ObjectReader,
    pub(super) env: &'a Env,
    pub(super) now: Timestamp,
}

impl ClaimWriter<'_> {
    /// Adds an object's new claims to a transaction, on the condition that their keys are free, and removes those that
    /// it gives up. `strict`: an existing claim of another object fails the condition; otherwise the other object keeps
    /// it.
    pub(super) fn change(
        &self,
        row: &ResourceInfo,
        new: Option<&Value>,
        old: Option<&Value>,
        strict: bool,
        txn: &mut Txn,
    ) {
        let of = |object: Option<&Value>| object.map_or_else(Vec::new, |object| row.strategy.claims(object));
        let (wants, had) = (of(new), of(old));
        for claim in &wants {
            if had.iter().any(|had| had.key == claim.key) {
                continue;
            }
            if !strict && let Some((holder, _)) = self.objects.at(&claim.key) {
                tracing::warn!(key = %claim.key, holder = %parent(&holder), "another object has this claim and keeps it");
                continue;
            }
            txn.compares.push(Compare { key: claim.key.to_string(), modified: 0 });
            txn.ops.push(Op::Put { key: claim.key.to_string(), record: self.encode(claim), ttl: None });
        }
        for claim in had {
            if wants.iter().any(|wanted| wanted.key == claim.key) {
                continue;
            }
            // In data of an older version, the reservation may belong to another object.
            if let Some((holder, modified)) = self.objects.at(&claim.key)
                && parent(&holder) == parent(&claim.object)
            {
                txn.compares.push(Compare { key: claim.key.to_string(), modified });
                txn.ops.push(Op::Delete { key: claim.key.into() });
            }
        }
    }

    fn encode(&self, claim: &Claim) -> Record {
        let mut object = claim.object.clone();
        let metadata = object::metadata_mut(&mut object);
        metadata.insert("creationTimestamp".into(), json!(object::time(self.now)));
        metadata.insert("uid".into(), json!(self.env.uid()));
        Record::of(&object)
    }
}

/// The object that holds a reservation.
fn parent(claim: &Value) -> ObjectName<'_> {
    let parent = &claim["spec"]["parentRef"];
    ObjectName::new(parent["namespace"].as_str().unwrap_or(""), parent["name"].as_str().unwrap_or(""))
}

/// The result of repairing a resource's reservations.
#[derive(PartialEq)]
enum RepairOutcome {
    /// Each object holds its claims; the objects' transactions keep it so.
    Repaired,
    /// Several objects of an older version's data have the same claim; one of them holds it.
    Duplicates,
    /// Another writer conflicted.
    Conflict,
}

impl Registry {
    /// Repairs the reservations of existing objects: a data folder of an older version has none. A marker records the
    /// repair, so that it runs once in a store's life and later starts parse no objects for it. Call it before serving.
    pub async fn repair_claims(&self) -> Result<(), ApiError> {
        let catalog = self.served.load();
        for row in catalog.all_stored().filter(|row| !row.strategy.claim_prefixes().is_empty()) {
            let done = StorageKey::object(REPAIRED_PREFIX, ObjectName::new("", &row.qualified())).to_string();
            let found = self.cache.store().get(&done, None).await.map_err(|error| store_error(&error))?;
            if found.is_some() {
                continue;
            }
            for _ in 0..TRIES_MAX {
                let outcome = self.repair_row_claims(row).await?;
                if outcome == RepairOutcome::Repaired {
                    let op = Op::Put { key: done.clone(), record: Record::plain(b"{}"), ttl: None };
                    let txn = Txn { compares: Vec::new(), ops: vec![op] };
                    self.cache.commit(txn).await.map_err(|error| store_error(&error))?;
                }
                if outcome != RepairOutcome::Conflict {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn repair_row_claims(&self, row: &ResourceInfo) -> Result<RepairOutcome, ApiError> {
        let failed = |error| store_error(&error);
        self.cache.sync().await.map_err(failed)?;
        let list = |prefix: &str| match self.cache.list(prefix, None, None, 0, &Selectors::default()) {
            Ok(page) => page.items,
            Err(_) => Vec::new(),
        };
        let Some(prefix) = &row.prefix else { return Ok(RepairOutcome::Repaired) };
        let mut outcome = RepairOutcome::Repaired;
        let mut holders = list(prefix.as_str());
        // The oldest object keeps a claim that several have.
        holders.sort_by_key(|holder| holder.created);
        let mut wanted: BTreeMap<StorageKey, Claim> = BTreeMap::new();
        for holder in holders {
            for claim in row.strategy.claims(&holder.shared()) {
                if let Some(first) = wanted.get(&claim.key) {
                    let (key, first) = (&claim.key, parent(&first.object));
                    tracing::warn!(%key, %first, second = %parent(&claim.object), "two objects have the same claim; delete one of them");
                    outcome = RepairOutcome::Duplicates;
                    continue;
                }
                wanted.insert(claim.key.clone(), claim);
            }
        }
        let mut txns: Vec<(Compare, Op)> = Vec::new();
        let claim_writer = ClaimWriter { objects: &*self.objects, env: &self.env, now: self.env.now() };
        for reserved in
            row.strategy.claim_prefixes().iter().flat_map(|prefix| list(StoragePrefix::new(prefix).as_str()))
        {
            let key = reserved.key.to_string();
            let found = wanted.keys().find(|wanted| wanted.as_str() == key).cloned();
            let claim = found.and_then(|found| wanted.remove(&found));
            let compare = Compare { key: key.clone(), modified: reserved.modified };
            match claim {
                Some(claim) if parent(&claim.object) == parent(&reserved.shared()) => {}
                Some(claim) => txns.push((compare, Op::Put { key, record: claim_writer.encode(&claim), ttl: None })),
                None => txns.push((compare, Op::Delete { key })),
            }
        }
        txns.extend(wanted.into_values().map(|claim| {
            let key = claim.key.to_string();
            (
                Compare { key: key.clone(), modified: Revision::MIN },
                Op::Put { key, record: claim_writer.encode(&claim), ttl: None },
            )
        }));
        for some in txns.chunks(REPAIRS_PER_TXN_MAX) {
            let (compares, ops) = some.iter().cloned().unzip();
            if let Outcome::Conflict(_) = self.cache.commit(Txn { compares, ops }).await.map_err(failed)? {
                return Ok(RepairOutcome::Conflict);
            }
        }
        Ok(outcome)
    }
}
