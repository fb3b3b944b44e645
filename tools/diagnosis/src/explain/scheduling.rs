//! `coracle explain-scheduling`: prints the node that a pod would get, and each plugin's verdict on each node. It runs
//! the scheduler's own core on the user's view of the cluster or on a recording.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::{ArgGroup, Args};
use kube::Client;
use machinery_client::{Api, ListOptions, Pod, Typed};
use machinery_env::Env;
use scheduler::Metrics;
use scheduler::explain::{Explanation, NodeExplanation, Recording};
use scheduler::wasm::{self, Answers, Guest, WasmPlugin};
use serde_json::Value;
use tools_cluster::api_error::api_message;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::{columns, plain};
use tools_command::runtime;
use tools_scheduler_plugins::Plugins;
use wasm_runtime::options::guests::GuestOptions;

use super::{ExplainFlags, file_error, read_recording, read_text};

/// Page size of lists.
const PAGE: usize = 500;
/// Maximum size of a manifest or a scheduler's file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Arguments of `coracle explain-scheduling`.
#[derive(Debug, Clone, Args)]
#[group(skip)]
#[command(group(ArgGroup::new("subject").required(true).args(["pod", "filename", "replay"])))]
pub struct ExplainScheduling {
    /// An existing pod, as if it were unscheduled
    #[arg(value_name = "POD")]
    pod: Option<String>,
    /// Manifest of a new pod, which the API server completes and doesn't store
    #[arg(short, long, env = "CORACLE_FILENAME", value_name = "FILE")]
    filename: Option<PathBuf>,
    #[command(flatten)]
    explain: ExplainFlags,
    /// The scheduler's KubeSchedulerConfiguration [default: upstream's default profile]
    #[arg(long, env = "CORACLE_SCHEDULER_CONFIG", value_name = "FILE", conflicts_with = "replay")]
    scheduler_config: Option<PathBuf>,
    #[command(flatten)]
    plugins: GuestOptions,
}

/// Prints the explanation.
///
/// # Errors
/// If there is no such pod, the user may not read the cluster, or a file is invalid.
pub fn run(flags: &ExplainScheduling, common: &Common) -> Result<(), Failure> {
    let recording = match &flags.explain.replay {
        Some(file) => read_recording(file, Recording::parse)?,
        None => runtime::single_threaded()?.block_on(record_cluster(flags, common))?,
    };
    let explained = recording.explain();
    flags.explain.write_recording(&recording)?;
    let explained = explained.map_err(anyhow::Error::new)?;
    flags.explain.print(&explained, || format_table(&explained))
}

fn yaml_of(file: &Path) -> anyhow::Result<Value> {
    machinery_api::yaml::read(&read_text(file, FILE_BYTES_MAX)?).map_err(|why| file_error(file, why))
}

/// The pod and the cluster, as far as the user may read them.
async fn record_cluster(flags: &ExplainScheduling, common: &Common) -> anyhow::Result<Recording> {
    let client = flags.explain.client(&Env::real(), common).await?;
    let configuration = flags.scheduler_config.as_deref().map(yaml_of).transpose()?;
    let whole = subject(flags, &client).await?;
    let pod: Pod = machinery_client::read(whole.clone()).context("cannot read the pod")?;
    let mut recording = Recording::new(pod, configuration);
    recording.nodes = all(&client).await?;
    recording.pods = all(&client).await?;
    recording.namespaces = all(&client).await?;
    recording.services = all(&client).await?;
    recording.pod_disruption_budgets = all(&client).await?;
    recording.persistent_volume_claims = all(&client).await?;
    recording.persistent_volumes = all(&client).await?;
    recording.storage_classes = all(&client).await?;
    recording.csi_nodes = all(&client).await?;
    recording.plugin_answers = plugin_verdicts(&recording, whole, &flags.plugins).await?;
    Ok(recording)
}

/// The verdicts of WebAssembly plugins; `None` if the profile has none.
async fn plugin_verdicts(recording: &Recording, pod: Value, guests: &GuestOptions) -> anyhow::Result<Option<Answers>> {
    let (plugins, mut request) = recording.build_plugin_request()?;
    if plugins.is_empty() {
        return Ok(None);
    }
    request.pod = pod.to_string();
    let env = Env::real();
    let host = Plugins::alone(&plugins, guests, &env)?;
    let figures = Arc::new(Metrics::default());
    let guest = |plugin: Arc<WasmPlugin>| Guest::new(plugin, host.clone(), env.clone(), figures.clone());
    let guests: Vec<Guest> = plugins.into_iter().map(guest).collect();
    Ok(Some(wasm::call_plugins(&guests, &request).await.map_err(anyhow::Error::msg)?))
}

/// The whole pod to explain.
async fn subject(flags: &ExplainScheduling, client: &Client) -> anyhow::Result<Value> {
    let Some(file) = &flags.filename else {
        let name = name_of(flags.pod.as_deref().unwrap_or_default())?;
        let pods = Api::<Pod>::namespaced(client.clone(), &flags.explain.namespace);
        return pods.get_value(name).await.map_err(api_message);
    };
    let mut manifest = yaml_of(file)?;
    if manifest["kind"] != "Pod" {
        return Err(file_error(file, "it is no Pod"));
    }
    if manifest["metadata"]["namespace"].is_null() {
        manifest["metadata"]["namespace"] = flags.explain.namespace.clone().into();
    }
    let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or_default();
    let pods = Api::<Pod>::namespaced(client.clone(), namespace).dry_run();
    // The pod after admission counts: with its priority, tolerations and limits.
    pods.create_value(&manifest).await.map_err(api_message)
}

