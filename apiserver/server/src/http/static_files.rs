//! Files that are part of the program, such as the dashboard's: compressed once, at the first request, with a tag by content and
//! a strict content security policy. Pure: a response depends on method, path and headers alone.

use std::borrow::Cow;
use std::io::Write as _;
use std::sync::OnceLock;

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    ETAG, HeaderName, HeaderValue, IF_NONE_MATCH, LOCATION, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};

use super::respond;

/// Only files of this server, and no frame of another page around them.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Headers of each response.
const HEADERS: [(HeaderName, &str); 5] = [
    (CACHE_CONTROL, "no-cache"),
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];
/// Bytes of the hash in a tag.
const TAG_BYTES: usize = 16;

/// A file of the program.
#[derive(Debug, Clone)]
pub struct StaticFile {
    /// Its path below the prefix; `index.html` is also served at the prefix itself.
    pub name: Cow<'static, str>,
    /// Its media type.
    pub media: &'static str,
    /// Its content.
    pub content: Bytes,
}

/// A file with what its responses need.
struct PackedFile {
    file: StaticFile,
    compressed: Bytes,
    tag: HeaderValue,
}

/// The files below a path prefix.
pub struct StaticFiles {
    /// `/NAME`, without a slash at its end.
    prefix: &'static str,
    files: Vec<StaticFile>,
    /// Made at the first request, as a start shouldn't wait for it.
    packed: OnceLock<Vec<PackedFile>>,
}

