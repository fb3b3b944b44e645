//! `extenders` of a configuration file: upstream's fields, defaults and checks.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

use super::errors::{Errors, Path};
use crate::extender::{ExtenderConfig, TlsConfig};

/// The default timeout of an extender.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum timeout, whatever the file says: a pod holds a slot for that long.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ExtenderFile {
    url_prefix: String,
    filter_verb: String,
    preempt_verb: String,
    prioritize_verb: String,
    weight: i64,
    bind_verb: String,
    #[serde(rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Option<TlsFile>,
    #[serde(rename = "httpTimeout")]
    http_timeout: Option<String>,
    node_cache_capable: bool,
    managed_resources: Option<Vec<ManagedResource>>,
    ignorable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TlsFile {
    insecure: bool,
    server_name: String,
    cert_file: String,
    key_file: String,
    ca_file: String,
    cert_data: String,
    key_data: String,
    ca_data: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ManagedResource {
    name: String,
    ignored_by_scheduler: bool,
}

/// The extenders, ignorable ones last, and the resources that `NodeResourcesFit` leaves to them.
pub(super) fn read(given: Vec<ExtenderFile>, errors: &mut Errors) -> (Vec<ExtenderConfig>, BTreeSet<String>) {
    let root = Path::new("extenders");
    let (mut names, mut ignored) = (BTreeSet::new(), BTreeSet::new());
    let (mut made, mut binders) = (Vec::new(), 0);
    for (at, extender) in given.into_iter().enumerate() {
        let path = root.index(at);
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            errors.invalid(&path.child("weight"), extender.weight, "must have a positive weight applied to it");
        }
        binders += usize::from(!extender.bind_verb.is_empty());
        for (nth, resource) in extender.managed_resources.iter().flatten().enumerate() {
            let path = path.child("managedResources").index(nth).child("name");
            if !is_extended(&resource.name) {
                errors.invalid_text(&path, &resource.name, "is an invalid extended resource name");
            }
            if !names.insert(resource.name.clone()) {
                errors.invalid_text(&path, &resource.name, "duplicate extender managed resource name");
            }
            if resource.ignored_by_scheduler {
                ignored.insert(resource.name.clone());
            }
        }
        // Upstream reports these errors at the first request.
        if extender.url_prefix.parse::<http::Uri>().map_or(true, |url| url.host().is_none() || url.scheme().is_none()) {
            errors.invalid_text(
                &path.child("urlPrefix"),
                &extender.url_prefix,
                "must be a URL with a scheme and a host",
            );
        }
        made.push(extender.made(&path, errors));
    }
    if binders > 1 {
        let found = format!("found {binders} extenders implementing bind");
        errors.invalid_text(&root, &found, "only one extender can implement bind");
    }
    made.sort_by_key(|extender| extender.ignorable);
    (made, ignored)
}

impl ExtenderFile {
    fn made(self, path: &Path, errors: &mut Errors) -> ExtenderConfig {
        let timeout = match self.http_timeout.as_deref().map(str::parse::<SignedDuration>) {
            None => TIMEOUT,
            Some(Ok(given)) if given.is_zero() => TIMEOUT,
            Some(Ok(given)) if given.is_positive() => Duration::try_from(given).unwrap_or(TIMEOUT_MAX).min(TIMEOUT_MAX),
            Some(_) => {
                let text = self.http_timeout.unwrap_or_default();
                errors.invalid_text(&path.child("httpTimeout"), &text, "must be a duration, such as 5s");
                TIMEOUT
            }
        };
        let TlsFile { insecure, server_name, cert_file, key_file, ca_file, cert_data, key_data, ca_data } =
            self.tls_config.unwrap_or_default();
        let unknown_authority = self.enable_https && ca_file.is_empty() && ca_data.is_empty();
        if insecure && !(ca_file.is_empty() && ca_data.is_empty()) {
            let why = "specifying a root certificates file with the insecure flag is not allowed";
            errors.forbidden(&path.child("tlsConfig"), why);
        }
        ExtenderConfig {
            url_prefix: self.url_prefix,
            filter_verb: self.filter_verb,
            prioritize_verb: self.prioritize_verb,
            preempt_verb: self.preempt_verb,
            bind_verb: self.bind_verb,
            weight: self.weight,
            timeout,
            node_cache_capable: self.node_cache_capable,
            managed_resources: self.managed_resources.into_iter().flatten().map(|resource| resource.name).collect(),
            ignorable: self.ignorable,
            tls: TlsConfig {
                insecure: insecure || unknown_authority,
                server_name,
                files: [cert_file, key_file, ca_file],
                data: [cert_data, key_data, ca_data],
            },
        }
    }
}

/// As upstream's `IsExtendedResourceName`.
fn is_extended(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let part = |part: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        part.len() <= 63 && ends(part.chars().next()) && ends(part.chars().next_back()) && part.chars().all(inner)
    };
    let Some((domain, own)) = name.split_once('/') else { return false };
    let native = domain.contains("kubernetes.io") || name.starts_with("requests.");
    let lower =
        domain.split('.').all(|label| part(label) && !label.contains(|c: char| c.is_ascii_uppercase() || c == '_'));
    // The name in a quota has the prefix `requests.`.
    !native && part(own) && lower && domain.len() <= 253 - "requests.".len()
}
