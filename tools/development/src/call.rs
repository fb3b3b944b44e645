//! `coracle call`: calls a plugin's function with WAVE arguments, through the API server's proxy of pods and Services.
//! It needs a kubeconfig and the right to `pods/proxy` or `services/proxy`.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Client;
use kube::client::Body;
use machinery_client::{Api, ListOptions};
use machinery_env::Env;

use tools_cluster::api_error::api_message;
use tools_cluster::kubeconfig::KubeconfigSource;
use tools_cluster::probe::ApiProbe;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::{print_stderr, print_stdout};
use tools_command::runtime;

/// Maximum size of a response: a plugin's largest result, and more.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// The default port of a plugin (docs/contract.md §4).
const PORT_DEFAULT: i32 = 80;
const WAVE: &str = "application/x-wave";
const SESSION_HEADER: &str = "coracle-session";
const REASON_HEADER: &str = "coracle-reason";

/// Arguments of `coracle call`.
#[derive(Debug, Clone, Args)]
pub struct Call {
    /// The namespace
    #[arg(short, long, env = "CORACLE_NAMESPACE", default_value = "default", value_name = "NS")]
    pub(crate) namespace: String,
    /// Kubeconfig of the cluster [default: the one of --data-dir, else kubectl's]
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Session of the call: that of a resource, or a name of your own
    #[arg(long, env = "CORACLE_SESSION", value_name = "NAME")]
    pub(crate) session: Option<String>,
    /// The resource to call: pod/NAME, deployment/NAME or service/NAME
    #[arg(value_name = "RESOURCE", value_parser = parse_target)]
    pub(crate) resource: Target,
    /// The function: its whole name, or its last part if that is unique
    #[arg(value_name = "FUNC")]
    pub(crate) function: String,
    /// Arguments in WAVE: '"text"', 1, true, '[1, 2]', '{x: 1}', some-case; arguments that begin with a dash and aren't
    /// numbers follow `--`
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    pub(crate) arguments: Vec<String>,
}

/// The called resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Pod(String),
    Deployment(String),
    Service(String),
}

pub(super) fn parse_target(text: &str) -> Result<Target, String> {
    let wanted = || "wanted pod/NAME, deployment/NAME or service/NAME".to_owned();
    let (kind, name) = text.split_once('/').ok_or_else(wanted)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(wanted());
    }
    match kind {
        "pod" | "pods" | "po" => Ok(Target::Pod(name.to_owned())),
        "deployment" | "deployments" | "deploy" => Ok(Target::Deployment(name.to_owned())),
        "service" | "services" | "svc" => Ok(Target::Service(name.to_owned())),
        _ => Err(wanted()),
    }
}

/// Calls the function and prints its result in WAVE.
///
/// # Errors
/// If there is no such resource or function, an argument has the wrong type, or the call failed.
pub fn run(flags: &Call, common: &Common) -> Result<(), Failure> {
    let source = KubeconfigSource::choose(flags.kubeconfig.as_deref(), &DataDir::of(common)?)?;
    let runtime = runtime::single_threaded()?;
    runtime.block_on(call(flags, source))?;
    Ok(())
}

/// The WIT of a plugin.
///
/// # Errors
/// If there is no such resource, or it is no plugin.
pub(super) fn wit(resource: Target, namespace: &str, source: KubeconfigSource) -> anyhow::Result<String> {
    let (kubeconfig, session, function, arguments) = (None, None, String::new(), Vec::new());
    let flags = Call { namespace: namespace.to_owned(), kubeconfig, session, resource, function, arguments };
    let runtime = runtime::single_threaded()?;
    runtime.block_on(async {
        let client = client(source).await?;
        let path = format!("{}wit", base(&client, &flags).await?);
        let answer = send(&client, Request::get(path).body(Body::empty())?).await;
        let answer = answer.with_context(|| format!("{} has no WIT: it is no plugin", target_label(&flags)))?;
        String::from_utf8(answer.into_body()).context("the plugin's WIT is no text")
    })
}

async fn client(source: KubeconfigSource) -> anyhow::Result<Client> {
    Ok(ApiProbe::of(&Env::real(), source).await?.client().clone())
}

async fn call(flags: &Call, source: KubeconfigSource) -> anyhow::Result<()> {
    let client = client(source).await?;
    let base = base(&client, flags).await?;
    let listed = send(&client, Request::get(&base).body(Body::empty())?).await?;
    let listed = serde_json::from_slice::<serde_json::Value>(&listed.into_body()).ok();
    let listed =
        listed.with_context(|| format!("{} is no plugin: it answers, and lists no functions", target_label(flags)))?;
    let names = listed["functions"].as_array().into_iter().flatten().filter_map(|function| function["name"].as_str());
    let name = choose(&names.collect::<Vec<_>>(), &flags.function)?.to_owned();
    let path = name.replace('[', "%5B").replace(']', "%5D");
    let mut request =
        Request::builder().method(Method::POST).uri(format!("{base}{path}")).header(header::CONTENT_TYPE, WAVE);
    if let Some(session) = &flags.session {
        request = request.header(SESSION_HEADER, session);
    }
    let body = format!("({})", flags.arguments.join(", "));
    let answer = send(&client, request.body(Body::from(body.into_bytes()))?).await?;
    if let (Some(session), None) = (answer.headers().get(SESSION_HEADER), &flags.session) {
        print_stderr!("session {}", session.to_str().unwrap_or_default());
    }
    print_stdout!("{}", String::from_utf8_lossy(answer.body()))?;
    Ok(())
}

fn target_label(flags: &Call) -> String {
    match &flags.resource {
        Target::Pod(name) => format!("pod/{name}"),
        Target::Deployment(name) => format!("deployment/{name}"),
        Target::Service(name) => format!("service/{name}"),
    }
}

