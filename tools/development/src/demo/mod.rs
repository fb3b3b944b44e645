//! `coracle demo`: demonstrates a cluster's main features with measured figures.

mod cluster;
mod load;
mod samples;
mod state;
mod usage;

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::future::LocalBoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use images::push;
use kube::Client;
use machinery_env::Env;
use serde_json::json;
use tokio::runtime::Runtime;
use wasm_runtime::engine::MODULE_INSPECTOR;

use self::load::Load;
use self::usage::Usage;
use crate::registry;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::output::print_stdout;
use tools_command::panics;
use tools_command::progress::Progress;
use tools_command::signals::stop_signal;

/// Connections of the measured load: enough to keep two cores busy, few enough for meaningful latencies.
const CONNECTIONS: usize = 16;

/// Duration of the measured load.
const LOAD: Duration = Duration::from_secs(3);

/// Flags of `coracle demo`.
#[derive(Debug, Clone, Args)]
pub struct Demo {
    /// Leaves the cluster running and prints how to go on
    #[arg(long, env = "CORACLE_KEEP")]
    pub(crate) keep: bool,
}

/// A cluster of 2 nodes that was started for the demo.
pub struct DemoCluster {
    /// `https://ADDR:PORT`
    pub server: String,
    /// A client of `system:masters`.
    pub admin: Client,
    /// Time from the start to the first response of the API.
    pub api_ready_after: Duration,
    /// Drains and stops it.
    pub stop: LocalBoxFuture<'static, ()>,
}

/// Runs the demo in a temporary folder, on a cluster that `start` starts in that folder.
///
/// # Errors
/// If a step fails, with the expected result.
pub fn run(
    flags: &Demo,
    env: &Env,
    runtime: Runtime,
    start: impl AsyncFnOnce(&DataDir, Progress) -> anyhow::Result<DemoCluster>,
) -> Result<(), Failure> {
    let mut folder = tempfile::Builder::new();
    folder.prefix("coracle-demo-");
    // The folder holds keys.
    #[cfg(unix)]
    folder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    let temporary = folder.tempdir().context("cannot make a temporary folder")?;
    let data = DataDir::at(temporary.path().to_path_buf());
    let kept = runtime.block_on(async {
        let mut story = Story::new(env.clone());
        let cluster = start(&data, story.progress).await?;
        let outcome = run_story(&mut story, env, &cluster, &data).await;
        if outcome.is_ok() && flags.keep {
            let _ = print_stdout!(
                "\nThe cluster keeps running until you press Ctrl-C. Go on with:\n  export KUBECONFIG={}\n  kubectl -n shop get pods -o wide",
                data.kubeconfig().display()
            );
            stop_signal().await;
        }
        cluster.stop.await;
        outcome.map(|()| flags.keep)
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    panics::check_none()?;
    if !kept {
        print_stdout!("\nCleaned up: nothing is left behind.")?;
    }
    Ok(())
}

async fn run_story(story: &mut Story, env: &Env, cluster: &DemoCluster, data: &DataDir) -> anyhow::Result<()> {
    story.report(&format!(
        "A cluster with 2 nodes is up at {}; its API was ready after {}.",
        cluster.server,
        ms(cluster.api_ready_after)
    ));
    let client = cluster.admin.clone();

    let before = env.elapsed();
    story.doing("pushing and compiling nine modules");
    let registry = registry::access(data)?;
    for (name, module) in samples::MODULES {
        for tag in ["v1", "v2"] {
            let reference = format!("registry.local/{name}:{tag}");
            push(env, module.to_vec(), MODULE_INSPECTOR, &reference, &registry).await?;
        }
    }
    story.report(&format!("Nine Wasm modules were pushed into its registry in {}.", ms(env.elapsed() - before)));

    let before = env.elapsed();
    story.doing("deploying the shop");
    cluster::create_all(&client, samples::SHOP).await?;
    cluster::create_all(&client, samples::SHOP_ORDERS).await?;
    for name in ["frontend", "catalog", "users", "payments"] {
        cluster::rolled_out(&client, &story.env, "shop", name).await?;
    }
    state::database_ready(&client, &story.env, None).await?;
    let ready = env.elapsed() - before;
    let (nodes, pods) = cluster::spread(&client, "shop").await?;
    anyhow::ensure!(nodes == 2, "the shop's pods run on {nodes} of 2 nodes");
    story.report(&format!(
        "The shop, four microservices and a database from YAML, is ready after {}: {pods} pods on {nodes} nodes.",
        ms(ready)
    ));

    let port = cluster::node_port(&client, "shop", "frontend").await?;
    let id = order(env, port).await?;
    story.report("An order went from the frontend through catalog, users and payments by Service name, and is paid.");
    state::run_stateful_part(story, &client, port, &id).await?;

    story.doing("sending traffic");
    let usage = Usage::read();
    let load = Load::start(env, "127.0.0.1", port, "/api/products", CONNECTIONS);
    env.sleep(LOAD).await;
    let measured = load.finish().await;
    let used = Usage::read();
    anyhow::ensure!(
        measured.failures == 0,
        "{} of {} requests failed under load",
        measured.failures,
        measured.requests
    );
    let cpu_us = (used.cpu.saturating_sub(usage.cpu)).as_micros() / u128::from(measured.requests.max(1));
    story.report(&format!(
        "{} requests over {CONNECTIONS} connections, none failed: {:.0} a second, p50 {}, p99 {}, {cpu_us} µs of CPU each\n  (two fresh Wasm instances for each, frontend and catalog; the client's own work counts, too).",
        measured.requests,
        measured.rate(),
        ms(measured.percentile(0.5)),
        ms(measured.percentile(0.99)),
    ));

    let load = Load::start(env, "127.0.0.1", port, "/api/products", 2);
    story.doing("killing a pod");
    let before = env.elapsed();
    let lost = cluster::delete_one_pod(&client, &story.env, "shop", "catalog").await?;
    cluster::rolled_out(&client, &story.env, "shop", "catalog").await?;
    story.report(&format!("Pod {lost} was deleted; its replacement was ready {} later.", ms(env.elapsed() - before)));

    story.doing("scaling");
    let before = env.elapsed();
    cluster::scale(&client, "shop", "frontend", 6).await?;
    cluster::rolled_out(&client, &story.env, "shop", "frontend").await?;
    story.report(&format!("The frontend was scaled from 3 to 6 pods in {}.", ms(env.elapsed() - before)));

    story.doing("rolling out a new version");
    let before = env.elapsed();
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "frontend", "image": "registry.local/shop-frontend:v2"}]}}}});
    cluster::patch_strategic(&client, "shop", "frontend", &image).await?;
    cluster::rolled_out(&client, &story.env, "shop", "frontend").await?;
    let took = env.elapsed() - before;
    let measured = load.finish().await;
    anyhow::ensure!(
        measured.failures == 0,
        "{} of {} requests failed while pods came and went",
        measured.failures,
        measured.requests
    );
    story.report(&format!(
        "It was rolled to a new version in {}. All the while {} requests were sent: none failed.",
        ms(took),
        measured.requests
    ));

    state::report_autoscaler(story, &client).await?;
    limits(story, &client).await?;

    let memory = Usage::read().memory_bytes / (1024 * 1024);
    story.report(&format!("This whole cluster, control plane, nodes, pods and all, holds {memory} MiB of memory."));
    Ok(())
}

