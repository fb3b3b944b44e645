//! IP families and cluster IPs of a Service. This cluster has only IPv4 addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{is_headless, needs_cluster_ip};
use crate::choices::optional_choice;
use crate::field::{ErrorList, Path};
use crate::read::{get, has, is_zero, items, put, text, texts};
use crate::rules;

const SPEC: Path<'static> = Path::root("spec");
const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];

/// A headless Service without a selector, whose endpoints may be of any family.
fn is_headless_without_selector(spec: &Value) -> bool {
    text(spec, "clusterIP") == "None" && is_zero(get(spec, "selector"))
}

fn prefers_dual_unchanged(spec: &Value, old: Option<&Value>) -> bool {
    let Some(old) = old else { return false };
    let dual = |of: &Value| text(of, "ipFamilyPolicy") == "PreferDualStack";
    dual(spec)
        && (dual(old) || !has(old, "ipFamilyPolicy"))
        && text(spec, "type") == text(old, "type")
        && items(spec, "clusterIPs") == items(old, "clusterIPs")
        && items(spec, "ipFamilies") == items(old, "ipFamilies")
}

fn is_v6(ip: &str) -> bool {
    rules::parse_ip_leniently(ip).is_some_and(|ip| ip.is_ipv6())
}

/// Defaults `ipFamilyPolicy` and `ipFamilies`.
pub(super) fn fill(spec: &mut Value, old: Option<&Value>) {
    if !needs_cluster_ip(spec) || prefers_dual_unchanged(spec, old) {
        return;
    }
    if !has(spec, "ipFamilyPolicy") {
        let kept = old.map_or("", |old| text(old, "ipFamilyPolicy"));
        let policy = match kept {
            "" if is_headless_without_selector(spec) => "RequireDualStack",
            "" => "SingleStack",
            kept => kept,
        };
        put(spec, "ipFamilyPolicy", json!(policy));
    }
    let mut errors = ErrorList::new();
    validate_consistency(&mut errors, spec, old);
    if !errors.is_empty() {
        return;
    }
    let single = text(spec, "ipFamilyPolicy") == "SingleStack";
    if let Some(old) = old
        && single
    {
        for key in ["clusterIPs", "ipFamilies"] {
            if items(spec, key) == items(old, key) && items(spec, key).len() > 1 {
                let first = items(spec, key)[0].clone();
                put(spec, key, json!([first]));
            }
        }
    }
    // A rejected Service is reported unmodified, so defaults are set after the check.
    validate_policy(&mut errors, spec, old);
    if !errors.is_empty() {
        return;
    }
    let mut families: Vec<String> = texts(spec, "ipFamilies").map(str::to_owned).collect();
    for (i, ip) in texts(spec, "clusterIPs").enumerate() {
        if ip == "None" {
            break;
        }
        if i >= families.len() && rules::parse_ip_leniently(ip).is_some_and(|ip| ip.is_ipv4()) {
            families.push("IPv4".into());
        }
    }
    if families.is_empty() && !items(spec, "clusterIPs").iter().any(|ip| ip.as_str().is_some_and(is_v6)) {
        families.push("IPv4".into());
    }
    if is_headless_without_selector(spec) && families.len() == 1 && !single {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.into());
    }
    if !families.is_empty() {
        put(spec, "ipFamilies", json!(families));
    }
}

/// Rules that upstream checks before all other validation; `errors` has none yet.
pub(super) fn validate(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    if !needs_cluster_ip(spec) || prefers_dual_unchanged(spec, old) {
        return;
    }
    validate_consistency(errors, spec, old);
    if !errors.is_empty() {
        return;
    }
    validate_policy(errors, spec, old);
    if !errors.is_empty() || is_headless_without_selector(spec) {
        return;
    }
    if text(spec, "ipFamilyPolicy") == "RequireDualStack" {
        let policy_at = SPEC.child("ipFamilyPolicy");
        errors.invalid(&policy_at, "RequireDualStack", "this cluster is not configured for dual-stack services");
    }
    let families_at = SPEC.child("ipFamilies");
    for (i, family) in texts(spec, "ipFamilies").enumerate() {
        if family != "IPv4" {
            errors.invalid(&families_at.index(i), family, "not configured on this cluster");
        }
    }
}

/// Checks the policy against the client's addresses and families.
fn validate_policy(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let policy_at = SPEC.child("ipFamilyPolicy");
    let policy = text(spec, "ipFamilyPolicy");
    let (ips, families) = (items(spec, "clusterIPs"), items(spec, "ipFamilies"));
    if let Some(old) = old
        && policy != "SingleStack"
    {
        for (key, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
            let (now, was) = (items(spec, key).len(), items(old, key).len());
            if now != 0 && now < was {
                let why = format!("must be 'SingleStack' to release the secondary {what}");
                errors.invalid(&policy_at, policy, &why);
            }
        }
    }
    if policy == "SingleStack" {
        for (many, what) in [(ips.len() == 2, "cluster IPs"), (families.len() == 2, "IP families")] {
            if many {
                let why = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
                errors.invalid(&policy_at, policy, &why);
            }
        }
    }
    let ips_at = SPEC.child("clusterIPs");
    for (i, ip) in texts(spec, "clusterIPs").enumerate() {
        if ip != "None" && i >= families.len() && is_v6(ip) {
            errors.invalid(&ips_at.index(i), get(spec, "clusterIPs").clone(), "IPv6 is not configured on this cluster");
        }
    }
}

