//! Maps a path to its endpoint. Pure: repository names contain slashes, so paths are parsed from their end.

use percent_encoding::percent_decode_str;

use crate::reference::is_repository;

/// Clients limit host and name together to 255 bytes; the name alone is never longer.
const NAME_BYTES_MAX: usize = 255;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    Blob {
        name: &'a str,
        digest: String,
    },
    Manifest {
        name: &'a str,
        reference: String,
    },
    Uploads {
        name: &'a str,
    },
    Upload {
        name: &'a str,
        id: &'a str,
    },
    Tags {
        name: &'a str,
    },
    Referrers {
        name: &'a str,
        digest: String,
    },
}

/// Why a path has no endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RouteError {
    NotFound,
    NameInvalid,
}

pub(super) fn route(path: &str) -> Result<Route<'_>, RouteError> {
    let path = path.strip_prefix("/v2/").ok_or(RouteError::NotFound)?;
    match path {
        "" => return Ok(Route::Base),
        "_catalog" => return Ok(Route::Catalog),
        _ => {}
    }
    let (name, route) = if let Some(name) = path.strip_suffix("/tags/list") {
        (name, Route::Tags { name })
    } else if let Some(name) = path.strip_suffix("/blobs/uploads/").or_else(|| path.strip_suffix("/blobs/uploads")) {
        (name, Route::Uploads { name })
    } else if let Some((name, last)) = path.rsplit_once('/') {
        let decoded = || percent_decode_str(last).decode_utf8_lossy().into_owned();
        if let Some(name) = name.strip_suffix("/blobs/uploads") {
            (name, Route::Upload { name, id: last })
        } else if let Some(name) = name.strip_suffix("/blobs") {
            (name, Route::Blob { name, digest: decoded() })
        } else if let Some(name) = name.strip_suffix("/manifests") {
            (name, Route::Manifest { name, reference: decoded() })
        } else if let Some(name) = name.strip_suffix("/referrers") {
            (name, Route::Referrers { name, digest: decoded() })
        } else {
            return Err(RouteError::NotFound);
        }
    } else {
        return Err(RouteError::NotFound);
    };
    if name.len() > NAME_BYTES_MAX || !is_repository(name) {
        return Err(RouteError::NameInvalid);
    }
    Ok(route)
}

/// Returns a decoded parameter of a query.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned())
    })
}

/// Parses a `Range` header with one range of bytes, inclusive; `None` if the whole content is to be served instead.
pub(super) fn byte_range(value: &str, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(range) = value.strip_prefix("bytes=") else { return Ok(None) };
    // Several ranges would need a multipart response: serving the whole content instead is allowed.
    let Some((start, end)) = range.split_once('-').filter(|_| !range.contains(',')) else { return Ok(None) };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (start.trim(), end.trim()) {
        ("", suffix) => match number(suffix) {
            Some(0) => Err(()),
            Some(suffix) if size > 0 => Ok(Some((size.saturating_sub(suffix), size - 1))),
            Some(_) => Err(()),
            None => Ok(None),
        },
        (start, end) => {
            let Some(start) = number(start) else { return Ok(None) };
            let end = if end.is_empty() { Some(u64::MAX) } else { number(end) };
            match end {
                Some(end) if end < start => Ok(None),
                Some(_) if start >= size => Err(()),
                Some(end) => Ok(Some((start, end.min(size - 1)))),
                None => Ok(None),
            }
        }
    }
}

/// Parses a chunk's `Content-Range`: `START-END`, inclusive (some clients write `bytes START-END/TOTAL`).
pub(super) fn chunk_range(value: &str) -> Option<(u64, u64)> {
    let value = value.trim().strip_prefix("bytes ").unwrap_or(value.trim());
    let (start, end) = value.split('/').next()?.split_once('-')?;
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        assert_eq!(route("/v2/"), Ok(Route::Base));
        assert_eq!(route("/v2/_catalog"), Ok(Route::Catalog));
        assert_eq!(route("/v2/a/b/tags/list"), Ok(Route::Tags { name: "a/b" }));
        assert_eq!(route("/v2/blobs/blobs/uploads/"), Ok(Route::Uploads { name: "blobs" }));
        assert_eq!(route("/v2/a/blobs/uploads/1-2"), Ok(Route::Upload { name: "a", id: "1-2" }));
        let digest = "sha256:0a".to_owned();
        assert_eq!(route("/v2/a/b/blobs/sha256%3A0a"), Ok(Route::Blob { name: "a/b", digest: digest.clone() }));
        assert_eq!(route("/v2/a/referrers/sha256:0a"), Ok(Route::Referrers { name: "a", digest }));
        assert_eq!(
            route("/v2/manifests/manifests/v1"),
            Ok(Route::Manifest { name: "manifests", reference: "v1".into() })
        );
        assert_eq!(route("/v2/A/tags/list"), Err(RouteError::NameInvalid));
        assert_eq!(route("/v2/../../etc/tags/list"), Err(RouteError::NameInvalid));
        assert_eq!(route("/v2/x"), Err(RouteError::NotFound));
        assert_eq!(route("/"), Err(RouteError::NotFound));
    }

    #[test]
    fn ranges() {
        assert_eq!(byte_range("bytes=0-3", 10), Ok(Some((0, 3))));
        assert_eq!(byte_range("bytes=4-", 10), Ok(Some((4, 9))));
        assert_eq!(byte_range("bytes=-3", 10), Ok(Some((7, 9))));
        assert_eq!(byte_range("bytes=5-99", 10), Ok(Some((5, 9))));
        assert_eq!(byte_range("bytes=10-", 10), Err(()));
        assert_eq!(byte_range("bytes=0-", 0), Err(()));
        assert_eq!(byte_range("bytes=0-1,3-4", 10), Ok(None));
        assert_eq!(byte_range("lines=0-1", 10), Ok(None));
        assert_eq!(chunk_range("0-9"), Some((0, 9)));
        assert_eq!(chunk_range("bytes 5-9/10"), Some((5, 9)));
        assert_eq!(chunk_range("9-5"), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(path in "\\PC{0,60}", value in "[bytes=0-9, ]{0,30}", size in any::<u64>()) {
            let _ = route(&path);
            let _ = route(&format!("/v2/{path}"));
            if let Ok(Some((start, end))) = byte_range(&value, size) {
                prop_assert!(start <= end && end < size);
            }
            let _ = chunk_range(&value);
        }
    }
}