async fn limits(story: &mut Story, client: &Client) -> anyhow::Result<()> {
    story.doing("deploying modules that misbehave");
    for manifest in samples::MISBEHAVING {
        cluster::create_all(client, manifest).await?;
    }
    let fuel = json!({"spec": {"template": {"metadata": {"annotations": {"fuel.coracle.dev/endless": "50000000"}}}}});
    cluster::patch(client, "default", "endless", &fuel).await?;
    for name in ["endless", "glutton", "trap"] {
        cluster::rolled_out(client, &story.env, "default", name).await?;
    }
    for (name, path, status, reason, what) in [
        ("endless", "/loop", 503, "fuel", "An endless loop was stopped by its fuel"),
        ("glutton", "/eat?mb=512", 503, "memory", "A memory eater was stopped by its limit of 64 MiB"),
        ("trap", "/trap", 502, "trap", "A trap cost one request"),
    ] {
        let ip = cluster::cluster_ip(client, "default", name).await?;
        let (got, why) = get(&story.env, &ip, 80, path).await?;
        anyhow::ensure!(
            (got, why.as_str()) == (status, reason),
            "{name}{path} answered {got} {why:?}, not {status} {reason:?}"
        );
        let (after, _) = get(&story.env, &ip, 80, "/").await?;
        anyhow::ensure!(after == 200, "{name} answered {after} after it was stopped");
        story.report(&format!("{what} ({status}, coracle-reason: {reason}); the pod's next request was answered."));
    }
    Ok(())
}

/// Places an order, which must be paid; returns its id.
async fn order(env: &Env, port: u16) -> anyhow::Result<String> {
    let (status, _, body) = exchange(env, ("127.0.0.1", port), Request::get("/api/products"), "").await?;
    anyhow::ensure!(status == 200, "the shop's products answered {status}");
    let products: serde_json::Value = serde_json::from_slice(&body)?;
    let order = json!({"product": products[0]["id"], "user": "ada", "quantity": 2}).to_string();
    let request = Request::post("/api/orders").header("content-type", "application/json");
    let (status, _, body) = exchange(env, ("127.0.0.1", port), request, &order).await?;
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    anyhow::ensure!(status < 300 && answer["status"] == "paid", "the order answered {status}: {answer}");
    Ok(answer["id"].as_str().context("the order has no id")?.to_owned())
}

async fn get(env: &Env, host: &str, port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let (status, reason, _) = exchange(env, (host, port), Request::get(path), "").await?;
    Ok((status, reason))
}

/// Sends one request on a new connection; returns status, `coracle-reason` and body.
async fn exchange(
    env: &Env,
    (host, port): (&str, u16),
    request: hyper::http::request::Builder,
    body: &str,
) -> anyhow::Result<(u16, String, Vec<u8>)> {
    let stream =
        tokio::net::TcpStream::connect((host, port)).await.with_context(|| format!("connecting to {host}:{port}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = request.header("host", host).body(Full::from(body.to_owned()))?;
    let response = env.timeout(Duration::from_secs(70), sender.send_request(request)).await.context("no answer")??;
    let status = response.status().as_u16();
    let header = response.headers().get(machinery_api::names::REASON_HEADER);
    let reason = header.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    Ok((status, reason, response.into_body().collect().await?.to_bytes().to_vec()))
}

fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 10_000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1000.0)
    }
}

/// Prints results on stdout, and the current step in a terminal's last line.
struct Story {
    env: Env,
    progress: Progress,
}

impl Story {
    fn new(env: Env) -> Self {
        Self { env, progress: Progress::stderr() }
    }

    fn doing(&self, what: &str) {
        self.progress.doing(what);
    }

    fn report(&mut self, what: &str) {
        self.progress.done();
        // The demo runs to its end and cleans up, even without a reader.
        let _ = print_stdout!("[{:>5.1} s] {what}", self.env.elapsed().as_secs_f64());
    }
}
