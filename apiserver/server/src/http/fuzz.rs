//! Fuzz targets for the request parts that are parsed before authentication: query, path, Accept, timeout.

use bolero::{ValueGenerator, check, produce};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::deadline::{self, REQUEST_TIMEOUT};
use super::info::RequestInfo;
use super::negotiate::{Media, Offers, Produces, negotiate, route_accepts};
use apiserver_resources::query::{Query, parse_integer};

/// Generates texts from fragments, so that they pass the first check.
fn pieces(of: &'static [&'static str]) -> impl ValueGenerator<Output = String> {
    produce::<Vec<u8>>().map_gen(move |bytes| bytes.iter().map(|byte| of[usize::from(*byte) % of.len()]).collect())
}

#[test]
fn queries_survive_encoding() {
    check!().with_type::<Vec<(String, String)>>().for_each(|pairs| {
        let text: Vec<String> = pairs
            .iter()
            .map(|(key, value)| {
                let [key, value] = [key, value].map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
                format!("{key}={value}")
            })
            .collect();
        let query = Query::parse(&text.join("&"));
        for (key, _) in pairs {
            let given = pairs.iter().filter(|(other, _)| other == key).map(|(_, value)| value.as_str());
            assert!(query.all(key).eq(given));
        }
    });
}

#[test]
fn any_query_is_read() {
    let of = &["a", "=", "&", ";", "%", "%4", "%41", "%ff", "+", "limit", "-", "9", "\u{e9}", "999999999999"];
    check!().with_generator(pieces(of)).for_each(|text| {
        let query = Query::parse(text);
        let _ = (query.flag("a"), query.integer("limit"));
        // The value equals the standard library's; only the error text is Go's.
        assert_eq!(parse_integer(text).ok(), text.parse().ok());
    });
}

#[test]
fn any_path_is_about_something() {
    let of = &[
        "/",
        "api",
        "apis",
        "v1",
        "apps",
        "namespaces",
        "pods",
        "watch",
        "proxy",
        "status",
        "finalize",
        "a",
        "%2f",
        "..",
        "%",
        "\u{e9}",
    ];
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    check!().with_generator((pieces(of), 0..methods.len())).for_each(|(path, method)| {
        let query = Query::parse("watch=1&fieldSelector=metadata.name%3Dx");
        let info = RequestInfo::read(methods[*method], path, &query);
        if !info.is_resource {
            assert!(info.resource.is_empty() && info.name.is_empty() && info.namespace.is_empty());
            return;
        }
        // Each part occurs in the decoded path, except a name that the field selector gives.
        for part in [&info.group, &info.version, &info.namespace, &info.resource, &info.subresource] {
            assert!(part.is_empty() || info.path.split('/').any(|segment| segment == part), "{part} of {}", info.path);
        }
    });
}

#[test]
fn any_accept_header_is_agreed_on_or_refused() {
    let of = &[
        "application/json",
        "application/yaml",
        "*/*",
        ",",
        ";",
        "as=",
        "Table",
        "g=meta.k8s.io",
        "v=v1",
        "q=0.5",
        "q=nan",
        "stream=watch",
        "\"",
        " ",
        "pretty=1",
        "text/plain",
        "=",
    ];
    check!().with_generator(pieces(of)).for_each(|accept| {
        for offers in [Offers::OBJECTS, Offers::NO_TABLES, Offers::PLAIN, Offers::WATCH] {
            let Ok(form) = negotiate(Some(accept), &Query::default(), "curl", offers) else { continue };
            assert!(form.media == Media::Json || accept.contains("yaml") || accept.contains("protobuf"));
            assert!(form.transform.is_none() || accept.contains("as="));
            assert!(offers != Offers::WATCH || form.media != Media::Yaml);
        }
        let _ = route_accepts(Some(accept), Produces::Lists);
    });
}

#[test]
fn no_timeout_is_longer_than_the_servers() {
    let of = &["1", "9", ".", "h", "m", "s", "ms", "us", "µs", "ns", "-", "+", "0", "e", "999999999999999999999"];
    check!().with_generator(pieces(of)).for_each(|text| {
        let query = Query::parse(&format!("timeout={}", utf8_percent_encode(text, NON_ALPHANUMERIC)));
        assert!(deadline::of(&query).is_ok_and(|time| time <= REQUEST_TIMEOUT) || deadline::of(&query).is_err());
    });
}
