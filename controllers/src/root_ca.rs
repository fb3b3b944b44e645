//! `root-ca-certificate-publisher-controller`: publishes the cluster's certificate authority in a ConfigMap of every
//! namespace.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Change, Context, Controller, Input, ObjectCache, Plan};

use crate::Settings;

/// The ConfigMap's name, and its key.
const NAME: &str = "kube-root-ca.crt";
const ENTRY: &str = "ca.crt";
/// Upstream's description annotation.
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.",
);

/// Options of the publisher of the certificate authority.
#[derive(Debug, Clone, Args)]
pub struct RootCaOptions {
    /// Certificate authority published to every namespace, as PEM [default: none]
    #[arg(long, env = "CORACLE_ROOT_CA_FILE", value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
}

/// The key is a namespace's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "root-ca-certificate-publisher-controller",
    account: "root-ca-cert-publisher",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Namespace>(own_key), Input::of::<ConfigMap>(its_namespace)],
    reconcile,
};

fn its_namespace(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.key.name == NAME { vec![ObjectKey::cluster(&*change.key.namespace)] } else { Vec::new() }
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(namespace) = view.get::<Namespace>(key) else { return Plan::nothing() };
    if namespace.metadata.deletion_timestamp.is_some() || context.settings.root_ca_pem.is_empty() {
        return Plan::nothing();
    }
    let data = BTreeMap::from([(ENTRY.to_owned(), context.settings.root_ca_pem.clone())]);
    let (name, text) = DESCRIPTION;
    let Some(present) = view.get::<ConfigMap>(&ObjectKey::new(&*key.name, NAME)) else {
        let metadata = ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(key.name.clone()),
            annotations: Some(BTreeMap::from([(name.to_owned(), text.to_owned())])),
            ..ObjectMeta::default()
        };
        return vec![Action::create(&ConfigMap { metadata, data: Some(data), ..ConfigMap::default() })].into();
    };
    let described = present.metadata.annotations.as_ref().is_some_and(|a| a.get(name).is_some_and(|t| !t.is_empty()));
    if present.data.as_ref() == Some(&data) && described {
        return Plan::nothing();
    }
    let mut mended = present.clone();
    mended.data = Some(data);
    mended.metadata.annotations.get_or_insert_default().insert(name.to_owned(), text.to_owned());
    vec![Action::update(&mended)].into()
}
