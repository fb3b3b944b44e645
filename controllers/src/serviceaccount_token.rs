//! `serviceaccount-token-controller`: fills Secrets with permanent ServiceAccount tokens, and deletes them with the
//! ServiceAccount.

use std::path::PathBuf;

use clap::Args;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Change, Context, Controller, Input, Kind, ObjectCache, Plan, key_of};
use serde_json::json;

use crate::Settings;

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const ISSUER: &str = "kubernetes/serviceaccount";

/// Options of tokens in Secrets.
#[derive(Debug, Clone, Args)]
pub struct TokenOptions {
    /// Key that signs tokens in Secrets: the API server's, ECDSA P-256 in PKCS #8 [default: Secrets get no tokens]
    #[arg(long, env = "CORACLE_SERVICE_ACCOUNT_PRIVATE_KEY_FILE", value_name = "FILE")]
    pub service_account_private_key_file: Option<PathBuf>,
}

/// The key is a Secret's. As upstream, it acts as the controller manager.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "serviceaccount-token-controller",
    account: "",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Secret>(own_key_of_token), Input::of::<ServiceAccount>(its_tokens)],
    reconcile,
};

fn own_key_of_token(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.after().is_some_and(is_token) { own_key(view, change) } else { Vec::new() }
}

fn its_tokens(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let of_account = |s: &&Secret| is_token(s) && annotation(s, ACCOUNT_NAME) == Some(&*change.key.name);
    view.list::<Secret>(&change.key.namespace).filter(of_account).map(|s| key_of(&s.metadata)).collect()
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE)
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(secret) = view.get::<Secret>(key).filter(|s| is_token(s)) else { return Plan::nothing() };
    let Some(name) = annotation(secret, ACCOUNT_NAME) else { return Plan::nothing() };
    if secret.metadata.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    let account_key = ObjectKey::new(&*key.namespace, name);
    let uid = annotation(secret, ACCOUNT_UID);
    let Some(account) = view.get::<ServiceAccount>(&account_key) else {
        // The Secret may appear in the view before its account: the server confirms.
        let kind = Kind::of::<ServiceAccount>();
        let check = Action::ExpectGone { kind, key: account_key, uid: uid.map(str::to_owned) };
        return vec![check, Action::delete(secret)].into();
    };
    if uid.is_some_and(|uid| account.metadata.uid.as_deref() != Some(uid)) {
        // The Secret belongs to a deleted account of that name.
        return vec![Action::delete(secret)].into();
    }
    fill(secret, account, context.settings).map(|filled| Action::update(&filled)).into_iter().collect::<Vec<_>>().into()
}

/// The completed Secret; none if it is complete or no token can be signed.
fn fill(secret: &Secret, account: &ServiceAccount, settings: &Settings) -> Option<Secret> {
    if !settings.authority.signs_tokens() {
        return None;
    }
    let empty = |name: &str| secret.data.as_ref().and_then(|d| d.get(name)).is_none_or(|v| v.0.is_empty());
    let ca = settings.root_ca_pem.as_bytes();
    let known_ca = secret.data.as_ref().and_then(|d| d.get("ca.crt")).map(|v| v.0.as_slice()).unwrap_or_default();
    if !empty("token") && !empty("namespace") && (ca.is_empty() || known_ca == ca) {
        return None;
    }
    let namespace = secret.metadata.namespace.clone().unwrap_or_default();
    let account_name = account.metadata.name.clone().unwrap_or_default();
    let mut filled = secret.clone();
    let data = filled.data.get_or_insert_default();
    if !ca.is_empty() {
        data.insert("ca.crt".into(), ByteString(ca.to_vec()));
    }
    if empty("namespace") {
        data.insert("namespace".into(), ByteString(namespace.clone().into_bytes()));
    }
    if empty("token") {
        let claims = json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{namespace}:{account_name}"),
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret.metadata.name,
            "kubernetes.io/serviceaccount/service-account.name": account_name,
            "kubernetes.io/serviceaccount/service-account.uid": account.metadata.uid,
        });
        data.insert("token".into(), ByteString(settings.authority.sign_token(&claims)?.into_bytes()));
    }
    let annotations = filled.metadata.annotations.get_or_insert_default();
    annotations.insert(ACCOUNT_NAME.into(), account_name);
    annotations.insert(ACCOUNT_UID.into(), account.metadata.uid.clone().unwrap_or_default());
    Some(filled)
}
