//! ServiceAccounts: references to Secrets keep only the name; a deletion returns the object.

use serde_json::{Value, json};

use crate::field::ErrorList;
use crate::read::{get, has, items_mut, text};
use crate::{Context, MetadataChecks, Row, Storage, Strategy, Subresource, SubresourceKind, Verb};

pub(crate) static ROW: Row = Row {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    subresources: &[Subresource {
        name: "token",
        what: SubresourceKind::Token,
        body: Some(("authentication.k8s.io", "v1", "TokenRequest")),
        verbs: &[Verb::Create],
    }],
    storage: Storage::Stored("serviceaccounts"),
    strategy: &ServiceAccount,
    example: r#"apiVersion: v1
kind: ServiceAccount
metadata: {name: example}
"#,
    ..Row::NAMESPACED
};

struct ServiceAccount;

const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Keeps only the names of secrets.
fn only_names(object: &mut Value) {
    for secret in items_mut(object, "secrets") {
        let name = text(secret, "name").to_owned();
        *secret = if name.is_empty() { json!({}) } else { json!({"name": name}) };
    }
}

impl Strategy for ServiceAccount {
    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        only_names(object);
    }

    fn prepare_update(&self, _: &Context<'_>, new: &mut Value, _: &Value) {
        only_names(new);
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn validate(&self, _: &Context<'_>, _: &Value, _: Option<&Value>, _: &mut ErrorList) {}

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let enforces = |object: &Value| has(get(get(object, "metadata"), "annotations"), ENFORCE);
        if !enforces(object) || old.is_some_and(enforces) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{ENFORCE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )]
    }

    fn delete_answers_object(&self) -> bool {
        true
    }
}
