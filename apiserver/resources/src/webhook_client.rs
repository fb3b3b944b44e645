//! Defaults and validation of a webhook's client configuration: exactly one of URL and Service.

use serde_json::Value;

use crate::field::{ErrorList, Path, quoted};
use crate::read::{default_to, get, has, int, object_mut, text};
use crate::rules;

const FORM: &str = "; desired format: https://host[/path]";

/// Defaults of a reference to a Service.
pub(crate) fn default_client(client: &mut Value) {
    if has(client, "service") {
        default_to(object_mut(client, "service"), "port", 443);
    }
}

/// Exactly one of `url` and `service`.
pub(crate) fn validate_client(errors: &mut ErrorList, client: &Value, path: &Path<'_>) {
    match (has(client, "url"), has(client, "service")) {
        (true, false) => url(errors, text(client, "url"), &path.child("url")),
        (false, true) => service(errors, get(client, "service"), &path.child("service")),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

fn url(errors: &mut ErrorList, url: &str, path: &Path<'_>) {
    if let Some(why) = go_url_error(url) {
        return errors.required(path, &format!("url must be a valid URL: {why}{FORM}"));
    }
    let (before, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (before, query) = before.split_once('?').unwrap_or((before, ""));
    let (scheme, rest) = before.split_once(':').unwrap_or(("", before));
    let rest = rest.strip_prefix("//").unwrap_or("");
    let authority = rest.split('/').next().unwrap_or("");
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if !scheme.eq_ignore_ascii_case("https") {
        errors.invalid(path, scheme.to_lowercase(), &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        errors.invalid(path, host, &format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        errors.invalid(path, user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        errors.invalid(path, fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        errors.invalid(path, query, "query parameters are not permitted in the URL");
    }
}

/// Go's error about a URL whose first segment looks like a scheme but is none.
fn go_url_error(url: &str) -> Option<String> {
    let reference = url.split(['#', '?']).next().unwrap_or("");
    let scheme_ends = reference.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
    let has_scheme = reference.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme_ends.is_some_and(|at| reference[at..].starts_with(':'));
    if reference.starts_with(':') {
        return Some(format!("parse {}: missing protocol scheme", quoted(url)));
    }
    let colon = !has_scheme && reference.split('/').next().is_some_and(|first| first.contains(':'));
    colon.then(|| format!("parse {}: first path segment in URL cannot contain colon", quoted(url)))
}

fn service(errors: &mut ErrorList, service: &Value, path: &Path<'_>) {
    for field in ["name", "namespace"] {
        if text(service, field).is_empty() {
            errors.required(&path.child(field), "");
        }
    }
    let port = int(service, "port").unwrap_or(0);
    let wrong = rules::port_number(port);
    if !wrong.is_empty() {
        errors.invalid(&path.child("port"), port, &format!("port is not valid: {}", wrong.join(", ")));
    }
    let (way, at) = (text(service, "path"), path.child("path"));
    if matches!(way, "" | "/") {
        return;
    }
    if way == "//" {
        return errors.invalid(&at, way, "segment[0] may not be empty");
    }
    if !way.starts_with('/') {
        errors.invalid(&at, way, "must start with a '/'");
    }
    // Upstream cuts the first byte, which may leave half a character.
    let mut rest = way.chars();
    let half = rest.next().filter(|first| !first.is_ascii()).map_or("", |_| "\u{fffd}");
    let rest = &format!("{half}{}", rest.as_str());
    for (index, segment) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if segment.is_empty() {
            errors.invalid(&at, way, &format!("segment[{index}] may not be empty"));
            continue;
        }
        for wrong in rules::dns_subdomain(segment) {
            errors.invalid(&at, way, &format!("segment[{index}]: {wrong}"));
        }
    }
}
