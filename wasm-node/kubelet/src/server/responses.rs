//! What containers respond, for the metrics: text for Prometheus, and `/stats/responses/NAMESPACE` for the API server's
//! custom metrics. The latter has the pods of one namespace alone, so that a view of a namespace costs as much as its pods.

use axum::extract::{Path, State};
use axum::response::Response;
use jiff::Timestamp;
use machinery_api::time;
use machinery_rules::response_times::BOUNDS_MICROS;
use serde_json::{Value, json};

use super::Kubelet;
use super::metrics::{MetricsText, RunningContainer, RunningPod, age, each, running_pods, user_defined};
use super::rates::NODE_COUNTER;
use crate::responses::{CLASSES, Caller, Calls};

/// Writes the responses of containers that have any.
pub(super) fn write(text: &mut MetricsText, all: &[RunningPod]) {
    let measured = each(all).filter_map(|one| Some((one, one.responses.as_ref()?.totals()?)));
    let measured: Vec<_> = measured.collect();
    let name = "coracle_responses_total";
    text.head(name, "counter", "Responses by status class, without those to the node's probes");
    for (one, totals) in &measured {
        let [container, namespace, pod] = one.labels();
        for (class, count) in CLASSES.iter().zip(totals.classes) {
            text.sample(name, &[("code", class), container, namespace, pod], count);
        }
    }
    let name = "coracle_request_duration_seconds";
    let help = "Time from a request's arrival to its response's head, without the node's probes";
    text.head(name, "histogram", help);
    for (one, totals) in &measured {
        let counts = &totals.counts.durations;
        let within = BOUNDS_MICROS.iter().zip(counts).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((*bound as f64 / 1e6, *sum))
        });
        text.buckets(name, &one.labels(), within, (totals.seconds, counts.iter().sum()));
    }
}

/// The calls of a container by Service and caller.
fn calls(one: &RunningContainer) -> Vec<Value> {
    let mut all = Vec::new();
    let Some(meter) = &one.responses else { return all };
    meter.each_caller(|Calls { service, caller, counts }| {
        let named = |(namespace, name): (&str, &str)| json!({"namespace": namespace, "name": name});
        let mut row = json!({"durations": counts.durations, "errors": counts.errors});
        if let Some(service) = service {
            row["service"] = named(service);
        }
        match caller {
            Caller::Pod(namespace, name) => row["pod"] = named((namespace, name)),
            Caller::Other => row["others"] = true.into(),
            Caller::Outside => {}
        }
        all.push(row);
    });
    all
}

fn container(kubelet: &Kubelet, one: &RunningContainer, wall: Timestamp) -> Value {
    let elapsed = kubelet.env.elapsed();
    let mut of = json!({"name": one.container, "userDefinedMetrics": user_defined(kubelet, one, wall, elapsed)});
    let earlier = kubelet.rates.sampled_at(NODE_COUNTER).unwrap_or_default();
    let recent = one.responses.as_ref().and_then(|meter| meter.recent(earlier, elapsed));
    if let Some(recent) = recent {
        let window = recent.window.min(age(one, wall)).as_secs_f64();
        of["responses"] = json!({
            "windowSeconds": window, "durations": recent.counts.durations
        });
        of["calls"] = calls(one).into();
    }
    of
}

pub(super) async fn stats(State(kubelet): State<Kubelet>, Path(namespace): Path<String>) -> Response {
    let wall = kubelet.env.now();
    let of_pod = |pod: &RunningPod| {
        let containers: Vec<Value> = pod.containers.iter().map(|one| container(&kubelet, one, wall)).collect();
        json!({"podRef": pod.reference(), "containers": containers})
    };
    let pods: Vec<Value> = running_pods(&kubelet, |view| view.is_in(&namespace)).iter().map(of_pod).collect();
    super::json(&json!({"time": time::seconds(wall), "boundsMicroseconds": BOUNDS_MICROS, "pods": pods}))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use axum::http::StatusCode;
    use machinery_api::ObjectKey;
    use machinery_serve::net::{Origin, Peer, ServicePort};

    use super::*;
    use crate::responses::ResponseMeter;

    #[test]
    fn a_container_with_responses_is_shown() {
        let meter = Arc::new(ResponseMeter::new(Duration::ZERO));
        let pods = [RunningPod::of_tests("web", Some(meter.clone())), RunningPod::of_tests("job", None)];
        let shown = || {
            let mut text = MetricsText::default();
            write(&mut text, &pods);
            text.text().to_owned()
        };
        assert!(shown().lines().all(|line| line.starts_with('#')), "{}", shown());
        let service = ServicePort { service: ObjectKey::new("n", "cart"), port: 80 };
        let local = ([127, 66, 0, 2], 80).into();
        let origin = Origin { peer: Peer::Host(local), local, via: Some(Arc::new(service)) };
        meter.record(&origin, StatusCode::OK, Duration::from_micros(300));
        meter.record(&origin, StatusCode::BAD_GATEWAY, Duration::from_secs(100));
        let labels = "container=\"c\",namespace=\"n\",pod=\"web\"";
        for line in [
            format!("coracle_responses_total{{code=\"2xx\",{labels}}} 1"),
            format!("coracle_responses_total{{code=\"4xx\",{labels}}} 0"),
            format!("coracle_responses_total{{code=\"5xx\",{labels}}} 1"),
            format!("coracle_request_duration_seconds_bucket{{{labels},le=\"0.00025\"}} 0"),
            format!("coracle_request_duration_seconds_bucket{{{labels},le=\"0.0005\"}} 1"),
            format!("coracle_request_duration_seconds_bucket{{{labels},le=\"60\"}} 1"),
            format!("coracle_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("coracle_request_duration_seconds_sum{{{labels}}} 100.0003"),
            format!("coracle_request_duration_seconds_count{{{labels}}} 2"),
        ] {
            assert!(shown().lines().any(|one| one == line), "{line}: {}", shown());
        }
        let [web, _] = &pods;
        let all = calls(&web.containers[0]);
        let row = &all[0];
        assert_eq!(
            (all.len(), &row["service"], &row["errors"]),
            (1, &json!({"namespace": "n", "name": "cart"}), &json!(1))
        );
        assert!(row.get("pod").is_none() && row.get("others").is_none(), "{row}");
    }
}