/// The path of its functions on the API server.
async fn base(client: &Client, flags: &Call) -> anyhow::Result<String> {
    let namespace = &flags.namespace;
    let pod = match &flags.resource {
        Target::Service(name) => {
            let service = Api::<Service>::namespaced(client.clone(), namespace).get(name).await.map_err(api_message)?;
            let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
            let port = ports.first().with_context(|| format!("service/{name} has no port"))?.port;
            return Ok(format!("/api/v1/namespaces/{namespace}/services/{name}:{port}/proxy/"));
        }
        Target::Pod(name) => Api::<Pod>::namespaced(client.clone(), namespace).get(name).await.map_err(api_message)?,
        Target::Deployment(name) => {
            let deployment =
                Api::<Deployment>::namespaced(client.clone(), namespace).get(name).await.map_err(api_message)?;
            let selector = deployment.spec.map(|spec| spec.selector).unwrap_or_default();
            let labels: Vec<String> =
                selector.match_labels.unwrap_or_default().iter().map(|(key, value)| format!("{key}={value}")).collect();
            let pods = Api::<Pod>::namespaced(client.clone(), namespace);
            let pods = pods
                .list(&ListOptions { labels: labels.join(","), ..ListOptions::default() })
                .await
                .map_err(api_message)?;
            let ready = pods.items.into_iter().find(is_ready);
            ready.with_context(|| format!("no pod of deployment/{name} is ready; see kubectl get pods"))?
        }
    };
    let name = pod.metadata.name.clone().unwrap_or_default();
    Ok(format!("/api/v1/namespaces/{namespace}/pods/{name}:{}/proxy/", port(&pod)))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The first port of its first container.
fn port(pod: &Pod) -> i32 {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    let ports = container.and_then(|container| container.ports.as_deref()).unwrap_or_default();
    ports.first().map_or(PORT_DEFAULT, |port| port.container_port)
}

/// Resolves a function's name: the whole name, with or without version, or its last part. Pure.
fn choose<'a>(names: &[&'a str], wanted: &str) -> anyhow::Result<&'a str> {
    let plain = |name: &str| match name.rsplit_once('/') {
        Some((interface, function)) => {
            format!("{}/{}", interface.split('@').next().unwrap_or_default(), bare(function))
        }
        None => bare(name).to_owned(),
    };
    let last = |name: &&&str| bare(name.rsplit('/').next().unwrap_or_default()) == bare(wanted);
    if let Some(exact) = names.iter().find(|name| **name == wanted) {
        return Ok(exact);
    }
    let with_interface: Vec<&&str> = names.iter().filter(|name| plain(name) == plain(wanted)).collect();
    let found = if wanted.contains('/') { with_interface } else { names.iter().filter(last).collect() };
    match found[..] {
        [one] => Ok(one),
        [] => bail!("it has no function {wanted}; it has {}", names.join(", ")),
        _ => {
            let all: Vec<&str> = found.into_iter().copied().collect();
            bail!("{wanted} may be any of {}: give the whole name", all.join(", "))
        }
    }
}

/// A function's name without the brackets of a resource's.
fn bare(name: &str) -> &str {
    name.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(name, |(_, name)| name)
}

/// The whole response, if it is a success.
async fn send(client: &Client, request: Request<Body>) -> anyhow::Result<Response<Vec<u8>>> {
    let (parts, body) = client.send(request).await.map_err(api_message)?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?.to_bytes().to_vec();
    if parts.status == StatusCode::OK {
        return Ok(Response::from_parts(parts, body));
    }
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    // The plugin's error, or the API server's Status.
    let words = json["error"].as_str().or_else(|| json["message"].as_str()).map(str::to_owned);
    let reason = parts.headers.get(REASON_HEADER).and_then(|reason| reason.to_str().ok());
    Err(match (words, reason) {
        (Some(words), _) => anyhow!("{words}"),
        (None, Some(reason)) => anyhow!("{} ({reason}): see kubectl logs", parts.status),
        (None, None) => anyhow!("{}: {}", parts.status, String::from_utf8_lossy(&body).trim()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_as_kubectl_names_them() {
        assert_eq!(parse_target("pod/a-1.b").unwrap(), Target::Pod("a-1.b".into()));
        assert_eq!(parse_target("deploy/a").unwrap(), Target::Deployment("a".into()));
        assert_eq!(parse_target("svc/a").unwrap(), Target::Service("a".into()));
        for bad in ["a", "pod/", "job/a", "pod/a/b", "pod/a:80", "pod/..%2f"] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_word_means_one_function() {
        let names =
            ["a:b/c@1.0.0/area", "a:b/c@2.0.0/area", "a:b/d@1.0.0/[method]cart.add", "a:b/d@1.0.0/name", "greet"];
        let chosen = |wanted: &str| choose(&names, wanted).map_err(|error| error.to_string());
        assert_eq!(chosen("a:b/c@1.0.0/area").unwrap(), names[0]);
        assert_eq!(chosen("a:b/d/name").unwrap(), names[3]);
        for word in ["cart.add", "[method]cart.add", "a:b/d/cart.add"] {
            assert_eq!(chosen(word).unwrap(), names[2], "{word}");
        }
        assert_eq!(chosen("greet").unwrap(), "greet");
        for word in ["area", "a:b/c/area"] {
            assert!(chosen(word).unwrap_err().contains("may be any of a:b/c@1.0.0/area, a:b/c@2.0.0/area"), "{word}");
        }
        assert!(chosen("none").unwrap_err().starts_with("it has no function none; it has a:b/c@1.0.0/area, "));
    }
}
