//! `/livez`, `/readyz`, `/healthz` with named checks that can also be requested one by one, and `/metrics/slis`, which
//! counts their results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use http::Response;

use super::respond;
use apiserver_resources::query::Query;

/// One check: its name and whether it passes.
pub type Check = (&'static str, bool);

/// The media type of `/metrics/slis`: upstream's, independent of Accept.
pub const SLIS_MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// The results of the checks, counted by check and endpoint. Both come from fixed lists, so the map is bounded.
#[derive(Debug, Default)]
pub struct Slis(Mutex<BTreeMap<(&'static str, String), Results>>);

#[derive(Debug, Default, Clone, Copy)]
struct Results {
    holds: bool,
    errors: u64,
    successes: u64,
}

impl Slis {
    /// Counts the checks of one request to an endpoint. Excluded checks are not counted, as upstream.
    pub fn count(&self, root: &str, checks: &[Check], query: &Query) {
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, holds) in checks.iter().filter(|(name, _)| !excluded.contains(name)) {
            let results = counted.entry((name, root.trim_start_matches('/').to_owned())).or_default();
            results.holds = *holds;
            if *holds {
                results.successes += 1;
            } else {
                results.errors += 1;
            }
        }
    }

    /// The metrics in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from(
            "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
             # TYPE kubernetes_healthcheck gauge\n",
        );
        // Writing into a String cannot fail.
        for ((name, kind), results) in &*counted {
            let holds = u8::from(results.holds);
            let _ = writeln!(text, "kubernetes_healthcheck{{name=\"{name}\",type=\"{kind}\"}} {holds}");
        }
        text.push_str(
            "# HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n\
             # TYPE kubernetes_healthchecks_total counter\n",
        );
        for ((name, kind), results) in &*counted {
            for (status, count) in [("error", results.errors), ("success", results.successes)] {
                if count > 0 {
                    let labels = format!("name=\"{name}\",status=\"{status}\",type=\"{kind}\"");
                    let _ = writeln!(text, "kubernetes_healthchecks_total{{{labels}}} {count}");
                }
            }
        }
        text
    }
}

/// Responds for one of the three endpoints, or for one check of it.
#[must_use]
pub fn answer(root: &str, one: Option<&str>, checks: &[Check], query: &Query) -> Response<Body> {
    if let Some(one) = one {
        return match checks.iter().find(|(name, _)| *name == one) {
            None => respond::page_not_found(),
            Some((_, true)) => respond::bytes(200, "text/plain; charset=utf-8", "ok"),
            Some((name, false)) => respond::text(500, format!("internal server error: {name} failed\n")),
        };
    }
    let kind = root.trim_start_matches('/');
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut lines = String::new();
    let mut passed = true;
    for (name, holds) in checks {
        if excluded.contains(name) {
            lines.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if *holds {
            lines.push_str(&format!("[+]{name} ok\n"));
        } else {
            passed = false;
            lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|e| !checks.iter().any(|(name, _)| name == *e))
        .map(|e| apiserver_resources::field::quoted(e))
        .collect();
    if !unknown.is_empty() {
        lines.push_str(&format!("warn: some health checks cannot be excluded: no matches for {}\n", unknown.join(",")));
    }
    if !passed {
        return respond::text(500, format!("{lines}{kind} check failed\n"));
    }
    if query.get("verbose").is_none() {
        return respond::text(200, "ok".into());
    }
    respond::text(200, format!("{lines}{kind} check passed\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_named() {
        let checks: [Check; 2] = [("ping", true), ("etcd", false)];
        let ask =
            |one: Option<&str>, query: &str| answer("/readyz", one, &checks, &Query::parse(query)).status().as_u16();
        assert_eq!(ask(None, ""), 500);
        assert_eq!(ask(None, "exclude=etcd"), 200);
        assert_eq!(ask(Some("ping"), ""), 200);
        assert_eq!(ask(Some("etcd"), ""), 500);
        assert_eq!(ask(Some("nope"), ""), 404);
    }

    #[test]
    fn results_are_counted() {
        let slis = Slis::default();
        for (root, etcd, query) in
            [("/readyz", false, ""), ("/readyz", true, ""), ("/livez", true, "exclude=etcd"), ("/readyz", true, "")]
        {
            slis.count(root, &[("ping", true), ("etcd", etcd)], &Query::parse(query));
        }
        let text = slis.text();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"kubernetes_healthcheck{name="etcd",type="readyz"} 1"#,
                r#"kubernetes_healthcheck{name="ping",type="livez"} 1"#,
                r#"kubernetes_healthcheck{name="ping",type="readyz"} 1"#,
                r#"kubernetes_healthchecks_total{name="etcd",status="error",type="readyz"} 1"#,
                r#"kubernetes_healthchecks_total{name="etcd",status="success",type="readyz"} 2"#,
                r#"kubernetes_healthchecks_total{name="ping",status="success",type="livez"} 1"#,
                r#"kubernetes_healthchecks_total{name="ping",status="success",type="readyz"} 3"#,
            ]
        );
    }
}
