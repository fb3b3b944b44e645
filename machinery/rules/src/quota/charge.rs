//! Checks a write against the quotas of its namespace, and computes its charges.

use jiff::Timestamp;
use serde_json::Value;

use super::amounts::{Amounts, add, more, pretty, read};
use super::limited::{Coverage, LimitedResource};
use super::{Evaluator, Write};

/// The charge of one quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The quota's index.
    pub at: usize,
    /// The total usage after the write: `status.used`.
    pub used: Amounts,
}

/// Why a write is rejected.
pub type Refusal = String;

/// A quota during admission, with the hard limits that its controller has observed.
struct Quota<'a> {
    at: usize,
    name: &'a str,
    hard: Amounts,
    used: Amounts,
    whole: &'a Value,
}

/// A write to check.
#[derive(Debug, Clone, Copy)]
pub struct QuotaCheck<'a> {
    /// The operation.
    pub write: Write,
    /// The object's group and plural.
    pub resource: (&'a str, &'a str),
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The object to be stored.
    pub new: &'a Value,
    /// The stored object.
    pub old: Option<&'a Value>,
    /// The time of the write.
    pub now: Timestamp,
    /// Resources that require a covering quota.
    pub limited: &'a [LimitedResource],
}

fn of<'a>(evaluator: &Evaluator, (at, quota): (usize, &'a Value), object: &Value) -> Option<Quota<'a>> {
    let hard = read(&quota["status"]["hard"]);
    let concerned = hard.keys().any(|name| evaluator.counts(name)) && evaluator.in_scopes(quota, object);
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    concerned.then(|| Quota { at, name, hard, used: read(&quota["status"]["used"]), whole: quota })
}

/// The charges of a write by quota, or its rejection.
///
/// # Errors
/// Upstream's message about missing or exceeded quota.
pub fn charge<'a>(
    evaluator: &Evaluator,
    quotas: impl IntoIterator<Item = &'a Value>,
    check: QuotaCheck<'_>,
) -> Result<Vec<Charge>, Refusal> {
    let mut concerned = Vec::new();
    let mut cover = Coverage::new(check.limited, check.resource);
    for quota in quotas.into_iter().enumerate() {
        cover.add_scopes(evaluator, quota.1, check.new);
        let Some(quota) = of(evaluator, quota, check.new) else { continue };
        let limited: Vec<&str> = quota.hard.keys().map(String::as_str).filter(|name| evaluator.counts(name)).collect();
        if let Some(missing) = evaluator.missing(&limited, check.new) {
            return Err(format!("failed quota: {}: {missing}", quota.name));
        }
        if limited.iter().any(|name| !quota.used.contains_key(*name)) {
            return Err(format!("status unknown for quota: {}, resources: {}", quota.name, limited.join(",")));
        }
        cover.add_names(&limited);
        concerned.push(quota);
    }
    if concerned.is_empty() && !cover.is_needed() {
        return Ok(Vec::new());
    }
    let usage = evaluator.usage(check.new, check.now);
    let negative: Vec<&str> = usage.iter().filter(|(_, v)| v.sign() < 0).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    let grown = check.old.map(|old| more(&usage, &evaluator.usage(old, check.now)));
    // An object that was in no scope of a quota counts fully.
    let delta = |quota: &Quota<'_>| {
        let was_in = check.old.is_some_and(|old| of(evaluator, (quota.at, quota.whole), old).is_some());
        grown.as_ref().filter(|_| was_in).unwrap_or(&usage)
    };
    let adds = |amounts: &Amounts| amounts.values().any(|amount| !amount.is_zero());
    let uses_more = match concerned.is_empty() {
        true => adds(grown.as_ref().unwrap_or(&usage)),
        false => concerned.iter().any(|quota| adds(delta(quota))),
    };
    if cover.is_needed()
        && uses_more
        && let Some(why) = cover.uncovered(evaluator, check.new, &usage)
    {
        return Err(why);
    }
    let mut charges = Vec::new();
    for quota in concerned {
        let delta = delta(&quota);
        charges.extend(charge_quota(quota, delta, check.subresource)?);
    }
    Ok(charges)
}

fn charge_quota(quota: Quota<'_>, delta: &Amounts, subresource: &str) -> Result<Option<Charge>, Refusal> {
    let requested = |name: &str| quota.hard.contains_key(name);
    let requested: Amounts =
        delta.iter().filter(|(name, v)| !v.is_zero() && requested(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
    if requested.is_empty() {
        return Ok(None);
    }
    let mut used = quota.used.clone();
    add(&mut used, &requested);
    // A status reports usage that exists already.
    let exceeded: Vec<&String> = requested.keys().filter(|name| used.get(*name) > quota.hard.get(*name)).collect();
    if !exceeded.is_empty() && subresource != "status" {
        let only = |amounts: &Amounts| {
            pretty(&amounts.iter().filter(|(n, _)| exceeded.contains(n)).map(|(n, v)| (n.clone(), v.clone())).collect())
        };
        return Err(format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            quota.name,
            only(&requested),
            only(&quota.used),
            only(&quota.hard)
        ));
    }
    Ok(Some(Charge { at: quota.at, used }))
}
