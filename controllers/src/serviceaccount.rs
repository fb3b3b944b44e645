//! `serviceaccount-controller`: creates the ServiceAccount `default` in every namespace.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Change, Context, Controller, Input, ObjectCache, Plan};

use crate::Settings;

/// The key is a namespace's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "serviceaccount-controller",
    account: "service-account-controller",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Namespace>(own_key), Input::of::<ServiceAccount>(its_namespace)],
    reconcile,
};

/// The namespace of a deleted object.
fn its_namespace(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.new.is_none() && change.key.name == "default" {
        vec![ObjectKey::cluster(&*change.key.namespace)]
    } else {
        Vec::new()
    }
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let Some(namespace) = view.get::<Namespace>(key) else { return Plan::nothing() };
    if namespace.metadata.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    if view.get::<ServiceAccount>(&ObjectKey::new(&*key.name, "default")).is_some() {
        return Plan::nothing();
    }
    let metadata =
        ObjectMeta { name: Some("default".into()), namespace: Some(key.name.clone()), ..ObjectMeta::default() };
    vec![Action::create(&ServiceAccount { metadata, ..ServiceAccount::default() })].into()
}
