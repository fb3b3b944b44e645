//! Cacheable documents: a client that has the current one gets 304 without a body.

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;

use super::{Server, admin, server};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

impl Server {
    /// The code, the ETag and the body's length, for a client that has the document with this ETag.
    async fn page(&self, path: &str, tag: Option<&str>) -> (u16, String, usize) {
        let accept = if path.starts_with("/openapi") { "application/json" } else { AGGREGATED };
        let mut request = Request::get(path).header("accept", accept);
        if let Some(tag) = tag {
            request = request.header("if-none-match", tag);
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(admin());
        let response = self.send(request).await;
        let code = response.status().as_u16();
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        (code, tag, response.into_body().collect().await.unwrap().to_bytes().len())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_page_is_304() {
    let server = server().await;
    for path in ["/openapi/v3/api/v1", "/openapi/v3/apis/apps/v1", "/api", "/apis"] {
        let (code, tag, length) = server.page(path, None).await;
        assert!(code == 200 && length > 100, "{path}: {code}, {length} bytes");
        assert_eq!(server.page(path, Some(&tag)).await, (304, tag.clone(), 0), "{path}");
        assert_eq!(server.page(path, Some("\"OLD\"")).await, (200, tag, length), "{path}");
    }
}
