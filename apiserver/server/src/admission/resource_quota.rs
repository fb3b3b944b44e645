//! ResourceQuota: what a namespace's objects use together stays within its quotas. What a write adds is charged in the
//! transaction that stores the object: it is exact, and nothing has to be given back.
//!
//! Writes that are charged go one after the other in their namespace, from the check to the commit: at once, all but one
//! would have to begin anew. Namespaces without a quota cost a look-up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use machinery_api::error::ApiResult;
use machinery_api::quota::{Asked, Charge, Evaluator, Write, charge};
use serde_json::{Map, Value};

use super::{Context, Effects, Operation, Plugin, SideWrite, Step};

/// Whose turn it is, by namespace.
#[derive(Default)]
pub(super) struct ResourceQuota {
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl ResourceQuota {
    fn turn(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(namespace).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(namespace.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> Step<'a> {
        let request = context.request;
        let write = match request.operation {
            Operation::Create => Write::Create,
            Operation::Update => Write::Update,
            Operation::Delete | Operation::Connect => return Step::Done(Ok(())),
        };
        if request.namespace.is_empty() || (request.group.is_empty() && request.resource == "namespaces") {
            return Step::Done(Ok(()));
        }
        let quotas = || context.objects.list("", "resourcequotas", Some(request.namespace));
        let limited = &*context.configuration.limited;
        if limited.is_empty() && quotas().is_empty() {
            return Step::Done(Ok(()));
        }
        let Some(evaluator) = Evaluator::of(request.group, request.resource) else { return Step::Done(Ok(())) };
        if !evaluator.handles(write, request.subresource, object, context.old) {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(async move {
            let turn = self.turn(request.namespace).lock_owned().await;
            let quotas = quotas();
            let (subresource, old, now) = (request.subresource, context.old, context.env.now());
            let resource = (request.group, request.resource);
            let asked = Asked { write, resource, subresource, new: object, old, now, limited };
            let charged = charge(&evaluator, quotas.iter().map(|quota| &**quota), asked);
            let charges = charged.map_err(|why| request.refused(object, why))?;
            if charges.is_empty() || request.options.dry_run() {
                return Ok(());
            }
            effects.writes.extend(charges.iter().map(|charge| charged_quota(&quotas[charge.at], charge)));
            effects.turns.push(turn);
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
