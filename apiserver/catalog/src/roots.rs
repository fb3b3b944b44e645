//! The discovery and identity pages in OpenAPI, each with a document of its own, as upstream.

use serde_json::{Value, json};

use super::operations::{OBJECT, id, responses, short_group};
use super::schemas::META;
use super::{Catalog, openapi};

/// A non-resource page.
pub(super) struct Root {
    /// For example `/apis/apps/`.
    path: String,
    tag: String,
    operation: String,
    about: &'static str,
    media: &'static [&'static str],
    /// The response type; `None` means text.
    pub(super) response_type: Option<String>,
}

const JSON: &[&str] = &["application/json"];

/// All pages.
pub(super) fn pages(catalog: &Catalog) -> impl Iterator<Item = Root> + use<'_> {
    let page = |path: &str, tag: &str, operation: &str, about, media, response_type: Option<String>| Root {
        path: path.to_owned(),
        tag: tag.to_owned(),
        operation: operation.to_owned(),
        about,
        media,
        response_type,
    };
    let meta = |name: &str| Some(format!("{META}{name}"));
    let fixed = [
        page(
            "/.well-known/openid-configuration/",
            "WellKnown",
            "getServiceAccountIssuerOpenIDConfiguration",
            "read how to verify service account tokens",
            JSON,
            None,
        ),
        page("/api/", "core", "getCoreAPIVersions", "list the versions of the core group", OBJECT, meta("APIVersions")),
        page("/apis/", "apis", "getAPIVersions", "list the groups and their versions", OBJECT, meta("APIGroupList")),
        page(
            "/openid/v1/jwks/",
            "openid",
            "getServiceAccountIssuerOpenIDKeyset",
            "read the public keys of service account tokens",
            &["application/jwk-set+json"],
            None,
        ),
        page(
            "/version/",
            "version",
            "getCodeVersion",
            "read the server's version",
            JSON,
            Some("io.k8s.apimachinery.pkg.version.Info".into()),
        ),
    ];
    let mut groups: Vec<&str> = openapi::groups(catalog).into_iter().map(|(group, _)| group).collect();
    groups.dedup();
    let of_groups = groups.into_iter().filter(|group| !group.is_empty()).map(move |group| {
        let tag = short_group(group);
        let operation = format!("get{}APIGroup", id(&tag));
        page(&format!("/apis/{group}/"), &tag, &operation, "read which versions a group has", OBJECT, meta("APIGroup"))
    });
    fixed.into_iter().chain(of_groups)
}

impl Root {
    /// The path of the page's document: `apis/apps`.
    pub(super) fn document(&self) -> String {
        let inner = self.path.strip_prefix('/').and_then(|path| path.strip_suffix('/'));
        inner.unwrap_or(&self.path).to_owned()
    }

    /// The page's path and path item.
    pub(super) fn item(&self) -> (String, Value) {
        let schema = match &self.response_type {
            Some(name) => openapi::reference(name),
            None => json!({ "type": "string" }),
        };
        let read = json!({
            "tags": [self.tag], "description": self.about, "operationId": self.operation,
            "responses": responses(&[("200", "OK")], self.media, &schema),
        });
        (self.path.clone(), json!({ "get": read }))
    }
}
