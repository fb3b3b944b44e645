//! Users' actions on objects that controllers grant, process or release: certificates, service account tokens, aggregated
//! roles, policies, address ranges and volume classes.

use std::sync::OnceLock;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use machinery_client::Kind;
use serde_json::{Value, json};

use super::User;

/// The aggregated role.
pub(crate) const SUM: &str = "sum";
/// Label of its parts.
pub(crate) const PART: &str = "example.com/part";
/// Prefix of users' address ranges: the number is the last byte but one.
const RANGES: &str = "10.111";

/// A request's key and its certificate, one of each for all runs: the log contains neither.
fn key_pair() -> &'static (String, String) {
    static MADE: OnceLock<(String, String)> = OnceLock::new();
    MADE.get_or_init(|| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "user");
        let request = params.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        (request, certificate)
    })
}

/// The certificate of every request.
pub(crate) fn certificate() -> String {
    key_pair().1.clone()
}

impl User {
    pub(super) async fn change_grants(&mut self) {
        match self.random.below(12) {
            0 | 1 => {
                self.request_certificate().await;
                self.decide_request().await;
            }
            2 => self.decide_request().await,
            3 => self.create_account_token().await,
            4 => self.delete_account().await,
            5 => self.create_part().await,
            6 => self.change_part().await,
            7 => self.create_policy().await,
            8 => self.change_policy().await,
            9 => {
                self.create_range().await;
                self.service_in_range().await;
            }
            10 => self.delete_any(Kind::of::<ServiceCIDR>(), "servicecidrs").await,
            _ => self.change_class().await,
        }
    }

    async fn request_certificate(&mut self) {
        let (name, request) = (self.name("csr"), ByteString(key_pair().0.clone().into_bytes()));
        let request = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"], "request": request},
        });
        self.create(Kind::of::<CertificateSigningRequest>(), "", request).await;
    }

    /// Approves or denies a request, or deletes it.
    async fn decide_request(&mut self) {
        let open = |request: &Value| request["status"]["conditions"].is_null();
        let Some((key, mut request)) = self.any_of("certificatesigningrequests", open) else { return };
        let kind = Kind::of::<CertificateSigningRequest>();
        if self.random.chance(100) {
            return self.delete(kind, &key, json!({})).await;
        }
        let what = if self.random.chance(700) { "Approved" } else { "Denied" };
        request["status"]["conditions"] = json!([{"type": what, "status": "True", "reason": "User"}]);
        let _ = self.api.update::<Value>(&kind, &key, Some("approval"), &request).await;
    }

    /// Creates an account with a permanent token, or a token for an existing account.
    async fn create_account_token(&mut self) {
        let (name, namespace) = (self.name("robot"), self.namespace());
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}});
        self.create(Kind::of::<ServiceAccount>(), namespace, account).await;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": name, "namespace": namespace, "annotations": {"kubernetes.io/service-account.name": name}},
        });
        self.create(Kind::of::<Secret>(), namespace, secret).await;
    }

    async fn delete_account(&mut self) {
        let Some((key, _)) = self.any_of("serviceaccounts", |account| account["metadata"]["name"] != "default") else {
            return;
        };
        self.delete(Kind::of::<ServiceAccount>(), &key, json!({})).await;
    }

    async fn create_part(&mut self) {
        let kind = Kind::of::<ClusterRole>();
        let role = |name: &str, labels: Value, rules: Value| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": name, "labels": labels}, "rules": rules})
        };
        let mut sum = role(SUM, json!({}), json!([]));
        sum["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {PART: "yes"}}]});
        self.create(kind.clone(), "", sum).await;
        let name = self.name("part");
        let rules = json!([{"apiGroups": [""], "resources": [name], "verbs": ["get"]}]);
        self.create(kind, "", role(&name, json!({PART: "yes"}), rules)).await;
    }

    /// Changes, unlabels or deletes a part.
    async fn change_part(&mut self) {
        let part = |role: &Value| role["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("part-"));
        let Some((key, _)) = self.any_of("clusterroles", part) else { return };
        let kind = Kind::of::<ClusterRole>();
        let rules = json!([{"apiGroups": [""], "resources": [self.name("thing")], "verbs": ["get", "list"]}]);
        match self.random.below(3) {
            0 => self.delete(kind, &key, json!({})).await,
            1 => self.merge(kind, &key, json!({"metadata": {"labels": {PART: null}}})).await,
            _ => self.merge(kind, &key, json!({"rules": rules})).await,
        }
    }

    async fn create_policy(&mut self) {
        let name = self.name("policy");
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {"validations": [{"expression": "true"}], "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}},
        });
        self.create(Kind::of::<ValidatingAdmissionPolicy>(), "", policy).await;
    }

    async fn change_policy(&mut self) {
        let Some((key, _)) = self.any("validatingadmissionpolicies") else { return };
        self.made += 1;
        let expression = format!("size(object.metadata.name) < {}", 1000 + self.made);
        let patch = json!({"spec": {"validations": [{"expression": expression}]}});
        self.merge(Kind::of::<ValidatingAdmissionPolicy>(), &key, patch).await;
    }

    async fn create_range(&mut self) {
        let name = self.name("range");
        let range = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "spec": {"cidrs": [format!("{RANGES}.{}.0/28", self.made % 256)]},
        });
        self.create(Kind::of::<ServiceCIDR>(), "", range).await;
    }

    /// Creates a Service with an address of a users' range.
    async fn service_in_range(&mut self) {
        let own = |range: &Value| range["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("range-"));
        let Some((_, range)) = self.any_of("servicecidrs", own) else { return };
        let block = range["spec"]["cidrs"][0].as_str().unwrap_or_default();
        let address = block.replace(".0/28", &format!(".{}", self.random.between(1, 14)));
        let (name, namespace) = (self.name("ranged"), self.namespace());
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": address, "ports": [{"port": 80}]},
        });
        self.create(Kind::of::<Service>(), namespace, service).await;
    }

    async fn change_class(&mut self) {
        let (kind, own) = (Kind::of::<VolumeAttributesClass>(), "volumeattributesclasses");
        if self.random.chance(500) {
            return self.delete_any(kind, own).await;
        }
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": self.name("quick")},
            "driverName": "example.com", "parameters": {"iops": "1"},
        });
        self.create(kind, "", class).await;
    }
}
