//! ServiceAccount.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy, SubKind, Subresource, Verb};

/// ServiceAccounts.
pub(super) static ROW: Row = Row {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    subresources: &[Subresource {
        name: "token",
        what: SubKind::Token,
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

impl Strategy for ServiceAccount {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
