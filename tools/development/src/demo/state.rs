//! The demo's stateful part: orders in a database on a claim's volume, their report, and the autoscaler of the catalog.

use anyhow::Context as _;
use hyper::Request;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus, MetricStatus};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use machinery_client::{Api, ListOptions, value_of};
use machinery_env::Env;
use serde_json::Value;

use super::cluster::STEP_TIMEOUT;
use super::{Story, exchange, ms};

/// The pod of the database and the claim of its volume.
const POD: &str = "orders-0";
const CLAIM: &str = "data-orders-0";

/// Waits until the database's pod is ready; `but` is the uid of its predecessor.
pub(super) async fn database_ready(client: &Client, env: &Env, but: Option<&str>) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    let ready = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_deref()).unwrap_or_default();
        pod.is_some_and(|pod| pod.metadata.uid.as_deref() != but)
            && conditions.iter().any(|of| of.type_ == "Ready" && of.status == "True")
    };
    let waited = env.timeout(STEP_TIMEOUT, pods.wait_until(env, POD, ready)).await;
    waited.with_context(|| format!("pod {POD} was not ready in time"))?;
    // Request routing follows a moment later; the StatefulSet's status shows it.
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "shop");
    let done = |set: Option<&StatefulSet>| {
        set.and_then(|set| set.status.as_ref()?.available_replicas).is_some_and(|available| available > 0)
    };
    let waited = env.timeout(STEP_TIMEOUT, sets.wait_until(env, "orders", done)).await;
    waited.context("the StatefulSet orders was not available in time")?;
    Ok(())
}

/// Deletes the database's pod and checks that the next one has its data. Then runs the nightly report.
pub(super) async fn run_stateful_part(story: &mut Story, client: &Client, port: u16, id: &str) -> anyhow::Result<()> {
    story.doing("killing the database's pod");
    check_order_persisted(&story.env, port, id).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    let before = story.env.elapsed();
    let uid = pods.get(POD).await?.metadata.uid.context("a pod has a uid")?;
    pods.delete(POD).await?;
    database_ready(client, &story.env, Some(&uid)).await?;
    check_order_persisted(&story.env, port, id).await?;
    let took = story.env.elapsed() - before;
    let claim = Api::<PersistentVolumeClaim>::namespaced(client.clone(), "shop").get(CLAIM).await?;
    let volume = claim.spec.and_then(|spec| spec.volume_name).context("the claim has no volume")?;
    story.report(&format!(
        "It is kept in a Wasm database on volume {volume}: the database's pod was deleted, and its successor had the order {} later.",
        ms(took)
    ));

    story.doing("making the nightly report");
    let log = report(client, &story.env).await?;
    let report: Value = serde_json::from_str(&log).with_context(|| format!("the report is no JSON: {log:?}"))?;
    anyhow::ensure!(report["paid"] == 1, "the report says {report}");
    story.report(&format!("The nightly report, run now from its CronJob, says {}.", log.trim_end()));
    Ok(())
}

/// Checks that the order exists and is paid; retries until the routes to a new pod are known.
async fn check_order_persisted(env: &Env, port: u16, id: &str) -> anyhow::Result<()> {
    let ask = async {
        loop {
            let (status, _, body) =
                exchange(env, ("127.0.0.1", port), Request::get(format!("/api/orders/{id}")), "").await?;
            let order: Value = serde_json::from_slice(&body).unwrap_or_default();
            if status == 200 {
                anyhow::ensure!(order["status"] == "paid", "order {id} is kept as {order}");
                return Ok(());
            }
            anyhow::ensure!(status >= 500, "order {id} answered {status}: {order}");
            env.sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    env.timeout(STEP_TIMEOUT, ask).await.with_context(|| format!("order {id} was not answered in time"))?
}

/// The output of the CronJob's job, which is created as `kubectl create job --from` does.
async fn report(client: &Client, env: &Env) -> anyhow::Result<String> {
    let schedule = Api::<CronJob>::namespaced(client.clone(), "shop").get("report").await?;
    let template = schedule.spec.job_template;
    let job = Job {
        metadata: ObjectMeta { name: Some("report-now".to_owned()), ..template.metadata.unwrap_or_default() },
        spec: template.spec,
        status: None,
    };
    let jobs: Api<Job> = Api::namespaced(client.clone(), "shop");
    jobs.create(&value_of(&job)).await?;
    let done = |job: Option<&Job>| job.and_then(|job| job.status.as_ref()?.succeeded).is_some_and(|pods| pods > 0);
    let waited = env.timeout(STEP_TIMEOUT, jobs.wait_until(env, "report-now", done)).await;
    waited.context("the report was not made in time")?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    // Earlier failed pods belong to the same job.
    let of = ListOptions {
        labels: "batch.kubernetes.io/job-name=report-now".to_owned(),
        fields: "status.phase=Succeeded".to_owned(),
        ..ListOptions::default()
    };
    let found = pods.list(&of).await?;
    let pod = found.items.first().and_then(|pod| pod.metadata.name.clone()).context("the report has no pod")?;
    let log = http::Request::get(format!("/api/v1/namespaces/shop/pods/{pod}/log")).body(Vec::new())?;
    Ok(client.request_text(log).await?)
}

/// Reports what the catalog's autoscaler has measured and decided.
pub(super) async fn report_autoscaler(story: &mut Story, client: &Client) -> anyhow::Result<()> {
    story.doing("asking the autoscaler");
    let scalers: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), "shop");
    let read = |scaler: Option<&HorizontalPodAutoscaler>| {
        scaler.and_then(|of| of.status.as_ref()?.current_metrics.as_ref()).is_some_and(|all| !all.is_empty())
    };
    let waited = story.env.timeout(STEP_TIMEOUT, scalers.wait_until(&story.env, "catalog", read)).await;
    let scaler = waited.context("the autoscaler read nothing in time")?;
    let status = scaler.and_then(|scaler| scaler.status.clone()).context("the autoscaler has no status")?;
    story.report(&autoscaler_line(&status));
    Ok(())
}

/// The report of an autoscaler's status. Its first pass usually precedes the first usage sample of the pods and decides
/// nothing.
fn autoscaler_line(status: &HorizontalPodAutoscalerStatus) -> String {
    let average = |metric: &MetricStatus| metric.resource.as_ref()?.current.average_value.clone();
    match status.current_metrics.iter().flatten().find_map(average) {
        Some(cpu) => format!(
            "The catalog's HorizontalPodAutoscaler measures {} of CPU a pod and asks for {} pods.",
            cpu.0, status.desired_replicas
        ),
        None => "The catalog's HorizontalPodAutoscaler is active; it measures every 15 s and has no CPU sample yet."
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_autoscaler_without_a_sample_is_reported_as_waiting() {
        let check = |status: Value, expected: &str| {
            let line = autoscaler_line(&serde_json::from_value(status).expect("a status"));
            assert!(line.contains(expected), "{line}");
        };
        let sample = json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageValue": "7m"}}});
        check(
            json!({"desiredReplicas": 2, "currentMetrics": [sample]}),
            "measures 7m of CPU a pod and asks for 2 pods",
        );
        check(json!({"desiredReplicas": 0, "currentMetrics": [{"type": ""}]}), "has no CPU sample yet");
        check(json!({"desiredReplicas": 0}), "has no CPU sample yet");
    }
}