/// Consistency of `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`.
pub(super) fn validate_consistency(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    if !needs_cluster_ip(spec) {
        return;
    }
    let (ips_at, families_at) = (SPEC.child("clusterIPs"), SPEC.child("ipFamilies"));
    let shown = get(spec, "clusterIPs");
    let ips: Vec<&str> = texts(spec, "clusterIPs").collect();
    match (text(spec, "clusterIP"), ips.first()) {
        ("", Some(_)) => errors.invalid(&ips_at, shown.clone(), "must be empty when `clusterIP` is not specified"),
        ("", None) => {}
        (_, None) => errors.required(&ips_at, ""),
        (ip, Some(first)) if ip != *first => {
            errors.invalid(&ips_at, shown.clone(), "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families: Vec<&str> = texts(spec, "ipFamilies").collect();
    let mut seen = BTreeSet::new();
    for (i, family) in families.iter().enumerate() {
        if !["IPv4", "IPv6"].contains(family) {
            errors.not_supported(&families_at.index(i), *family, &["IPv4", "IPv6"]);
        }
        if !seen.insert(*family) {
            errors.duplicate(&families_at.index(i), *family);
        }
    }
    optional_choice(errors, spec, "ipFamilyPolicy", POLICIES, &SPEC);
    let known: Vec<&str> = old.map(|old| texts(old, "clusterIPs").collect()).unwrap_or_default();
    let mut bad = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                bad = true;
                errors.invalid(&ips_at, shown.clone(), "'None' must be the first and only value");
            }
            continue;
        }
        if !known.contains(ip) {
            let wrong = rules::ip_in_old_field(ip, true);
            bad |= !wrong.is_empty();
            errors.invalid_each(&ips_at.index(i), ip, wrong);
        }
    }
    if ips.len() > 2 {
        errors.invalid(&ips_at, shown.clone(), "may only hold up to 2 values");
    }
    if bad {
        return;
    }
    let parsed: Vec<Option<IpAddr>> = ips.iter().map(|ip| rules::parse_ip_leniently(ip)).collect();
    let both = parsed.iter().flatten().any(IpAddr::is_ipv4) && parsed.iter().flatten().any(IpAddr::is_ipv6);
    if ips.len() > 1 && !both {
        errors.invalid(&ips_at, shown.clone(), "may specify no more than one IP for each IP family");
    }
    if is_headless(spec) {
        return;
    }
    for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
        let other = if is_v6(ip) { "IPv4" } else { "IPv6" };
        if *family == other {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.invalid(&ips_at.index(i), *ip, &why);
        }
    }
}

/// Validates changes of addresses and families.
pub(super) fn validate_changes(errors: &mut ErrorList, spec: &Value, old: &Value) {
    if !needs_cluster_ip(spec) || !needs_cluster_ip(old) {
        return;
    }
    let (headless, was_headless) = (is_headless(spec), is_headless(old));
    if !(headless && was_headless) {
        list_changes(errors, spec, old, "clusterIPs", "clusterIP");
    }
    if !headless && !was_headless {
        list_changes(errors, spec, old, "ipFamilies", "ipFamily");
    }
}

fn list_changes(errors: &mut ErrorList, spec: &Value, old: &Value, key: &str, one: &str) {
    let at = SPEC.child(key);
    let (now, was) = (items(spec, key), items(old, key));
    let shown = get(spec, key);
    if now.len() == was.len() {
        for (i, (now, was)) in now.iter().zip(was).enumerate() {
            if now != was {
                // Upstream always reports the first family.
                let i = if key == "ipFamilies" { 0 } else { i };
                errors.invalid(&at.index(i), shown.clone(), "may not change once set");
            }
        }
        return;
    }
    if now.is_empty() && now.len() < was.len() && (key == "clusterIPs" || items(spec, "clusterIPs").is_empty()) {
        errors.invalid(&at.index(0), shown.clone(), &format!("primary {one} can not be unset"));
    }
    if let (Some(now), Some(was)) = (now.first(), was.first())
        && now != was
    {
        errors.invalid(&at.index(0), get(spec, "clusterIPs").clone(), "may not change once set");
    }
    if now.len() == 1 && was.len() > 1 && text(spec, "ipFamilyPolicy") != "SingleStack" {
        let why = format!("must be set to 'SingleStack' when releasing the secondary {one}");
        errors.invalid(&SPEC.child("ipFamilyPolicy"), get(spec, "ipFamilyPolicy").clone(), &why);
    }
}
