//! Validation of CertificateSigningRequests, and of changes through each subresource.

use std::collections::BTreeSet;

use machinery_rules::certificate_request::{CertificateRequest, check_certificates};
use serde_json::Value;

use super::requests::{bytes, conditions};
use crate::choices::required_choice;
use crate::field::{ErrorList, Path, quoted};
use crate::read::{get, int, text, texts};
use crate::rules;

const SPEC: Path<'static> = Path::root("spec");
const CONDITIONS: Path<'static> = Path::root("status.conditions");
const CERTIFICATE: Path<'static> = Path::root("status.certificate");
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const SECONDS_MIN: i64 = 600;
const DOMAIN_BYTES_MAX: usize = 253;
const SIGNER_BYTES_MAX: usize = 253 + 1 + 253 + 63 + 1;
const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// The endpoint of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpdateEndpoint {
    Whole,
    Approval,
    Status,
}

fn has_twice<'a>(mut values: impl Iterator<Item = &'a str>) -> bool {
    let mut seen = BTreeSet::new();
    !values.all(|value| seen.insert(value))
}

fn types(object: &Value) -> impl Iterator<Item = &str> {
    conditions(object).iter().map(|condition| text(condition, "type"))
}

fn usages(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let list_at = SPEC.child("usages");
    let given = || texts(spec, "usages");
    if given().next().is_none() {
        errors.required(&list_at, "");
    }
    let old_spec = old.map(|old| get(old, "spec"));
    if !old_spec.is_some_and(|spec| texts(spec, "usages").any(|usage| !USAGES.contains(&usage))) {
        for (i, usage) in given().enumerate().filter(|(_, usage)| !USAGES.contains(usage)) {
            errors.not_supported(&list_at.index(i), usage, USAGES);
        }
    }
    if !old_spec.is_some_and(|spec| has_twice(texts(spec, "usages"))) {
        let mut seen = BTreeSet::new();
        for (i, usage) in given().enumerate() {
            if !seen.insert(usage) {
                errors.duplicate(&list_at.index(i), usage);
            }
        }
    }
}

/// `domain/path`, in which each part consists of labels.
fn signer_name(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    let parts: Vec<&str> = name.splitn(3, '/').collect();
    let &[domain, rest] = parts.as_slice() else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.invalid(path, name, why);
    };
    if domain.len() > DOMAIN_BYTES_MAX {
        errors.too_long(path, DOMAIN_BYTES_MAX);
    }
    type Rule = fn(&str) -> Vec<String>;
    for (part, rule) in [(domain, rules::dns_label as Rule), (rest, rules::dns_subdomain as Rule)] {
        let wrong = part.split('.').map(|label| (label, rule(label))).find(|(_, wrong)| !wrong.is_empty());
        for (label, why) in wrong.iter().flat_map(|(label, wrong)| wrong.iter().map(move |why| (label, why))) {
            errors.invalid(path, part, &format!("validating label {}: {why}", quoted(label)));
        }
        if part == domain && !domain.contains('.') {
            errors.invalid(path, domain, "should be a domain with at least two segments separated by dots");
        }
    }
    if name.len() > SIGNER_BYTES_MAX {
        errors.too_long(path, SIGNER_BYTES_MAX);
    }
}

fn check_conditions(errors: &mut ErrorList, object: &Value, old: Option<&Value>) {
    let had = |test: &dyn Fn(&Value) -> bool| old.is_some_and(test);
    let empty_kept = had(&|old| types(old).any(str::is_empty));
    let twice_kept = had(&|old| has_twice(types(old)));
    let both_kept = had(&|old| types(old).any(|t| t == APPROVED) && types(old).any(|t| t == DENIED));
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions(object).iter().enumerate() {
        let at = CONDITIONS.index(i);
        let kind = text(condition, "type");
        if kind.is_empty() && !empty_kept {
            errors.required(&at.child("type"), "");
        }
        let known: &[&str] =
            if [APPROVED, DENIED, FAILED].contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        required_choice(errors, condition, "status", known, &at);
        let other = match kind {
            APPROVED => DENIED,
            DENIED => APPROVED,
            _ => "",
        };
        if !both_kept && !other.is_empty() && seen.contains(other) {
            errors.invalid(&CONDITIONS, kind, "Approved and Denied conditions are mutually exclusive");
        }
        if !seen.insert(kind) && !twice_kept {
            errors.duplicate(&at.child("type"), kind);
        }
    }
}

/// Validates a new or changed request; unchanged parts are exempt.
pub(super) fn request(errors: &mut ErrorList, object: &Value, old: Option<&Value>) {
    let (spec, status) = (get(object, "spec"), get(object, "status"));
    // An unchanged request was verified on create: a signature costs about 100 µs.
    let same = old.is_some_and(|old| get(get(old, "spec"), "request") == get(spec, "request"));
    if !same && let Err(why) = CertificateRequest::verified(&bytes(spec, "request")) {
        errors.invalid(&SPEC.child("request"), text(spec, "request"), &why);
    }
    usages(errors, spec, old);
    let (signer, signer_at) = (text(spec, "signerName"), SPEC.child("signerName"));
    let legacy_kept = old.is_some_and(|old| text(get(old, "spec"), "signerName") == LEGACY_SIGNER);
    if signer == LEGACY_SIGNER && !legacy_kept {
        errors.invalid(&signer_at, signer, "the legacy signerName is not allowed via this API version");
    } else {
        signer_name(errors, signer, &signer_at);
    }
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|seconds| *seconds < SECONDS_MIN) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(&SPEC.child("expirationSeconds"), seconds, why);
    }
    check_conditions(errors, object, old);
    let issued = bytes(status, "certificate");
    let had = old.map(|old| bytes(get(old, "status"), "certificate"));
    let kept = had.as_ref().is_some_and(|had| *had == issued || (!had.is_empty() && check_certificates(had).is_err()));
    if !issued.is_empty()
        && !kept
        && let Err(why) = check_certificates(&issued)
    {
        errors.invalid(&CERTIFICATE, "<certificate data>", &why);
    }
}

/// Validates the changes of an update by its endpoint.
pub(super) fn change(errors: &mut ErrorList, new: &Value, old: &Value, through: UpdateEndpoint) {
    let of = |object, kind: &str| -> Vec<Value> {
        conditions(object).iter().filter(|condition| text(condition, "type") == kind).cloned().collect()
    };
    for kind in [APPROVED, DENIED, FAILED] {
        if of(new, kind).len() < of(old, kind).len() {
            errors.forbidden(&CONDITIONS, &format!("updates may not remove a condition of type {}", quoted(kind)));
        }
    }
    for kind in [APPROVED, DENIED].into_iter().filter(|_| through != UpdateEndpoint::Approval) {
        let (has, had) = (of(new, kind), of(old, kind));
        if has.len() > had.len() {
            errors.forbidden(&CONDITIONS, &format!("updates may not add a condition of type {}", quoted(kind)));
        } else if has.len() == had.len() && has != had {
            errors.forbidden(&CONDITIONS, &format!("updates may not modify a condition of type {}", quoted(kind)));
        }
    }
    let certificate = |object| text(get(object, "status"), "certificate");
    if certificate(new) != certificate(old) {
        if through != UpdateEndpoint::Status {
            errors.forbidden(&CERTIFICATE, "updates may not set certificate content");
        } else if !certificate(old).is_empty() {
            errors.forbidden(&CERTIFICATE, "updates may not modify existing certificate content");
        }
    }
}
