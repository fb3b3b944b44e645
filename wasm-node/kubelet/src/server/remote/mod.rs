//! `/exec/NAMESPACE/POD/CONTAINER`: a command beside what runs in a container, as `kubectl exec` asks for it.
//!
//! It is a new instance in the container's sandbox, and does not see the memory of the one that runs there.

mod attach;
mod options;
mod session;
#[cfg(test)]
mod shell;
mod status;
mod terminal;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use machinery_serve::accept::ConnectionPermit;
use runtime_api::{ExecError, ExecSpec};
use tokio::sync::OwnedSemaphorePermit;

use self::options::Options;
use self::session::{Begun, LastLines};
use self::terminal::LineDiscipline;
use super::requests::UnderWay;
use super::{Kubelet, upgrade};
use crate::pod::program::{self, Program};
use crate::pod::sandbox::{SESSIONS_MAX, Sandbox};
use crate::pod::settings::ExecAccess;
use crate::pod::worker::Seen;

pub(super) use attach::attach;

type Refused = Box<Response>;

/// The API server waits some 30 s for the head of an answer, and the first command of a module is compiled then: one that takes
/// longer than this is waited for by the client, on an upgraded connection, where what goes wrong is told as it writes.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(10);
/// How a session ends that never began for the node's own reasons, as container runtimes say it.
const FAILED_CODE: i32 = 126;

/// Takes the upgrade, or says why not in upstream's words.
pub(super) async fn exec(
    State(kubelet): State<Kubelet>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    Extension(counted): Extension<Arc<UnderWay>>,
    mut request: Request,
) -> Response {
    let upgraded = hyper::upgrade::on(&mut request);
    let (query, headers) = (query.unwrap_or_default(), std::mem::take(request.headers_mut()));
    let (headers, wire, options, begins) =
        match prepare(&kubelet, (&namespace, &name, &container), &query, &headers).await {
            Ok(prepared) => prepared,
            Err(refused) => return *refused,
        };
    tokio::spawn(async move {
        let _held = (permit, counted);
        let session = async {
            let io = upgraded.await.map_err(std::io::Error::other)?;
            wire::run(TokioIo::new(io), (wire, kubelet.streaming_idle), &options, |streams| async {
                let begins = match begins {
                    Soon::Now(begins) => Ok(begins),
                    Soon::Later(begins) => begins.await,
                };
                match begins {
                    Ok(Begins::Session(begun, _place)) => session::carry(*begun, streams).await,
                    Ok(Begins::NotFound(words)) => {
                        session::refuse(streams, words, program::NOT_FOUND_CODE).await;
                    }
                    Err((_, why)) => session::refuse(streams, format!("{why}\n"), FAILED_CODE).await,
                }
            })
            .await
        };
        tokio::select! {
            done = session => {
                if let Err(error) = done {
                    tracing::debug!(namespace, pod = name, container, %error, "an exec session ended");
                }
            }
            () = kubelet.stop.cancelled() => {}
        }
    });
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, Body::empty()).into_response();
    response.headers_mut().extend(headers);
    response
}

/// What begins once the connection is upgraded.
enum Begins {
    Session(Box<Begun>, OwnedSemaphorePermit),
    NotFound(String),
}

/// Why nothing begins: what is answered where the connection is not upgraded yet.
type Unbegun = (StatusCode, String);

type Prepared = (HeaderMap, wire::Wire, Options, Soon<Begins, Unbegun>);

