//! Responses that are no resources: discovery, versions, health, metrics, OpenAPI, the index.

use std::sync::Arc;

use axum::body::Body;
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use machinery_api::ApiError;
use serde_json::{Value, json};

use super::handle::{RequestContext, RequestHandler};
use super::negotiate::{self, Form, Media, Offers, Produces};
use super::route::Route;
use super::{health, prometheus_text, respond};
use apiserver_auth::jwks;
use apiserver_catalog::Catalog;
use apiserver_catalog::discovery::{self, AGGREGATED, AGGREGATED_PROTOBUF, AGGREGATED_YAML};
use apiserver_catalog::order::InOrder;

impl RequestHandler {
    /// Serves a route that is no resource.
    pub(super) fn serve_page(
        self: &Arc<Self>,
        ctx: &RequestContext<'_>,
        method: &str,
        page: Route,
    ) -> Result<Response<Body>, ApiError> {
        let head = &ctx.head;
        let ordered = |form: Form, value: &Value| {
            respond::bytes(200, form.media.as_str(), respond::serialized(form, &InOrder::of(value)))
        };
        let document = |value: &Value| {
            let form = head.form(Offers::PLAIN)?;
            Ok(match form.media {
                Media::Json => ordered(form, value),
                // Upstream sorts the keys of its YAML.
                Media::Yaml | Media::Protobuf => respond::value(200, form, value),
            })
        };
        let accept = head.accept();
        let accepts = |produces: Produces| negotiate::route_accepts(accept.as_deref(), produces);
        let routed = |value: &Value| accepts(Produces::Objects).and_then(|()| document(value));
        match page {
            Route::Health(root, one) => {
                let checks = self.checks(&root);
                if one.is_none() {
                    self.slis.count(&root, &checks, head.query);
                }
                let mut response = health::answer(&root, one.as_deref(), &checks, head.query);
                if method == "HEAD" {
                    *response.body_mut() = Body::empty();
                }
                Ok(response)
            }
            Route::Metrics => Ok(respond::bytes(200, prometheus_text::MEDIA_TYPE, self.deps.metrics.page())),
            Route::Slis => Ok(respond::bytes(200, health::SLIS_MEDIA_TYPE, self.slis.text())),
            Route::Version => accepts(Produces::Json).map(|()| ordered(Form::PRETTY, &discovery::version())),
            Route::Index => Ok(respond::value(200, Form::PRETTY, &json!({"paths": self.paths(ctx.catalog)}))),
            Route::Core => match self.aggregated(ctx, true) {
                Some(response) => Ok(response),
                None => routed(&ctx.catalog.discovery().versions()),
            },
            Route::Groups => match self.aggregated(ctx, false) {
                Some(response) => Ok(response),
                None => document(&ctx.catalog.discovery().groups()),
            },
            Route::Group(group) => document(&ctx.catalog.discovery().group(&group).ok_or(ApiError::NoSuchResource)?),
            Route::Resources(group, version) => {
                routed(&ctx.catalog.discovery().resources(&group, &version).ok_or(ApiError::NoSuchResource)?)
            }
            Route::OpenApiV2 => Ok(self.open_api_v2(ctx)),
            Route::OpenApiIndex | Route::OpenApi(_) => Ok(self.open_api(ctx, page)),
            Route::Issuer => {
                accepts(Produces::Json)?;
                let mut response = ordered(Form::JSON, &jwks::configuration(&self.deps.address));
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(jwks::CACHE_CONTROL));
                Ok(response)
            }
            Route::Keys => {
                accepts(Produces::KeySet)?;
                let mut response = ordered(Form::JSON, &jwks::keys(self.deps.authenticator.key()));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(jwks::KEYS_MEDIA_TYPE));
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(jwks::CACHE_CONTROL));
                Ok(response)
            }
            Route::File | Route::Resource(_) => Err(ApiError::NoSuchResource),
        }
    }

    /// Serves a file beside the API.
    pub(super) fn serve_file(&self, ctx: &RequestContext<'_>) -> Response<Body> {
        match &self.deps.files {
            Some(files) => files.respond(ctx.head.method, &ctx.info.path, ctx.head.headers),
            None => respond::page_not_found(),
        }
    }

    /// Aggregated discovery, if the client accepts it; it takes precedence at any position in Accept.
    fn aggregated(&self, ctx: &RequestContext<'_>, core: bool) -> Option<Response<Body>> {
        // Upstream serves aggregated discovery only without the trailing slash.
        if ctx.head.uri.path() == "/apis/" {
            return None;
        }
        let accept = ctx.head.accept()?;
        let media = accept.split(',').find_map(|clause| {
            let mut pieces = clause.split(';').map(str::trim);
            let media = match pieces.next() {
                Some("application/json" | "*/*") => Media::Json,
                Some("application/yaml") => Media::Yaml,
                Some("application/vnd.kubernetes.protobuf") => Media::Protobuf,
                _ => return None,
            };
            let params: Vec<&str> = pieces.collect();
            let wanted =
                ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"].iter().all(|p| params.contains(p));
            wanted.then_some(media)
        })?;
        let found = ctx.catalog.discovery().aggregated(core);
        let known = ctx.head.headers.get(IF_NONE_MATCH).is_some_and(|t| t.as_bytes() == found.tag.as_bytes());
        let mut response = match media {
            _ if known => respond::empty(304),
            Media::Json => respond::bytes(200, AGGREGATED, found.json.clone()),
            Media::Protobuf => respond::bytes(200, AGGREGATED_PROTOBUF, found.protobuf.clone()),
            Media::Yaml => {
                let document: Value = serde_json::from_slice(&found.json).unwrap_or_default();
                let mut response = respond::value(200, Form { media, ..Form::JSON }, &document);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(AGGREGATED_YAML));
                response
            }
        };
        let headers = response.headers_mut();
        if let Ok(tag) = HeaderValue::from_str(&found.tag) {
            headers.insert(ETAG, tag);
        }
        headers.insert(VARY, HeaderValue::from_static("Accept"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
        Some(response)
    }

    fn paths(&self, catalog: &Catalog) -> Vec<String> {
        let mut paths: Vec<String> = [
            "/.well-known/openid-configuration",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/",
            "/healthz",
            "/livez",
            "/metrics",
            "/metrics/slis",
            "/openapi/v2",
            "/openapi/v3",
            "/openapi/v3/",
            "/openid/v1/jwks",
            "/readyz",
            "/version",
        ]
        .map(Into::into)
        .into();
        paths.extend(catalog.discovery().group_names().map(|g| format!("/apis/{g}")));
        let versions = catalog.discovery().group_versions().filter(|(g, _)| !g.is_empty());
        paths.extend(versions.map(|(g, v)| format!("/apis/{g}/{v}")));
        for root in ["/healthz", "/livez", "/readyz"] {
            paths.extend(self.checks(root).iter().map(|(name, _)| format!("{root}/{name}")));
        }
        paths.sort();
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from kube-apiserver v1.36.
    #[test]
    fn the_issuers_configuration_is_written_in_upstreams_order() {
        let text = serde_json::to_string(&InOrder::of(&jwks::configuration("a:1"))).unwrap();
        let keys: Vec<&str> = text.split("\":").filter_map(|before| before.rsplit('"').next()).collect();
        let issuer =
            "issuer jwks_uri response_types_supported subject_types_supported id_token_signing_alg_values_supported";
        assert_eq!(keys[..5].join(" "), issuer);
    }
}
