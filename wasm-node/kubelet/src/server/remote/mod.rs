//! `/exec/NAMESPACE/POD/CONTAINER`: runs a command in a container's sandbox, for `kubectl exec`.
//!
//! The command is a new instance and can't access the memory of the container's running instance.

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
use machinery_env::Env;
use machinery_serve::accept::ConnectionPermit;
use runtime_api::{ExecError, ExecSpec};
use tokio::sync::OwnedSemaphorePermit;

use self::options::Options;
use self::session::{LastLines, StartedSession};
use self::terminal::LineDiscipline;
use super::requests::InFlightRequest;
use super::{Kubelet, upgrade};
use crate::pod::lifecycle::settings::ExecAccess;
use crate::pod::program::{self, Program};
use crate::pod::sandbox::{SESSIONS_MAX, Sandbox};
use crate::pod::worker::PodSnapshot;

pub(super) use attach::attach;

type ErrorResponse = Box<Response>;

/// Maximum time until the response's headers. The API server waits some 30 s for them, and a module's first command has
/// to be compiled. If that takes longer, the connection is upgraded first, and errors are written to the session.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(10);
/// The exit code of a session that failed to start for the node's own reasons, like container runtimes'.
const FAILED_CODE: i32 = 126;

/// Accepts the upgrade, or returns the error response with upstream's words.
pub(super) async fn exec(
    State(kubelet): State<Kubelet>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    Extension(counted): Extension<Arc<InFlightRequest>>,
    mut request: Request,
) -> Response {
    let upgraded = hyper::upgrade::on(&mut request);
    let (query, headers) = (query.unwrap_or_default(), std::mem::take(request.headers_mut()));
    let (headers, wire, options, start) =
        match prepare(&kubelet, (&namespace, &name, &container), &query, &headers).await {
            Ok(prepared) => prepared,
            Err(refused) => return *refused,
        };
    tokio::spawn(async move {
        let _held = (permit, counted);
        let session = async {
            let io = upgraded.await.map_err(std::io::Error::other)?;
            wire::run(TokioIo::new(io), &kubelet.env, (wire, kubelet.streaming_idle), &options, |streams| async {
                let start = match start {
                    Deferred::Now(start) => Ok(start),
                    Deferred::Later(start) => start.await,
                };
                match start {
                    Ok(SessionStart::Session(started, _place)) => session::run_session(*started, streams).await,
                    Ok(SessionStart::NotFound(words)) => {
                        session::fail(streams, words, program::NOT_FOUND_CODE).await;
                    }
                    Err((_, why)) => session::fail(streams, format!("{why}\n"), FAILED_CODE).await,
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

/// The session to start after the upgrade.
enum SessionStart {
    Session(Box<StartedSession>, OwnedSemaphorePermit),
    NotFound(String),
}

/// The error response if the connection is not upgraded yet.
type StartError = (StatusCode, String);

type PreparedExec = (HeaderMap, wire::Wire, Options, Deferred<SessionStart, StartError>);

/// A result, or the future of one that takes too long.
enum Deferred<T, E> {
    Now(T),
    Later(BoxFuture<'static, Result<T, E>>),
}

/// Waits for a result for this long.
async fn wait_up_to<T, E>(
    env: &Env,
    mut work: BoxFuture<'static, Result<T, E>>,
    wait: Duration,
) -> Result<Deferred<T, E>, E> {
    match env.timeout(wait, &mut work).await {
        Ok(done) => done.map(Deferred::Now),
        Err(_) => Ok(Deferred::Later(work)),
    }
}

async fn prepare(
    kubelet: &Kubelet,
    (namespace, name, container): (&str, &str, &str),
    query: &str,
    headers: &HeaderMap,
) -> Result<PreparedExec, ErrorResponse> {
    let seen = kubelet.pod(namespace, name);
    let seen = seen.ok_or_else(|| upgrade::text_error_response(StatusCode::NOT_FOUND, "pod does not exist".into()))?;
    let options = Options::read(query).map_err(upgrade::bad_request)?;
    if options.command.is_empty() {
        return Err(upgrade::bad_request("you must specify at least 1 command to execute".into()));
    }
    let sandbox = sandbox(kubelet, &seen, container)?;
    if sandbox.access == ExecAccess::Denied {
        return Err(denied("exec into", container, name));
    }
    let (headers, wire) = wire::choose(headers)?;
    let start = start_session(sandbox, options.clone(), container.to_owned()).boxed();
    let start = wait_up_to(&kubelet.env, start, HEAD_WAIT_MAX)
        .await
        .map_err(|(status, why)| upgrade::error_response(status, why))?;
    Ok((headers, wire, options, start))
}

fn denied(what: &str, container: &str, pod: &str) -> ErrorResponse {
    let annotation = format!("{}{container}", machinery_api::names::EXEC);
    let why = format!("{what} container {container:?} of pod {pod:?} is denied by the pod's annotation {annotation}");
    upgrade::error_response(StatusCode::FORBIDDEN, why)
}

/// Returns the sandbox of a running container; the error has upstream's words.
fn sandbox(kubelet: &Kubelet, seen: &PodSnapshot, container: &str) -> Result<Arc<Sandbox>, ErrorResponse> {
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
    Err(upgrade::text_error_response(StatusCode::INTERNAL_SERVER_ERROR, why))
}

/// Prepares a session if the command exists.
async fn start_session(sandbox: Arc<Sandbox>, options: Options, container: String) -> Result<SessionStart, StartError> {
    let busy = |why: String| (StatusCode::TOO_MANY_REQUESTS, why);
    let failed = |why: String| (StatusCode::INTERNAL_SERVER_ERROR, why);
    let session_permit = sandbox.places.clone().try_acquire_owned().map_err(|_| {
        busy(format!(
            "container {container:?} has {SESSIONS_MAX} sessions, as many as it may: try again when others have ended"
        ))
    })?;
    let wanted = options.command.first().map(String::as_str).unwrap_or_default();
    let has_toolbox = sandbox.access == ExecAccess::Allowed;
    let found = sandbox.program(wanted, has_toolbox).await.map_err(|error| failed(error.to_string()))?;
    let Some((program, command)) = found else { return Ok(SessionStart::NotFound(program::not_found(wanted))) };
    let (stdio, host_pipes) = session::pipes(&options);
    let log = Arc::new(LastLines::default());
    let spec = ExecSpec {
        argv: options.command.clone(),
        // Like container runtimes.
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
    let started = StartedSession { session, host_pipes, log, terminal, gone: sandbox.gone.clone() };
    Ok(SessionStart::Session(Box::new(started), session_permit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_compilation_is_waited_for_after_the_head() {
        let env = Env::real();
        let takes = |seconds: u64| {
            let sleep = env.sleep(Duration::from_secs(seconds));
            async move {
                sleep.await;
                if seconds == 1 { Err("no") } else { Ok(seconds) }
            }
            .boxed()
        };
        assert!(matches!(wait_up_to(&env, takes(2), HEAD_WAIT_MAX).await, Ok(Deferred::Now(2))));
        assert!(matches!(wait_up_to(&env, takes(1), HEAD_WAIT_MAX).await, Err("no")));
        let before = env.instant();
        let Ok(Deferred::Later(later)) = wait_up_to(&env, takes(60), HEAD_WAIT_MAX).await else {
            panic!("it is not there yet")
        };
        assert_eq!((env.instant() - before, later.await), (HEAD_WAIT_MAX, Ok(60)));
    }
}
