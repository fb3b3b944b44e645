//! Validation of probes and lifecycle hooks: exactly one handler, thresholds and times.

use serde_json::Value;

use super::containers::PodValidationContext;
use crate::choices::choice;
use crate::field::{ErrorList, Path};
use crate::read::{get, has, int, items, text};
use crate::rules;

const ONE_HANDLER: &str = "may not specify more than 1 handler type";

/// Liveness, readiness and startup probe of a container.
pub(super) fn probes(errors: &mut ErrorList, container: &Value, around: &PodValidationContext<'_>, path: &Path<'_>) {
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = get(container, key);
        if probe.is_null() {
            continue;
        }
        let at = path.child(key);
        handler(errors, probe, &["exec", "httpGet", "tcpSocket", "grpc"], around, &at);
        for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            errors.non_negative(&at.child(number), int(probe, number));
        }
        let grace_at = at.child("terminationGracePeriodSeconds");
        let grace = int(probe, "terminationGracePeriodSeconds");
        if let Some(seconds) = grace.filter(|s| *s <= 0) {
            errors.invalid(&grace_at, seconds, "must be greater than 0");
        }
        if key == "readinessProbe" {
            if let Some(seconds) = grace {
                errors.invalid(&grace_at, seconds, "must not be set for readinessProbes");
            }
        } else {
            let threshold = int(probe, "successThreshold").unwrap_or(0);
            if threshold != 1 {
                errors.invalid(&at.child("successThreshold"), threshold, "must be 1");
            }
        }
    }
}

/// Lifecycle hooks of a container.
pub(super) fn lifecycle(errors: &mut ErrorList, container: &Value, around: &PodValidationContext<'_>, path: &Path<'_>) {
    let lifecycle = get(container, "lifecycle");
    if lifecycle.is_null() {
        return;
    }
    let at = path.child("lifecycle");
    for key in ["postStart", "preStop"] {
        let hook = get(lifecycle, key);
        if !hook.is_null() {
            handler(errors, hook, &["exec", "httpGet", "tcpSocket", "sleep"], around, &at.child(key));
        }
    }
    if has(lifecycle, "stopSignal") {
        stop_signal(errors, text(lifecycle, "stopSignal"), around.os, &at.child("stopSignal"));
    }
}

fn stop_signal(errors: &mut ErrorList, signal: &str, os: Option<&str>, path: &Path<'_>) {
    match os {
        None => errors.forbidden(path, "may not be set for containers with empty `spec.os.name`"),
        Some("windows") if !["SIGKILL", "SIGTERM"].contains(&signal) => {
            errors.not_supported(path, signal, &["SIGKILL", "SIGTERM"]);
        }
        Some(_) => {}
    }
}

fn handler(
    errors: &mut ErrorList,
    handler: &Value,
    kinds: &[&str],
    around: &PodValidationContext<'_>,
    path: &Path<'_>,
) {
    let mut given = 0;
    for kind in kinds {
        let action = get(handler, kind);
        if action.is_null() {
            continue;
        }
        let at = path.child(kind);
        given += 1;
        if given > 1 {
            errors.forbidden(&at, ONE_HANDLER);
            continue;
        }
        match *kind {
            "exec" => {
                if items(action, "command").is_empty() {
                    errors.required(&at.child("command"), "");
                }
            }
            "httpGet" => http_get(errors, action, &at),
            "sleep" => {
                let seconds = int(action, "seconds").unwrap_or(0);
                if let Some(grace) = around.grace_seconds
                    && (seconds < 0 || seconds > grace)
                {
                    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.invalid(&at, seconds, &why);
                }
            }
            _ => port(errors, get(action, "port"), &at.child("port")),
        }
    }
    if given == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn http_get(errors: &mut ErrorList, action: &Value, path: &Path<'_>) {
    if text(action, "path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    port(errors, get(action, "port"), &path.child("port"));
    choice(errors, action, "scheme", &["HTTP", "HTTPS"], path);
    for header in items(action, "httpHeaders") {
        let name = text(header, "name");
        errors.invalid_each(&path.child("httpHeaders"), name, rules::http_header_name(name));
    }
}

/// A port by number or by name.
pub(crate) fn port(errors: &mut ErrorList, port: &Value, path: &Path<'_>) {
    match port {
        Value::String(name) => errors.invalid_each(path, name, rules::port_name(name)),
        other => {
            let number = other.as_i64().unwrap_or(0);
            for message in rules::port_number(number) {
                errors.invalid(path, number, &message);
            }
        }
    }
}