/// The name in `NAME` or `pod/NAME`.
fn name_of(pod: &str) -> anyhow::Result<&str> {
    match pod.split_once('/') {
        None => Ok(pod),
        Some(("po" | "pod" | "pods", name)) if !name.contains('/') => Ok(name),
        Some(_) => Err(anyhow!("{pod}: wanted a pod, NAME or pod/NAME")),
    }
}

/// All objects of a kind, page by page.
async fn all<K: Typed>(client: &Client) -> anyhow::Result<Vec<K>> {
    let api = Api::<K>::all(client.clone());
    let (mut objects, mut options) = (Vec::new(), ListOptions { limit: PAGE, ..ListOptions::default() });
    loop {
        let page = api.list(&options).await.map_err(api_message)?;
        objects.extend(page.items);
        if page.continue_token.is_empty() {
            return Ok(objects);
        }
        options.continue_token = page.continue_token;
    }
}

/// Prints for people. Names and reasons are untrusted: control characters must not reach a terminal.
fn format_table(explanation: &Explanation) -> String {
    let (fit, refused): (Vec<_>, Vec<_>) = explanation.nodes.iter().partition(|node| node.refused.is_none());
    let mut text = format!("pod {} by the profile {}", explanation.pod, explanation.profile);
    match (&explanation.node, &explanation.message) {
        (Some(node), _) => {
            text.push_str(&format!(": to {node}; {} of {} nodes will do", fit.len(), explanation.nodes.len()))
        }
        (None, message) => text.push_str(&format!(": nowhere. {}", message.as_deref().unwrap_or_default())),
    }
    let mut line = |words: String| text.push_str(&format!("\n{words}"));
    if !explanation.equals.is_empty() {
        line(format!("as good, and as likely: {}", explanation.equals.join(", ")));
    }
    if explanation.nominated {
        line("preemption already freed the node: other nodes are not compared".into());
    }
    if let Some(preemption) = &explanation.preemption {
        line(format!("would preempt on {}: {}", preemption.node, preemption.victims.join(", ")));
    }
    if explanation.gated {
        line("it has scheduling gates: it waits for their removal first".into());
    }
    if !explanation.not_queried.is_empty() {
        line(format!("these also decide and are not queried here: {}", explanation.not_queried.join(", ")));
    }
    for failed in &explanation.failed {
        line(format!("a plugin failed and is skipped: {failed}"));
    }
    text.push('\n');
    let mut tables = vec![scores(explanation, &fit)];
    tables.push(refusals(&refused));
    tables.retain(|rows| rows.len() > 1);
    for rows in tables {
        text.push_str(&format!("\n{}", columns(&rows)));
    }
    plain(&text)
}

/// Each plugin's score from 0 to 100, and the score times its weight.
fn scores(explanation: &Explanation, fit: &[&NodeExplanation]) -> Vec<Vec<String>> {
    let names = explanation.plugins.iter().map(|plugin| plugin.name.to_owned());
    let mut rows = vec![["NODE".to_owned(), "TOTAL".to_owned()].into_iter().chain(names).collect::<Vec<_>>()];
    rows.extend(fit.iter().map(|node| {
        let cells = node.scores.iter().zip(&explanation.plugins);
        let cells = cells.map(|(score, plugin)| format!("{}x{}={}", score.normalized, plugin.weight, score.weighted));
        [node.name.clone(), node.total.unwrap_or(0).to_string()].into_iter().chain(cells).collect()
    }));
    rows
}

fn refusals(refused: &[&NodeExplanation]) -> Vec<Vec<String>> {
    let mut rows = vec![["NODE", "REFUSED BY", "REASON"].map(str::to_owned).to_vec()];
    rows.extend(refused.iter().filter_map(|node| {
        let by = node.refused.as_ref()?;
        Some(vec![node.name.clone(), by.plugin.to_owned(), by.reasons.join(", ")])
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(pod: Value) -> Explanation {
        let node = |name: &str, pods: &str| json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": pods}}});
        let mut file =
            json!({"kind": "SchedulingRecord", "form": 1, "nodes": [node("a", "9"), node("b\u{1b}[2J", "0")]});
        file["pod"] =
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"schedulerName": "default-scheduler"}});
        file["pod"]["spec"].as_object_mut().unwrap().extend(pod.as_object().unwrap().clone());
        Recording::parse(&file.to_string()).unwrap().explain().unwrap()
    }

    #[test]
    fn a_pod_is_named_as_kubectl_does() {
        assert_eq!([name_of("a").unwrap(), name_of("pod/a").unwrap(), name_of("pods/a").unwrap()], ["a"; 3]);
        for other in ["deployment/a", "pod/a/log", "/a"] {
            assert!(name_of(other).is_err(), "{other}");
        }
    }

    #[test]
    fn a_person_reads_a_table() {
        let text = format_table(&of(json!({})));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "pod n/p by the profile default-scheduler: to a; 1 of 2 nodes will do");
        assert!(lines[2].starts_with("NODE   TOTAL   NodeResourcesFit"), "{text}");
        assert_eq!(lines[5], "NODE    REFUSED BY         REASON");
        assert_eq!(lines[6], "b?[2J   NodeResourcesFit   Too many pods");
        let text =
            format_table(&of(json!({"nodeName": "x", "schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "b"}})));
        let message = "nowhere. 0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
        assert!(text.contains(message) && text.contains("scheduling gates"), "{text}");
    }
}