impl std::fmt::Debug for StaticFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StaticFiles").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl StaticFiles {
    /// `prefix`: a path such as `/dashboard`.
    #[must_use]
    pub fn new(prefix: &'static str, files: impl IntoIterator<Item = StaticFile>) -> Self {
        Self { prefix, files: files.into_iter().collect(), packed: OnceLock::new() }
    }

    fn packed(&self) -> &[PackedFile] {
        let pack = |file: &StaticFile| PackedFile {
            compressed: compress(&file.content),
            tag: tag(&file.content),
            file: file.clone(),
        };
        self.packed.get_or_init(|| self.files.iter().map(pack).collect())
    }

    /// Whether a path is the prefix or below it.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        is_below(self.prefix, path)
    }

    /// The response to a request for a covered path.
    #[must_use]
    pub fn respond(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        let mut response = self.response(method, path, headers);
        if method == Method::HEAD {
            let length = http_body::Body::size_hint(response.body()).exact();
            *response.body_mut() = Body::empty();
            if let Some(length) = length {
                response.headers_mut().insert(CONTENT_LENGTH, length.into());
            }
        }
        for (name, value) in HEADERS {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn response(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = respond::text(405, "405 method not allowed\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let name = match path.strip_prefix(self.prefix) {
            Some("") => return self.redirect(),
            Some("/") => "index.html",
            rest => rest.and_then(|rest| rest.strip_prefix('/')).unwrap_or_default(),
        };
        match self.packed().iter().find(|packed| packed.file.name == name) {
            Some(packed) => packed.respond(headers),
            None => respond::page_not_found(),
        }
    }

    /// To the prefix with a slash, so that relative paths of the page are below it.
    fn redirect(&self) -> Response<Body> {
        let mut response = respond::empty(StatusCode::PERMANENT_REDIRECT.as_u16());
        if let Ok(location) = HeaderValue::try_from(format!("{}/", self.prefix)) {
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}

impl PackedFile {
    fn respond(&self, headers: &HeaderMap) -> Response<Body> {
        let mut response = if is_current(headers, &self.tag) {
            respond::empty(StatusCode::NOT_MODIFIED.as_u16())
        } else if accepts_gzip(headers) {
            let mut response = respond::bytes(200, self.file.media, self.compressed.clone());
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        } else {
            respond::bytes(200, self.file.media, self.file.content.clone())
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.file.media));
        response.headers_mut().insert(ETAG, self.tag.clone());
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        response
    }
}

/// Whether a path is `prefix`, such as `/dashboard`, or below it.
#[must_use]
pub fn is_below(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A weak tag: the compressed and the plain form share it.
fn tag(content: &[u8]) -> HeaderValue {
    let hash = Sha256::digest(content);
    let digits: String = hash.iter().take(TAG_BYTES).map(|byte| format!("{byte:02x}")).collect();
    // Hexadecimal digits are valid in a header.
    HeaderValue::try_from(format!("W/\"{digits}\"")).unwrap_or(HeaderValue::from_static("W/\"\""))
}

/// Whether the client has the file (RFC 9110, 13.1.2).
fn is_current(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.as_bytes() == tag.as_bytes())
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

fn compress(content: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory doesn't fail.
    let _ = encoder.write_all(content);
    encoder.finish().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http_body_util::BodyExt as _;

    use super::*;

    fn files() -> StaticFiles {
        let file = |name, media, content: &str| StaticFile {
            name: Cow::Borrowed(name),
            media,
            content: content.to_owned().into(),
        };
        let script = "let a = 1;\n".repeat(100);
        StaticFiles::new(
            "/dashboard",
            [file("index.html", "text/html; charset=utf-8", "<html>"), file("app.js", "text/javascript", &script)],
        )
    }

    async fn answer(method: Method, path: &str, headers: &[(HeaderName, &str)]) -> (u16, HeaderMap, Vec<u8>) {
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::try_from(*value).unwrap())).collect();
        let (parts, body) = files().respond(&method, path, &headers).into_parts();
        (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn a_file_has_its_headers() {
        let (code, headers, body) = answer(Method::GET, "/dashboard/", &[]).await;
        assert_eq!((code, body.as_slice()), (200, b"<html>".as_slice()));
        assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(
            (&headers[CACHE_CONTROL], &headers[X_CONTENT_TYPE_OPTIONS]),
            (&"no-cache".parse().unwrap(), &"nosniff".parse().unwrap())
        );
        assert!(
            headers[CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("default-src 'none'; script-src 'self';")
        );
        assert_eq!(headers["cross-origin-opener-policy"], "same-origin");
        assert_eq!(headers[REFERRER_POLICY], "no-referrer");
        assert_eq!(answer(Method::GET, "/dashboard/index.html", &[]).await.2, body);
        let tag = headers[ETAG].to_str().unwrap().to_owned();
        let (code, headers, body) =
            answer(Method::GET, "/dashboard/", &[(IF_NONE_MATCH, &format!("\"x\", {tag}"))]).await;
        assert_eq!((code, body.len()), (304, 0));
        assert!(headers.contains_key(ETAG) && headers.contains_key(CONTENT_SECURITY_POLICY));
    }

    #[tokio::test]
    async fn a_client_chooses_the_encoding() {
        let plain = answer(Method::GET, "/dashboard/app.js", &[(ACCEPT_ENCODING, "br, gzip;q=0")]).await;
        assert!(!plain.1.contains_key(CONTENT_ENCODING) && plain.2.starts_with(b"let a"));
        let packed = answer(Method::GET, "/dashboard/app.js", &[(ACCEPT_ENCODING, "br, gzip")]).await;
        assert_eq!(
            (&packed.1[CONTENT_ENCODING], &packed.1[VARY]),
            (&"gzip".parse().unwrap(), &"Accept-Encoding".parse().unwrap())
        );
        assert!(packed.2.len() < plain.2.len() / 5);
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(packed.2.as_slice()).read_to_end(&mut text).unwrap();
        assert_eq!((text, &packed.1[ETAG]), (plain.2, &plain.1[ETAG]));
        let head = answer(Method::HEAD, "/dashboard/app.js", &[]).await;
        assert_eq!((head.0, head.2.len(), &head.1[CONTENT_LENGTH]), (200, 0, &"1100".parse().unwrap()));
    }

    #[tokio::test]
    async fn other_paths_and_methods_have_no_file() {
        let (code, headers, _) = answer(Method::GET, "/dashboard", &[]).await;
        assert_eq!((code, &headers[LOCATION]), (308, &"/dashboard/".parse().unwrap()));
        for path in ["/dashboard/none", "/dashboard/../app.js", "/dashboard/%61pp.js", "/dashboardapp.js"] {
            let (code, headers, _) = answer(Method::GET, path, &[]).await;
            assert!(code == 404 && headers.contains_key(CONTENT_SECURITY_POLICY), "{path}: {code}");
        }
        let (code, headers, _) = answer(Method::POST, "/dashboard/", &[]).await;
        assert_eq!((code, &headers[ALLOW]), (405, &"GET, HEAD".parse().unwrap()));
        let files = files();
        assert!(files.covers("/dashboard") && files.covers("/dashboard/x"));
        assert!(!files.covers("/dashboards") && !files.covers("/api"));
    }
}
