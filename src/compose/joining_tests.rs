//! A node joins a control plane of this process over loopback: a token, its certificates, and their renewal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apiserver_auth::own_certificates::OwnCertificate;
use apiserver_auth::pki::Identity;
use apiserver_auth::shared_keys::Authority;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, PatchType};
use machinery_client::{Api, Kind, ListOptions, TlsIdentity, read_kubeconfig, rotating};
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Cluster, Part, start};
use crate::config::ClusterConfig;
use crate::network::NetworkConfig;
use tools_command::data_dir::DataDir;
use tools_command::progress::Progress;
use tools_joining::bootstrap::{self, TokenRequest};
use tools_joining::node::{NodeSource, TokenSource, join};
use tools_joining::serving::serving;
use tools_joining::token::BootstrapToken;

/// Above all waits of a slow machine.
const PATIENCE: Duration = Duration::from_mins(2);

async fn control_plane(env: &Env, folder: &Path) -> Cluster {
    let demo = ClusterConfig::for_demo();
    let config = ClusterConfig::for_servers(demo.api, NetworkConfig::default(), demo.features);
    let data = DataDir::at(folder.to_owned());
    start(env, config, None, Part::Control, &data, Progress::stderr()).await.unwrap()
}

async fn who_am_i(client: &Client) -> Value {
    let kind = Kind {
        group: "authentication.k8s.io".into(),
        version: "v1".into(),
        plural: "selfsubjectreviews".into(),
        kind: "SelfSubjectReview".into(),
        namespaced: false,
    };
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer: Value = ApiClient::from(client.clone()).create(&kind, "", &review).await.unwrap();
    answer["status"]["userInfo"]["username"].clone()
}

fn held(identity: &TlsIdentity) -> OwnCertificate {
    let TlsIdentity { cert_pem, key_pem } = identity.clone();
    OwnCertificate::read(&Identity { cert_pem, key_pem }).unwrap()
}

/// Registers the node as its kubelet does: with its addresses.
async fn register(client: &Client, name: &str, address: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})).await.unwrap();
    let addresses = json!([{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]);
    let patch = json!({"status": {"addresses": addresses}});
    let path = Kind::of::<Node>();
    let client = ApiClient::from(client.clone());
    let key = ObjectKey::cluster(name);
    client.patch::<Value>(&path, &key, Some("status"), PatchType::Merge, &patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_with_a_token_and_gets_its_certificates() {
    let temp = tempfile::tempdir().unwrap();
    let (env, data) = (Env::real(), temp.path().join("data"));
    let cluster = control_plane(&env, &data).await;
    let config = read_kubeconfig(data.join("kubeconfig")).await.unwrap();
    let ca_hash = Authority::from_der(&config.root_cert.unwrap()[0]).unwrap().hash;
    let request = TokenRequest { valid: Some(Duration::from_hours(1)), description: None };
    let token = bootstrap::create(&env, &cluster.admin, &request).await.unwrap();
    // A second time: its bindings exist.
    let other = bootstrap::create(&env, &cluster.admin, &request).await.unwrap();
    assert_eq!(bootstrap::list(&env, &cluster.admin).await.unwrap().len(), 3);
    bootstrap::delete(&cluster.admin, &other.to_string()).await.unwrap();
    let source = |token: &BootstrapToken| {
        let server = cluster.server.parse().unwrap();
        NodeSource::Token(TokenSource { server, token: Some(token.clone()), ca_hash: ca_hash.clone() })
    };
    let refused = join(&env, source(&other), &temp.path().join("other"), "n2").await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("deleted or expired"), "{refused:#}");

    let folder = temp.path().join("pki");
    let joining = env.timeout(PATIENCE, join(&env, source(&token), &folder, "n1"));
    let (joined, _renewal) = joining.await.unwrap().unwrap();
    assert_eq!(who_am_i(&joined.client).await, "system:node:n1");
    assert!(joined.is_coracle().await.unwrap());

    // Its own key's certificate first, and after its registration one of the cluster.
    let (_certificates, renewal) = serving(&env, &joined).unwrap();
    let stored = folder.join("kubelet-serving.pem");
    register(&joined.client, "n1", "192.0.2.1").await;
    let csrs: Api<CertificateSigningRequest> = Api::all(cluster.admin.clone());
    let is_stored = async {
        while !stored.exists() {
            env.sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = renewal => panic!("it never ends"),
        done = env.timeout(PATIENCE, is_stored) => done.unwrap(),
    }
    let requests = csrs.list(&ListOptions::default()).await.unwrap().items;
    let signers: Vec<&str> = requests.iter().map(|csr| csr.spec.signer_name.as_str()).collect();
    assert_eq!((requests.len(), signers.contains(&"kubernetes.io/kubelet-serving")), (2, true), "{signers:?}");

    // A later start needs neither the token nor another request.
    let again = join(&env, source(&other), &folder, "n1").await.unwrap().0;
    assert_eq!(held(&again.certificate.borrow()), held(&joined.certificate.borrow()));
    assert_eq!(csrs.list(&ListOptions::default()).await.unwrap().items.len(), 2);

    // A client follows its certificate.
    let node_certificate = joined.certificate.borrow().clone();
    let admin = std::fs::read_to_string(data.join("pki/admin.crt")).unwrap();
    let key = std::fs::read_to_string(data.join("pki/admin.key")).unwrap();
    let (sender, receiver) = watch::channel(Arc::new(TlsIdentity { cert_pem: admin, key_pem: key }));
    let mut config = read_kubeconfig(data.join("kubeconfig")).await.unwrap();
    config.auth_info = kube::config::AuthInfo::default();
    let client = rotating(&env, config, receiver).unwrap();
    assert_eq!(who_am_i(&client).await, "kubernetes-admin");
    sender.send_replace(node_certificate.clone());
    assert_eq!(who_am_i(&client).await, "system:node:n1");
    // The certificate of one with the key of another is not used.
    let mixed = TlsIdentity { key_pem: other.to_string(), ..TlsIdentity::clone(&node_certificate) };
    sender.send_replace(Arc::new(mixed));
    assert_eq!(who_am_i(&client).await, "system:node:n1");
    cluster.process.stop().await;
}
