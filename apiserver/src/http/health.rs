//! `/livez`, `/readyz`, `/healthz`: named checks, each of which can be asked for alone.

use axum::body::Body;
use http::Response;

use super::query::Query;
use super::respond;

/// One check: its name and whether it holds.
pub type Check = (&'static str, bool);

/// Answers one of the three roots, or one check of it.
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
        .map(|e| crate::resources::field::quoted(e))
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
}