/// Something that is there, or that takes longer than was waited for it.
enum Soon<T, E> {
    Now(T),
    Later(BoxFuture<'static, Result<T, E>>),
}

/// Waits so long for a result.
async fn soon<T, E>(mut work: BoxFuture<'static, Result<T, E>>, wait: Duration) -> Result<Soon<T, E>, E> {
    match tokio::time::timeout(wait, &mut work).await {
        Ok(done) => done.map(Soon::Now),
        Err(_) => Ok(Soon::Later(work)),
    }
}

async fn prepare(
    kubelet: &Kubelet,
    (namespace, name, container): (&str, &str, &str),
    query: &str,
    headers: &HeaderMap,
) -> Result<Prepared, Refused> {
    let seen = kubelet.pod(namespace, name);
    let seen = seen.ok_or_else(|| upgrade::refuse_in_words(StatusCode::NOT_FOUND, "pod does not exist".into()))?;
    let options = Options::read(query).map_err(upgrade::bad)?;
    if options.command.is_empty() {
        return Err(upgrade::bad("you must specify at least 1 command to execute".into()));
    }
    let sandbox = sandbox(kubelet, &seen, container)?;
    if sandbox.access == ExecAccess::Denied {
        return Err(denied("exec into", container, name));
    }
    let (headers, wire) = wire::choose(headers)?;
    let begins = begin(sandbox, options.clone(), container.to_owned()).boxed();
    let begins = soon(begins, HEAD_WAIT_MAX).await.map_err(|(status, why)| upgrade::refuse(status, why))?;
    Ok((headers, wire, options, begins))
}

fn denied(what: &str, container: &str, pod: &str) -> Refused {
    let annotation = format!("{}{container}", machinery_api::names::EXEC);
    let why = format!("{what} container {container:?} of pod {pod:?} is denied by the pod's annotation {annotation}");
    upgrade::refuse(StatusCode::FORBIDDEN, why)
}

/// What runs in a container; upstream's words where nothing does.
fn sandbox(kubelet: &Kubelet, seen: &Seen, container: &str) -> Result<Arc<Sandbox>, Refused> {
    if let Some(sandbox) = kubelet.pods.sandboxes.get(&seen.id.uid, container) {
        return Ok(sandbox);
    }
    let status = seen.status.get();
    let statuses = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let mut statuses = statuses.into_iter().flatten().flatten();
    let state = statuses.find(|status| status.name == container).and_then(|status| status.state.as_ref());
    let why = match state {
        Some(state) if state.terminated.is_some() => "container is in CONTAINER_EXITED state".to_owned(),
        _ => format!("container not found ({container:?})"),
    };
    Err(upgrade::refuse_in_words(StatusCode::INTERNAL_SERVER_ERROR, why))
}

/// Lets a session in, where there is such a command.
async fn begin(sandbox: Arc<Sandbox>, options: Options, container: String) -> Result<Begins, Unbegun> {
    let busy = |why: String| (StatusCode::TOO_MANY_REQUESTS, why);
    let failed = |why: String| (StatusCode::INTERNAL_SERVER_ERROR, why);
    let place = sandbox.places.clone().try_acquire_owned().map_err(|_| {
        busy(format!(
            "container {container:?} has {SESSIONS_MAX} sessions, as many as it may: try again when others have ended"
        ))
    })?;
    let wanted = options.command.first().map(String::as_str).unwrap_or_default();
    let has_toolbox = sandbox.access == ExecAccess::Allowed;
    let found = sandbox.program(wanted, has_toolbox).await.map_err(|error| failed(error.to_string()))?;
    let Some((program, command)) = found else { return Ok(Begins::NotFound(program::not_found(wanted))) };
    let (stdio, ends) = session::pipes(&options);
    let log = Arc::new(LastLines::default());
    let spec = ExecSpec {
        argv: options.command.clone(),
        // As container runtimes do.
        env: options.tty.then(|| ("TERM".to_owned(), "xterm".to_owned())).into_iter().collect(),
        folders: sandbox.session_folders().await,
        stdio,
        is_toolbox: sandbox.is_toolbox(&program),
        log: log.clone(),
        node_call: None,
    };
    let session = sandbox.container.exec(&command, spec).map_err(|error| match error {
        ExecError::Busy => busy(error.to_string()),
        ExecError::Load(error) => failed(error.to_string()),
    })?;
    let terminal = options.tty.then(|| LineDiscipline::new(program == Program::Toolbox));
    let begun = Begun { session, ends, log, terminal, gone: sandbox.gone.clone() };
    Ok(Begins::Session(Box::new(begun), place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_compilation_is_waited_for_after_the_head() {
        let takes = |seconds: u64| {
            async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                if seconds == 1 { Err("no") } else { Ok(seconds) }
            }
            .boxed()
        };
        assert!(matches!(soon(takes(2), HEAD_WAIT_MAX).await, Ok(Soon::Now(2))));
        assert!(matches!(soon(takes(1), HEAD_WAIT_MAX).await, Err("no")));
        let before = tokio::time::Instant::now();
        let Ok(Soon::Later(later)) = soon(takes(60), HEAD_WAIT_MAX).await else { panic!("it is not there yet") };
        assert_eq!((before.elapsed(), later.await), (HEAD_WAIT_MAX, Ok(60)));
    }
}
