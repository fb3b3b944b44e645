//! `/containerLogs/NAMESPACE/POD/CONTAINER`: streams a container's log to `kubectl logs`. A slow client stops the
//! reading, so memory stays bounded.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStatus;
use machinery_serve::sockets::{Layer, SocketTable};
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;

use super::Kubelet;
use crate::log::read::{Options, can_open, send};
use crate::spec::containers;

/// Maximum queued chunks of a log for a slow client: a full queue stops reading.
const PIECES_MAX: usize = 4;

/// Parses a query string; the first value of a repeated name counts.
fn query_pairs(query: &str) -> HashMap<String, String> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut pairs = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.entry(decode(name)).or_insert_with(|| decode(value));
    }
    pairs
}

fn error_response(status: StatusCode, message: impl Into<String>) -> Response {
    (status, message.into()).into_response()
}

/// Parses the options; the error is a message for the client.
fn options(query: &HashMap<String, String>, now: Timestamp) -> Result<(Options, bool), String> {
    let flag = |name: &str| match query.get(name).map(String::as_str) {
        None | Some("" | "false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some(other) => Err(format!("{name}: {other:?} is neither true nor false")),
    };
    let number = |name: &str| match query.get(name) {
        None => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(format!("{name}: {text:?} is not a whole number from 0")),
        },
    };
    let seconds = number("sinceSeconds")?;
    let since = match (seconds, query.get("sinceTime")) {
        (Some(seconds), _) => now.checked_sub(std::time::Duration::from_secs(seconds)).ok(),
        (None, Some(text)) => {
            Some(text.parse().map_err(|_| format!("sinceTime: {text:?} is not a time such as 2026-01-02T03:04:05Z"))?)
        }
        (None, None) => None,
    };
    let stream = match query.get("stream").map(String::as_str) {
        None | Some("" | "All") => None,
        Some("Stdout") => Some("Stdout"),
        Some("Stderr") => Some("Stderr"),
        Some(other) => return Err(format!("stream: {other:?} is not All, Stdout or Stderr")),
    };
    let options = Options {
        follow: flag("follow")?,
        timestamps: flag("timestamps")?,
        since,
        tail: number("tailLines")?,
        limit_bytes: number("limitBytes")?,
        stream,
    };
    Ok((options, flag("previous")?))
}

/// Checks that the container has a log; the error has upstream's words.
fn check_has_log(status: Option<&ContainerStatus>, pod: &str, container: &str, previous: bool) -> Result<(), String> {
    let status = status.ok_or_else(|| format!("container {container:?} in pod {pod:?} is not available"))?;
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let begun = |ended: Option<&k8s_openapi::api::core::v1::ContainerStateTerminated>| {
        ended.is_some_and(|ended| ended.container_id.as_deref().is_some_and(|id| !id.is_empty()))
    };
    if previous {
        let found = begun(last);
        return if found {
            Ok(())
        } else {
            Err(format!("previous terminated container {container:?} in pod {pod:?} not found"))
        };
    }
    if state.running.is_some() || begun(state.terminated.as_ref()) || begun(last) {
        return Ok(());
    }
    if state.terminated.is_some() {
        return Err(format!("container {container:?} in pod {pod:?} is terminated"));
    }
    let reason = state.waiting.and_then(|waiting| waiting.reason).unwrap_or_default();
    let why = match reason.as_str() {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    Err(format!("container {container:?} in pod {pod:?} is waiting to start: {why}"))
}

pub(super) async fn get(
    State(kubelet): State<Kubelet>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let (options, previous) = match options(&query_pairs(&query.unwrap_or_default()), kubelet.env.now()) {
        Ok(options) => options,
        Err(message) => return error_response(StatusCode::BAD_REQUEST, message),
    };
    let Some(seen) = kubelet.pod(&namespace, &pod) else {
        return error_response(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist\n"));
    };
    let (whole, status) = (seen.pod.get(), seen.status.get());
    let named = whole.spec.as_ref().is_some_and(|spec| containers::names(spec).any(|own| own == container));
    if !named {
        return error_response(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}\n"));
    }
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let status = lists.into_iter().flatten().flatten().find(|status| status.name == container);
    if let Err(message) = check_has_log(status, &pod, &container, previous) {
        return error_response(StatusCode::BAD_REQUEST, message);
    }
    if !can_open() {
        let message = "too many logs are being read at once: try again when other readers are done\n";
        return error_response(StatusCode::SERVICE_UNAVAILABLE, message);
    }
    let own = seen.container(&container);
    let newest = own.map(|own| own.attempt).unwrap_or_else(|| {
        let restarts = status.map_or(0, |status| status.restart_count);
        u32::try_from(restarts).unwrap_or(0)
    });
    let attempt = if previous { newest.saturating_sub(1) } else { newest };
    let path = crate::pod::shared::log_path(&kubelet.data_dir, &seen.id.uid, &container, attempt);
    let log = own.map(|own| own.log.clone()).filter(|log| log.path() == path);
    let (out, pieces) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move { send(&path, log, options, out).await });
    let pieces = futures::stream::unfold(pieces, |mut pieces| async {
        let piece = pieces.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), pieces))
    });
    // A followed log would hold up the process that takes over.
    let pieces = pieces.take_until(SocketTable::process().retirement(Layer::Control).cancelled_owned());
    ([(header::CONTENT_TYPE, "text/plain")], Body::from_stream(pieces)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_without_logs_have_upstreams_message() {
        let says = |status: serde_json::Value, previous: bool| {
            let mut whole = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0});
            whole.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
            let status: ContainerStatus = serde_json::from_value(whole).unwrap();
            check_has_log(Some(&status), "p", "c", previous).err().unwrap_or_default()
        };
        let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason}}});
        assert_eq!(
            says(waiting("ContainerCreating"), false),
            r#"container "c" in pod "p" is waiting to start: ContainerCreating"#
        );
        assert_eq!(
            says(waiting("ImagePullBackOff"), false),
            r#"container "c" in pod "p" is waiting to start: trying and failing to pull image"#
        );
        assert_eq!(says(json!({"state": {"running": {}}}), false), "");
        assert_eq!(
            says(json!({"state": {"running": {}}}), true),
            r#"previous terminated container "c" in pod "p" not found"#
        );
        let crashed = json!({
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "containerID": "wasmtime://1"}},
        });
        assert_eq!(says(crashed, false), "");
    }

    #[test]
    fn options_are_read_or_refused() {
        let read = |pairs: &[(&str, &str)]| {
            let query = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            options(&query, Timestamp::from_second(100).unwrap())
        };
        let (all, previous) =
            read(&[("follow", "true"), ("tailLines", "5"), ("sinceSeconds", "40"), ("previous", "1")]).unwrap();
        assert!(all.follow && previous);
        assert_eq!((all.tail, all.since), (Some(5), Some(Timestamp::from_second(60).unwrap())));
        for bad in [("follow", "maybe"), ("tailLines", "-1"), ("sinceTime", "now"), ("stream", "both")] {
            assert!(read(&[bad]).is_err(), "{bad:?}");
        }
    }
}
