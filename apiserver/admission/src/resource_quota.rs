//! ResourceQuota: limits the total usage of a namespace. A write is charged in the transaction that stores its object,
//! so that usage is exact and failed writes need no rollback.
//!
//! Charged writes of a namespace are serialized from check to commit. Concurrent ones would conflict, and all but one
//! would retry. Namespaces without a quota cost one lookup.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use machinery_api::error::ApiResult;
use machinery_rules::quota::{Charge, Evaluator, QuotaCheck, Write, charge};
use serde_json::{Map, Value};

use super::{Context, Effects, MaybeReady, Operation, Plugin, SideWrite};

/// The locks of namespaces with charged writes.
#[derive(Default)]
pub(super) struct ResourceQuota {
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl ResourceQuota {
    fn lock_of(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(namespace).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(namespace.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> MaybeReady<'a> {
        let request = context.request;
        let write = match request.operation {
            Operation::Create => Write::Create,
            Operation::Update => Write::Update,
            Operation::Delete | Operation::Connect => return MaybeReady::Ready(Ok(())),
        };
        if request.namespace.is_empty() || (request.group.is_empty() && request.resource == "namespaces") {
            return MaybeReady::Ready(Ok(()));
        }
        let quotas = || context.objects.list("", "resourcequotas", Some(request.namespace));
        let limited = &*context.configuration.limited;
        if limited.is_empty() && quotas().is_empty() {
            return MaybeReady::Ready(Ok(()));
        }
        let Some(evaluator) = Evaluator::of(request.group, request.resource) else { return MaybeReady::Ready(Ok(())) };
        if !evaluator.handles(write, request.subresource, object, context.old) {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(async move {
            let lock = self.lock_of(request.namespace).lock_owned().await;
            let quotas = quotas();
            let (subresource, old, now) = (request.subresource, context.old, context.env.now());
            let resource = (request.group, request.resource);
            let check = QuotaCheck { write, resource, subresource, new: object, old, now, limited };
            let charged = charge(&evaluator, quotas.iter().map(|quota| &**quota), check);
            let charges = charged.map_err(|why| request.forbidden(object, why))?;
            if charges.is_empty() || request.options.dry_run() {
                return Ok(());
            }
            effects.writes.extend(charges.iter().map(|charge| charged_quota(&quotas[charge.at], charge)));
            effects.quota_locks.push(lock);
            ApiResult::Ok(())
        }))
    }
}

fn charged_quota(quota: &Value, charge: &Charge) -> SideWrite {
    let mut object = quota.clone();
    let used: Map<String, Value> = charge.used.iter().map(|(n, v)| (n.clone(), v.to_string().into())).collect();
    object["status"]["used"] = used.into();
    SideWrite { group: "", plural: "resourcequotas", object }
}
