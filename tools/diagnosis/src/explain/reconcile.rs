//! `coracle explain-reconcile`: prints what an object's controllers would do now, and does nothing. It runs the
//! controllers' own decisions on the user's view of the cluster or on a recording.

use anyhow::{Context as _, anyhow};
use clap::{ArgGroup, Args};
use controllers::explain::{Explanation, Recording, Response, find_kind, of_controllers};
use http::{Request, header::ACCEPT};
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::discovery::discover_kinds;
use machinery_client::{Kind, request::query_string};
use machinery_env::Env;
use serde_json::Value;
use tools_cluster::api_error::api_message;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::plain;
use tools_command::runtime;

use super::{ExplainFlags, read_recording};

/// Objects in a page of a list.
const PAGE: usize = 500;
/// Maximum rounds of requests of the decisions.
const ROUNDS_MAX: usize = 24;
/// Lists of metadata alone, for controllers that watch every kind.
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;q=0.5";

/// Arguments of `coracle explain-reconcile`.
#[derive(Debug, Clone, Args)]
#[group(skip)]
#[command(group(ArgGroup::new("subject").required(true).args(["object", "replay"])))]
pub struct ExplainReconcile {
    /// An existing object, as deployment/web
    #[arg(value_name = "KIND/NAME")]
    object: Option<String>,
    #[command(flatten)]
    explain: ExplainFlags,
    /// The only controller to run [default: those that reconcile the object by its name]
    #[arg(long, env = "CORACLE_CONTROLLER", value_name = "NAME", conflicts_with = "replay")]
    controller: Option<String>,
}

/// Prints the explanation.
///
/// # Errors
/// If there is no such object or no controller for it, the user may not read what the controllers read, or a file is
/// invalid.
pub fn run(flags: &ExplainReconcile, common: &Common) -> Result<(), Failure> {
    let recording = match &flags.explain.replay {
        Some(file) => read_recording(file, Recording::parse)?,
        None => runtime::single_threaded()?.block_on(record_cluster(flags, common))?,
    };
    flags.explain.write_recording(&recording)?;
    let explained: Explanation = recording.explain().map_err(anyhow::Error::new)?;
    // Names and messages are untrusted: control characters must not reach a terminal.
    flags.explain.print(&explained, || plain(explained.to_string().trim_end()))
}

/// The object and all that its controllers read, as far as the user may.
async fn record_cluster(flags: &ExplainReconcile, common: &Common) -> anyhow::Result<Recording> {
    let env = Env::real();
    let client = flags.explain.client(&env, common).await?;
    let (kind, name) = split(flags.object.as_deref().unwrap_or_default())?;
    let kind = resolve(&client, kind).await?;
    let namespace = if kind.namespaced { flags.explain.namespace.as_str() } else { "" };
    let object = get(&client, &kind.path(&ObjectKey::new(namespace, name))).await.map_err(api_message)?;
    let mut recording = Recording::new(env.now(), &kind, object, flags.controller.as_deref());
    let inputs = recording.inputs()?;
    for kind in &inputs.kinds {
        recording.add(kind, list(&client, kind, &inputs.namespace, "application/json").await?, false);
    }
    if inputs.everything {
        let served = discover_kinds(&client).await.map_err(api_message)?.kinds;
        for kind in served.iter().filter(|kind| !inputs.kinds.contains(kind)) {
            recording.add(kind, list(&client, kind, &inputs.namespace, METADATA_LIST).await?, true);
        }
    }
    for _ in 0..ROUNDS_MAX {
        let missing = recording.missing()?;
        if missing.is_empty() {
            return Ok(recording);
        }
        for path in missing {
            let response = match get(&client, &path).await {
                Ok(object) => Response::Object(object),
                // The controller has the right.
                Err(kube::Error::Api(status)) if !matches!(status.code, 401 | 403) => Response::Error {
                    code: status.code,
                    reason: status.reason.clone(),
                    message: status.message.clone(),
                },
                Err(error) => return Err(api_message(error)),
            };
            recording.respond(&path, response);
        }
    }
    Err(anyhow!("the decisions request objects without end: {:?}", recording.missing()?))
}

/// Kind and name in `KIND/NAME`.
fn split(object: &str) -> anyhow::Result<(&str, &str)> {
    match object.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') => Ok((kind, name)),
        _ => Err(anyhow!("{object}: wanted an object, KIND/NAME, as deployment/web")),
    }
}

/// A kind by its name: one that controllers watch by its type, else any that the server has.
async fn resolve(client: &Client, name: &str) -> anyhow::Result<Kind> {
    if let Some(kind) = find_kind(name, &of_controllers()) {
        return Ok(kind);
    }
    let served = discover_kinds(client).await.map_err(api_message)?.kinds;
    let kinds: Vec<Kind> = served.into_iter().collect();
    find_kind(name, &kinds).ok_or_else(|| anyhow!("the server has no kind {name:?}: see kubectl api-resources"))
}

async fn get(client: &Client, path: &str) -> Result<Value, kube::Error> {
    client.request(Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?).await
}

/// All objects of a kind in a namespace, page by page.
async fn list(client: &Client, kind: &Kind, namespace: &str, accept: &str) -> anyhow::Result<Vec<Value>> {
    let path = kind.collection_path(namespace);
    let limit = PAGE.to_string();
    let (mut objects, mut next) = (Vec::new(), String::new());
    loop {
        let mut query = vec![("limit", limit.as_str())];
        if !next.is_empty() {
            query.push(("continue", &next));
        }
        let request = Request::get(format!("{path}?{}", query_string(&query))).header(ACCEPT, accept);
        let mut page: Value =
            client.request(request.body(Vec::new()).context("cannot make a request")?).await.map_err(api_message)?;
        if let Value::Array(items) = page["items"].take() {
            objects.extend(items);
        }
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if next.is_empty() {
            return Ok(objects);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn an_object_is_named_by_kind_and_name() {
        assert_eq!(split("deploy/web").unwrap(), ("deploy", "web"));
        for other in ["web", "deploy/", "/web", "deploy/web/log"] {
            assert!(split(other).unwrap_err().to_string().contains("KIND/NAME"), "{other}");
        }
    }
}
