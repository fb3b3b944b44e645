//! A node's requests about itself: its Node and its Lease.

use http::header::CONTENT_TYPE;
use http::{Method, Request};
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(super) const JSON: &str = "application/json";
pub(super) const MERGE: &str = "application/merge-patch+json";
pub(super) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Sends them.
#[derive(Clone)]
pub(super) struct Requests(pub(super) Client);

impl Requests {
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        content_type: &'static str,
        body: &Value,
    ) -> Result<T, kube::Error> {
        self.send(Method::POST, path, content_type, body).await
    }

    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        content_type: &'static str,
        body: &Value,
    ) -> Result<T, kube::Error> {
        self.send(Method::PATCH, path, content_type, body).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: &Value,
    ) -> Result<T, kube::Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, content_type)
            .body(body.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.0.request(request).await
    }
}

/// The status code of an answer that says no; 0 where there was no answer.
pub(super) fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}
