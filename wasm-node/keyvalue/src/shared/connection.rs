//! The one connection of a node to the shared store: made at the first call, made again when it fails, replaced when it
//! hangs. While the server can't be reached, calls fail at once.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use machinery_env::Env;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use runtime_api::keyvalue::StoreError;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::config::SharedStoreConfig;
use super::scripts::{self, Call, ScriptReply};
use super::stream;
use crate::lock;

/// Timeout of a connect: name, TCP, TLS and authentication. Also the longest wait of a call for a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of an answer. A server answers in order: the calls behind a late one are late, too, so the connection is
/// replaced.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest and longest pause between two connects; a random part of the same length is added. Nodes don't come at once
/// when the server is back.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The shortest time between two lines about refused calls: guests cause them.
const REFUSED_LINE_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone)]
enum LinkState {
    /// The first connect, or the one after a loss.
    Connecting,
    Open {
        generation: u64,
        connection: MultiplexedConnection,
    },
    /// The last connect failed.
    Down,
}

struct LinkParts {
    config: SharedStoreConfig,
    env: Env,
    handle: Handle,
    state: watch::Sender<LinkState>,
    /// The generation of the last connection that hangs or leads to the wrong server.
    broken: watch::Sender<u64>,
    /// Bytes since the last answer.
    received: Arc<AtomicUsize>,
    is_started: AtomicBool,
    /// The password of the last connect: no line contains it.
    password: Mutex<Option<String>>,
    /// The time of the last line about a refused call.
    refused_line: Mutex<Option<Duration>>,
}

/// The connection, cheap to clone. It ends with its last clone.
#[derive(Clone)]
pub(super) struct Link {
    parts: Arc<LinkParts>,
    stop: CancellationToken,
    _stops_with: Arc<DropGuard>,
}

impl Link {
    pub(super) fn new(config: SharedStoreConfig, env: &Env, handle: &Handle) -> Self {
        let parts = LinkParts {
            config,
            env: env.clone(),
            handle: handle.clone(),
            state: watch::channel(LinkState::Connecting).0,
            broken: watch::channel(0).0,
            received: Arc::default(),
            is_started: AtomicBool::new(false),
            password: Mutex::default(),
            refused_line: Mutex::default(),
        };
        let stop = CancellationToken::new();
        Self { parts: Arc::new(parts), stop: stop.clone(), _stops_with: Arc::new(stop.drop_guard()) }
    }

    fn start(&self) {
        if self.parts.is_started.swap(true, Ordering::Relaxed) {
            return;
        }
        let (parts, stop) = (self.parts.clone(), self.stop.clone());
        self.parts.handle.spawn(async move { stop.run_until_cancelled(parts.keep_connected()).await });
    }

    /// Runs a call: waits at most [`CONNECT_TIMEOUT`] for a connection and [`ANSWER_TIMEOUT`] for the answer.
    ///
    /// # Errors
    /// The server can't be reached, doesn't answer or refuses. A write may have been done unless it was refused.
    pub(super) async fn run(&self, call: Call) -> Result<ScriptReply, StoreError> {
        self.start();
        let parts = &self.parts;
        let connection = parts.env.timeout(CONNECT_TIMEOUT, parts.connection()).await;
        let (generation, mut connection) = connection.ok().flatten().ok_or(StoreError::NotAnswering)?;
        let answer = parts.env.timeout(ANSWER_TIMEOUT, exchange(&mut connection, &call)).await;
        parts.received.store(0, Ordering::Relaxed);
        match answer {
            Ok(Ok(answer)) => Ok(ScriptReply(answer)),
            Ok(Err(error)) => Err(parts.failed(generation, &error)),
            Err(_) => {
                parts.replace(generation);
                Err(StoreError::NotAnswering)
            }
        }
    }
}

/// Runs the script by its hash; the server learns it where it doesn't know it. A script that the server doesn't know has
/// done nothing, so it may run again. Nothing else is repeated.
async fn exchange(connection: &mut MultiplexedConnection, call: &Call) -> RedisResult<redis::Value> {
    let command = call.command();
    match command.query_async(connection).await {
        Err(error) if scripts::is_unknown_script(&error) => {
            call.script.load_async(connection).await?;
            command.query_async(connection).await
        }
        answer => answer,
    }
}

