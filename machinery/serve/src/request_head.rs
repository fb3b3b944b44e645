//! The head of a request that this process sends: in the form of HTTP/1.1, or of HTTP/2. Pure.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Uri, Version};
use http_body::Body;

use crate::framing::{self, WantsUpgrade};

/// Rewrites a request for HTTP/1.1: path in the request line, authority in `Host` (RFC 9112 §3.2), framing by us.
///
/// # Errors
/// If the request's own target can't be written so.
pub fn to_http1<B: Body>(request: &mut Request<B>, upgrade: Option<WantsUpgrade>) -> Result<(), http::Error> {
    framing::strip_hop_by_hop(request.headers_mut());
    if let Some(authority) = request.uri().authority().cloned()
        && !request.headers().contains_key(HOST)
    {
        request.headers_mut().insert(HOST, HeaderValue::try_from(authority.as_str())?);
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::try_from(path)?;
    *request.version_mut() = Version::HTTP_11;
    if !request.body().is_end_stream()
        && request.body().size_hint().exact().is_none()
        && matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.headers().contains_key(CONTENT_LENGTH)
    {
        // hyper assumes no body for such methods and would drop it.
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let headers = request.headers_mut();
    if let Some(WantsUpgrade(protocol)) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    } else if headers.contains_key(TE) {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    Ok(())
}

/// Rewrites a request for HTTP/2: authority in the target, no `Host`.
///
/// # Errors
/// If the request's own target can't be written so.
pub fn to_http2<B>(request: &mut Request<B>) -> Result<(), http::Error> {
    framing::strip_hop_by_hop(request.headers_mut());
    let host = request.headers_mut().remove(HOST);
    let authority = match (host, request.uri().authority()) {
        (Some(host), _) => host.as_bytes().to_vec(),
        (None, Some(authority)) => authority.as_str().as_bytes().to_vec(),
        (None, None) => Vec::new(),
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::builder().scheme("http").authority(authority.as_slice()).path_and_query(path).build()?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;

    use super::*;

    #[test]
    fn requests_take_the_form_of_their_version() {
        let request = || Request::get("http://api.example:8080/a?b=c").body(Empty::<bytes::Bytes>::new()).unwrap();
        let mut http1 = request();
        to_http1(&mut http1, None).unwrap();
        assert_eq!(
            (http1.uri().to_string().as_str(), http1.headers()[HOST].to_str().unwrap()),
            ("/a?b=c", "api.example:8080")
        );
        let mut http2 = request();
        http2.headers_mut().insert(HOST, HeaderValue::from_static("own.example"));
        to_http2(&mut http2).unwrap();
        assert_eq!((http2.uri().to_string().as_str(), http2.headers().len()), ("http://own.example/a?b=c", 0));
    }
}
