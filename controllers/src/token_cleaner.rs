//! `token-cleaner-controller`: deletes expired Secrets of bootstrap tokens.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Change, Context, Controller, Input, ObjectCache, Plan};

use crate::Settings;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const EXPIRATION: &str = "expiration";

/// The key is a Secret's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "token-cleaner-controller",
    account: "token-cleaner",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Secret>(own_key_of_token)],
    reconcile,
};

fn own_key_of_token(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.after().is_some_and(is_token) { own_key(view, change) } else { Vec::new() }
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE) && secret.metadata.namespace.as_deref() == Some(NAMESPACE)
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let going = |secret: &Secret| secret.metadata.deletion_timestamp.is_some();
    let Some(secret) = view.get::<Secret>(key).filter(|s| is_token(s) && !going(s)) else { return Plan::nothing() };
    let until = secret.data.as_ref().and_then(|data| data.get(EXPIRATION)).map(|text| text.0.as_slice());
    let Some(until) = until.filter(|text| !text.is_empty()) else { return Plan::nothing() };
    let until = std::str::from_utf8(until).ok().and_then(|text| text.parse::<Timestamp>().ok());
    let mut plan = Plan::nothing();
    match until {
        Some(until) if context.now < until => plan.revisit(until),
        // An expiration that isn't a time counts as expired, as upstream.
        _ => plan.push(Action::delete(secret)),
    }
    plan
}