impl LinkParts {
    async fn connection(&self) -> Option<(u64, MultiplexedConnection)> {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, LinkState::Connecting)).await.ok()?;
        match &*state {
            LinkState::Open { generation, connection } => Some((*generation, connection.clone())),
            LinkState::Connecting | LinkState::Down => None,
        }
    }

    /// Ends a connection, unless it was replaced already.
    fn replace(&self, generation: u64) {
        self.broken.send_if_modified(|broken| {
            let is_new = *broken < generation;
            *broken = generation.max(*broken);
            is_new
        });
    }

    fn failed(&self, generation: u64, error: &RedisError) -> StoreError {
        if scripts::is_connection_lost(error) {
            self.replace(generation);
            return StoreError::NotAnswering;
        }
        if scripts::is_other_server_needed(error) {
            self.replace(generation);
        }
        let now = self.env.elapsed();
        let mut last = lock(&self.refused_line);
        if last.is_none_or(|last| now.saturating_sub(last) >= REFUSED_LINE_EVERY) {
            *last = Some(now);
            let reason = stream::reason(error, lock(&self.password).as_deref());
            tracing::warn!(store = self.config.shown(), reason, "the shared key-value store refuses a call");
        }
        scripts::refused(error)
    }

    async fn keep_connected(self: Arc<Self>) {
        let (mut pause, mut generation, mut last) = (PAUSE_MIN, 0, String::new());
        loop {
            let opened =
                self.env.timeout(CONNECT_TIMEOUT, stream::open(&self.config, &self.received, &self.password)).await;
            let opened = opened.unwrap_or_else(|_| Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())));
            let reason = match opened {
                Ok((connection, driver)) => {
                    generation += 1;
                    let began = self.env.elapsed();
                    tracing::info!(store = self.config.shown(), "connected to the shared key-value store");
                    let reason = self.drive(generation, connection, driver).await;
                    let is_short = self.env.elapsed().saturating_sub(began) < PAUSE_MAX;
                    if !is_short {
                        pause = PAUSE_MIN;
                    }
                    self.state.send_replace(if is_short { LinkState::Down } else { LinkState::Connecting });
                    last.clear();
                    reason
                }
                Err(reason) => {
                    self.state.send_replace(LinkState::Down);
                    reason
                }
            };
            if reason != last {
                tracing::warn!(store = self.config.shown(), reason, "the shared key-value store cannot be reached");
                last = reason;
            }
            let more = self.env.below(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1));
            self.env.sleep(pause + Duration::from_millis(more)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Serves calls until the connection is closed or replaced; returns the reason.
    async fn drive(
        &self,
        generation: u64,
        connection: MultiplexedConnection,
        driver: impl Future<Output = ()>,
    ) -> String {
        let mut broken = self.broken.subscribe();
        let check = check_eviction(connection.clone(), self.config.shown());
        self.state.send_replace(LinkState::Open { generation, connection });
        let check = async {
            check.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = driver => "the connection was closed".to_owned(),
            _ = broken.wait_for(|broken| *broken >= generation) => "the server did not answer in time".to_owned(),
            () = check => "unreachable".to_owned(),
        }
    }
}

/// Warns of a server that may drop values when its memory is used up.
async fn check_eviction(mut connection: MultiplexedConnection, store: String) {
    let info: RedisResult<String> = redis::cmd("INFO").arg("memory").query_async(&mut connection).await;
    // A user without the right to ask gets no warning.
    let Ok(info) = info else { return };
    let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).unwrap_or("noeviction").trim();
    if policy != "noeviction" {
        let policy: String = policy.chars().take(32).filter(char::is_ascii_graphic).collect();
        tracing::warn!(
            store,
            policy,
            "the shared key-value store may drop a namespace's data: set maxmemory-policy noeviction"
        );
    }
}
