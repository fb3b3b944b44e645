//! `/attach/NAMESPACE/POD/CONTAINER`: streams a container's output from now on, and the input of a command with `stdin:
//! true`, for `kubectl attach` and `kubectl run -i`.

use std::sync::{Arc, PoisonError};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use machinery_serve::accept::ConnectionPermit;
use runtime_api::pipe::{PipeReader, PipeWriter};
use tokio::sync::oneshot;

use super::options::Options;
use super::session::{feed, feed_terminal, forward, send_status};
use super::terminal::LineDiscipline;
use super::wire::{self, Streams, Wire};
use super::{ErrorResponse, denied, sandbox};
use crate::pod::lifecycle::settings::ExecAccess;
use crate::pod::sandbox::Sandbox;
use crate::server::requests::InFlightRequest;
use crate::server::{Kubelet, upgrade};

/// Accepts the upgrade, or returns the error response with upstream's words.
pub(in crate::server) async fn attach(
    State(kubelet): State<Kubelet>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    Extension(counted): Extension<Arc<InFlightRequest>>,
    mut request: Request,
) -> Response {
    let upgraded = hyper::upgrade::on(&mut request);
    let query = query.unwrap_or_default();
    let (headers, wire, options, attached) =
        match prepare(&kubelet, (&namespace, &name, &container), &query, request.headers()) {
            Ok(prepared) => prepared,
            Err(refused) => return *refused,
        };
    tokio::spawn(async move {
        let _held = (permit, counted);
        let session = async {
            let io = upgraded.await.map_err(std::io::Error::other)?;
            wire::run(TokioIo::new(io), &kubelet.env, (wire, kubelet.streaming_idle), &options, |streams| {
                run_attached(attached, streams)
            })
            .await
        };
        tokio::select! {
            done = session => {
                if let Err(error) = done {
                    tracing::debug!(namespace, pod = name, container, %error, "an attach session ended");
                }
            }
            () = kubelet.stop.cancelled() => {}
        }
    });
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, Body::empty()).into_response();
    response.headers_mut().extend(headers);
    response
}

/// A container to which a client is attached.
struct AttachedContainer {
    sandbox: Arc<Sandbox>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

fn prepare(
    kubelet: &Kubelet,
    (namespace, name, container): (&str, &str, &str),
    query: &str,
    headers: &HeaderMap,
) -> Result<(HeaderMap, Wire, Options, AttachedContainer), ErrorResponse> {
    let seen = kubelet.pod(namespace, name);
    let seen = seen.ok_or_else(|| upgrade::text_error_response(StatusCode::NOT_FOUND, "pod does not exist".into()))?;
    let mut options = Options::read(query).map_err(upgrade::bad_request)?;
    let sandbox = sandbox(kubelet, &seen, container)?;
    if sandbox.access == ExecAccess::Denied {
        return Err(denied("attach to", container, name));
    }
    // The container determines whether there is a terminal; a client can't add one.
    options.tty &= sandbox.tty;
    let (answer, wire) = wire::choose(headers)?;
    let (stdout, stderr) = sandbox.attached.watch(options.stdout, options.stderr || options.tty).ok_or_else(|| {
        let why =
            format!("as many clients are attached to container {container:?} as may: try again when others have gone");
        upgrade::error_response(StatusCode::TOO_MANY_REQUESTS, why)
    })?;
    Ok((answer, wire, options, AttachedContainer { sandbox, stdout, stderr }))
}

/// Closes the input of a command with `stdinOnce` when the client's input ends for any reason.
struct StdinOnceGuard<'a>(&'a Sandbox);

impl Drop for StdinOnceGuard<'_> {
    fn drop(&mut self) {
        if self.0.stdin_once {
            drop(self.0.stdin.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

async fn run_attached(attached: AttachedContainer, streams: Streams) {
    let AttachedContainer { sandbox, stdout: from_stdout, stderr: from_stderr } = attached;
    let Streams { stdin, stdout, stderr, errors, form } = streams;
    let (interrupt, interrupted) = oneshot::channel();
    let output = forward(from_stdout, stdout.as_ref(), sandbox.tty);
    // A terminal has one output.
    let error_output = forward(from_stderr, stderr.as_ref().or(stdout.as_ref()), sandbox.tty);
    let input = async {
        let to: Option<PipeWriter> = sandbox.stdin.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Some(from), Some(to)) = (stdin, to) {
            let _once = StdinOnceGuard(&sandbox);
            if sandbox.tty {
                let line = LineDiscipline::new(sandbox.images.is_toolbox(&sandbox.image.module));
                feed_terminal(from, to, stdout.as_ref(), line, interrupt).await;
            } else {
                feed(from, to).await;
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        if stdout.is_some() || stderr.is_some() {
            futures::future::join(output, error_output).await;
        } else {
            sandbox.gone.cancelled().await;
        }
    };
    tokio::select! {
        () = ended => {}
        () = input => {}
        // ^C that the command does not handle ends only the session: the container isn't the client's.
        Ok(_) = interrupted => {}
    }
    send_status(Streams { stdin: None, stdout, stderr, errors, form }, 0).await;
}
