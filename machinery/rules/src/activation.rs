//! The Service condition by which data planes report requests that wait for an endpoint, for scaling from zero. Data
//! planes write it, autoscalers read it (`docs/decisions/0083-scale-to-zero.md`).

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// The condition's type.
pub const CONDITION: &str = "coracle.dev/RequestsWaiting";
/// Its reason while requests wait.
pub const REASON_NO_ENDPOINT: &str = "NoEndpoint";
/// Its reason once no request waits.
pub const REASON_SERVED: &str = "Served";
/// The condition's time to live: data planes renew it earlier, so an older one is from a data plane that has stopped.
pub const CONDITION_TTL: SignedDuration = SignedDuration::from_secs(30);

/// The condition's message, with the number first for parsing.
#[must_use]
pub fn message(requests: usize) -> String {
    format!("{requests} requests wait for an endpoint")
}

/// The number of waiting requests in a Service's condition; `None` if it has none or an expired one.
#[must_use]
pub fn waiting_requests(status: &str, since: Timestamp, message: &str, now: Timestamp) -> Option<u64> {
    if status != "True" || now.duration_since(since) > CONDITION_TTL {
        return None;
    }
    let number = message.split(' ').next().and_then(|number| number.parse().ok());
    Some(number.unwrap_or(1).max(1))
}

/// As [`waiting_requests`], for a Service as JSON.
#[must_use]
pub fn waiting_requests_of_service(service: &Value, now: Timestamp) -> Option<u64> {
    let conditions = service["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == CONDITION)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    waiting_requests(text("status"), text("lastTransitionTime").parse().ok()?, text("message"), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_recent_condition_counts() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        for (status, at, says, wanted) in [
            ("True", "2026-01-01T00:00:50Z", message(7), Some(7)),
            ("True", "2026-01-01T00:00:50Z", "many".into(), Some(1)),
            ("True", "2026-01-01T00:00:50Z", "0".into(), Some(1)),
            ("True", "2026-01-01T00:02:00Z", message(1), Some(1)),
            ("True", "2026-01-01T00:00:29Z", message(7), None),
            ("False", "2026-01-01T00:00:50Z", message(7), None),
            ("True", "yesterday", message(7), None),
        ] {
            let condition =
                serde_json::json!({"type": CONDITION, "status": status, "lastTransitionTime": at, "message": says});
            let service = serde_json::json!({"status": {"conditions": [{"type": "other"}, condition]}});
            assert_eq!(waiting_requests_of_service(&service, now), wanted, "{service}");
        }
        assert_eq!(waiting_requests_of_service(&Value::Null, now), None);
    }
}
