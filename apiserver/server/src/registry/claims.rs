//! Reservations: keys that an object holds for itself alone ([`Strategy::claims`](apiserver_resources::Strategy::claims)), written
//! and removed in the object's own transactions.

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

/// Reservations that one transaction brings in line at a start: well within the store's limit.
const AT_ONCE: usize = 64;
/// Where it is written that a resource's reservations are in line, by its plural name. No resource is stored there.
const IN_LINE_PREFIX: &str = "coracle/reserved";
/// How often that is tried where somebody else writes at the same time.
const TRIES_MAX: usize = 3;

/// What reservations are read from and written with.
pub(super) struct Claimed<'a> {
    pub(super) objects: &'a dyn ObjectReader,
    pub(super) env: &'a Env,
    pub(super) now: Timestamp,
}

impl Claimed<'_> {
    /// Adds to a transaction what an object holds from now on, on the condition that nobody holds it, and takes away what it
    /// holds no longer. `strict`: what another one holds is left for the condition to refuse; else it is left to the other.
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
                tracing::warn!(key = %claim.key, holder = %parent(&holder), "held by another object, which keeps it");
                continue;
            }
            txn.compares.push(Compare { key: claim.key.to_string(), modified: 0 });
            txn.ops.push(Op::Put { key: claim.key.to_string(), record: self.encode(claim), ttl: None });
        }
        for claim in had {
            if wants.iter().any(|wanted| wanted.key == claim.key) {
                continue;
            }
            // Of data that an older version left, it may be another one's.
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

/// Who holds a reservation.
fn parent(claim: &Value) -> ObjectName<'_> {
    let parent = &claim["spec"]["parentRef"];
    ObjectName::new(parent["namespace"].as_str().unwrap_or(""), parent["name"].as_str().unwrap_or(""))
}

/// How bringing a resource's reservations in line went.
#[derive(PartialEq)]
enum Reserved {
    /// Each object holds what it claims: its transactions keep it so.
    InLine,
    /// Some objects of an older version's data claim the same; one of them holds it.
    Doubly,
    /// Somebody else wrote meanwhile.
    Overtaken,
}

impl Registry {
    /// Brings reservations in line with the objects that there are: those of a data folder that an older version wrote have
    /// none. It is done once in a store's life, and written down, so that no later start parses an object for it.
    /// Call it before anything is served.
    pub async fn reserve(&self) -> Result<(), ApiError> {
        let catalog = self.served.load();
        for row in catalog.all_stored().filter(|row| !row.strategy.claim_prefixes().is_empty()) {
            let done = StorageKey::object(IN_LINE_PREFIX, ObjectName::new("", &row.qualified())).to_string();
            let found = self.cache.store().get(&done, None).await.map_err(|error| store_error(&error))?;
            if found.is_some() {
                continue;
            }
            for _ in 0..TRIES_MAX {
                let outcome = self.reserve_row(row).await?;
                if outcome == Reserved::InLine {
                    let op = Op::Put { key: done.clone(), record: Record::plain(b"{}"), ttl: None };
                    let txn = Txn { compares: Vec::new(), ops: vec![op] };
                    self.cache.commit(txn).await.map_err(|error| store_error(&error))?;
                }
                if outcome != Reserved::Overtaken {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn reserve_row(&self, row: &ResourceInfo) -> Result<Reserved, ApiError> {
        let failed = |error| store_error(&error);
        self.cache.sync().await.map_err(failed)?;
        let list = |prefix: &str| match self.cache.list(prefix, None, None, 0, &Selectors::default()) {
            Ok(page) => page.items,
            Err(_) => Vec::new(),
        };
        let Some(prefix) = &row.prefix else { return Ok(Reserved::InLine) };
        let mut outcome = Reserved::InLine;
        let mut holders = list(prefix.as_str());
        // Who was there first keeps what two hold.
        holders.sort_by_key(|holder| holder.created);
        let mut wanted: BTreeMap<StorageKey, Claim> = BTreeMap::new();
        for holder in holders {
            for claim in row.strategy.claims(&holder.shared()) {
                if let Some(first) = wanted.get(&claim.key) {
                    let (key, first) = (&claim.key, parent(&first.object));
                    tracing::warn!(%key, %first, second = %parent(&claim.object), "two objects hold the same; delete one of them");
                    outcome = Reserved::Doubly;
                    continue;
                }
                wanted.insert(claim.key.clone(), claim);
            }
        }
        let mut txns: Vec<(Compare, Op)> = Vec::new();
        let claimed = Claimed { objects: &*self.objects, env: &self.env, now: self.env.now() };
        for reserved in
            row.strategy.claim_prefixes().iter().flat_map(|prefix| list(StoragePrefix::new(prefix).as_str()))
        {
            let key = reserved.key.to_string();
            let found = wanted.keys().find(|wanted| wanted.as_str() == key).cloned();
            let claim = found.and_then(|found| wanted.remove(&found));
            let compare = Compare { key: key.clone(), modified: reserved.modified };
            match claim {
                Some(claim) if parent(&claim.object) == parent(&reserved.shared()) => {}
                Some(claim) => txns.push((compare, Op::Put { key, record: claimed.encode(&claim), ttl: None })),
                None => txns.push((compare, Op::Delete { key })),
            }
        }
        txns.extend(wanted.into_values().map(|claim| {
            let key = claim.key.to_string();
            (
                Compare { key: key.clone(), modified: Revision::MIN },
                Op::Put { key, record: claimed.encode(&claim), ttl: None },
            )
        }));
        for some in txns.chunks(AT_ONCE) {
            let (compares, ops) = some.iter().cloned().unzip();
            if let Outcome::Conflict(_) = self.cache.commit(Txn { compares, ops }).await.map_err(failed)? {
                return Ok(Reserved::Overtaken);
            }
        }
        Ok(outcome)
    }
}
