//! An operator on kube-rs: keeps a Fleet's ConfigMaps, holds it with a finalizer, and answers its two webhooks.
//! `kube-rs-operator CERT_DIR PORT`: the kubeconfig is `$KUBECONFIG`'s.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use futures::StreamExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::watcher;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const FINALIZER: &str = "trial.example.com/operator";

fn fleets() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("trial.example.com", "v1", "Fleet"))
}

/// What is created and is there already is as good.
fn there<T>(done: kube::Result<T>) -> kube::Result<()> {
    match done {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

async fn keep(client: &Client, fleet: &DynamicObject) -> kube::Result<Action> {
    let (name, namespace) = (fleet.name_any(), fleet.namespace().unwrap_or_default());
    let boats = fleet.data["spec"]["boats"].as_i64().unwrap_or(0);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    for n in 0..boats {
        let mut boat = ConfigMap::default();
        boat.metadata.name = Some(format!("{name}-{n}"));
        boat.metadata.labels = Some([("fleet".to_owned(), name.clone())].into());
        boat.metadata.owner_references = fleet.controller_owner_ref(&fleets()).map(|owner| vec![owner]);
        there(maps.create(&PostParams::default(), &boat).await)?;
    }
    for boat in maps.list(&ListParams::default().labels(&format!("fleet={name}"))).await? {
        let number = boat.name_any().rsplit('-').next().and_then(|n| n.parse::<i64>().ok());
        if number.is_some_and(|number| number >= boats) {
            maps.delete(&boat.name_any(), &DeleteParams::default()).await?;
        }
    }
    let all: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &fleets());
    let status = json!({
        "apiVersion": "trial.example.com/v1", "kind": "Fleet",
        "status": {"boats": boats, "observedGeneration": fleet.metadata.generation},
    });
    all.patch_status(&name, &PatchParams::apply("kube-rs-operator").force(), &Patch::Apply(status)).await?;
    Ok(Action::await_change())
}

async fn farewell(client: &Client, fleet: &DynamicObject) -> kube::Result<Action> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &fleet.namespace().unwrap_or_default());
    let mut last = ConfigMap::default();
    last.metadata.name = Some(format!("farewell-{}", fleet.name_any()));
    there(maps.create(&PostParams::default(), &last).await)?;
    Ok(Action::await_change())
}

async fn reconcile(
    fleet: Arc<DynamicObject>,
    client: Arc<Client>,
) -> Result<Action, kube::runtime::finalizer::Error<kube::Error>> {
    let api: Api<DynamicObject> =
        Api::namespaced_with((*client).clone(), &fleet.namespace().unwrap_or_default(), &fleets());
    finalizer(&api, FINALIZER, fleet, |event| async {
        match event {
            Event::Apply(fleet) => keep(&client, &fleet).await,
            Event::Cleanup(fleet) => farewell(&client, &fleet).await,
        }
    })
    .await
}

/// The answer to a review of `request`.
fn answered(review: &Value, allowed: bool, also: Value) -> String {
    let mut response = json!({"uid": review["request"]["uid"], "allowed": allowed});
    if let (Some(response), Value::Object(also)) = (response.as_object_mut(), also) {
        response.extend(also);
    }
    json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}).to_string()
}

/// The request of a review; null for an unreadable one, which the caller rejects.
fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

async fn mutate(body: Bytes) -> String {
    let review = parsed(&body);
    if !review["request"]["object"]["spec"]["harbour"].is_null() {
        return answered(&review, true, Value::Null);
    }
    // [{"op": "add", "path": "/spec/harbour", "value": "home"}] in base64
    let patch = "W3sib3AiOiAiYWRkIiwgInBhdGgiOiAiL3NwZWMvaGFyYm91ciIsICJ2YWx1ZSI6ICJob21lIn1d";
    answered(&review, true, json!({"patchType": "JSONPatch", "patch": patch}))
}

async fn validate(body: Bytes) -> String {
    let review = parsed(&body);
    let few = review["request"]["object"]["spec"]["boats"].as_i64().is_none_or(|boats| boats <= 5);
    answered(&review, few, json!({"status": {"message": "no more than five boats", "code": 403}}))
}

async fn webhooks(certificates: &Path, port: u16) -> anyhow::Result<()> {
    let chain = CertificateDer::pem_file_iter(certificates.join("tls.crt"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(certificates.join("tls.key"))?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind(("127.0.0.1", port)).await?);
    let router = Router::new().route("/mutate", post(mutate)).route("/validate", post(validate));
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            // A client that disconnects affects no other client.
            if let Ok(stream) = acceptor.accept(stream).await {
                let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            }
        });
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: kube-rs-operator CERT_DIR PORT";
    let certificates = arguments.next().context(usage)?;
    let port = arguments.next().and_then(|port| port.to_str()?.parse().ok()).context(usage)?;
    let client = Client::try_default().await?;
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &fleets());
    let maps: Api<ConfigMap> = Api::all(client.clone());
    let controller = Controller::new_with(all, watcher::Config::default(), fleets())
        .owns(maps, watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_secs(1)), Arc::new(client))
        .for_each(|_| async {});
    tokio::select! {
        () = controller => anyhow::bail!("the controller ended"),
        ended = webhooks(certificates.as_ref(), port) => ended,
    }
}
