//! The start of a process with `--takeover`.

use std::time::Duration;

use machinery_env::Env;
use machinery_serve::sockets::SocketTable;

use crate::addresses::ListenAddress;
#[cfg(unix)]
use crate::addresses::check_addresses;
use tools_command::data_dir::DataDir;

/// The context of a mistake that is found before the commit.
#[cfg(unix)]
const REFUSED: &str = "--takeover: the running process goes on, as this one could not start";

/// What a process has taken over.
#[derive(Debug)]
pub struct TakenOver {
    pid: u32,
    sockets: usize,
    /// When the other process began to leave connections to this one, on the scale of [`Env::elapsed`].
    since: Duration,
    #[cfg(unix)]
    peer: machinery_serve::handover::EndingPeer,
}

impl TakenOver {
    /// Ends the service of the other process, as this one serves, and calls `ended` when it has ended. Returns a line for people,
    /// with the time in which neither accepted requests to the API.
    pub async fn complete(self, env: &Env, ended: impl FnOnce() + Send + 'static) -> String {
        let Self { pid, sockets, since, .. } = self;
        #[cfg(unix)]
        {
            let peer = self.peer;
            peer.serving(env).await;
            tokio::spawn(async move {
                peer.ended().await;
                ended();
            });
        }
        #[cfg(not(unix))]
        let _ = (env, ended);
        let controls_since = SocketTable::process().controls_since().unwrap_or(since);
        let gap = controls_since.saturating_sub(since).as_millis();
        format!("took over {sockets} sockets from process {pid}; {gap} ms without answers")
    }
}

#[cfg(not(unix))]
pub(crate) async fn take(
    _: &Env,
    _: &DataDir,
    (_, _): (&[ListenAddress], &str),
    _: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Option<TakenOver>> {
    anyhow::bail!(
        "--takeover needs Unix sockets, which this system lacks: stop the running process, and start without it"
    )
}

/// Takes over the sockets of the process that uses the data folder, and waits until it has released the folder. `None` if
/// there is none. `check` finds mistakes that would fail this process's start, whose version and commit are `program`; it listens on
/// `wanted`.
///
/// # Errors
/// If `check` fails, or the process refuses or doesn't answer in time; it goes on then. If it doesn't release the folder
/// after it has given its sockets away.
#[cfg(unix)]
pub(crate) async fn take(
    env: &Env,
    data: &DataDir,
    (wanted, program): (&[ListenAddress], &str),
    check: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Option<TakenOver>> {
    use anyhow::Context as _;
    use machinery_serve::handover;

    use crate::control::introduction;

    let folder = data.path().display();
    if connect(data).await?.is_none() {
        return Ok(None);
    }
    // Without a connection: the time of an exchange is limited from its beginning, and the check may wait for a store. The
    // process may have ended meanwhile.
    check.await.context(REFUSED)?;
    let Some(stream) = connect(data).await? else { return Ok(None) };
    let offer =
        handover::take(env, stream, introduction(program)).await.with_context(|| format!("--takeover: {folder}"))?;
    let (pid, sockets) = (offer.from.pid, offer.sockets.len());
    tracing::info!(pid, program = offer.from.program, sockets, "the running process offers its sockets");
    let keys: Vec<_> = offer.sockets.iter().map(|socket| socket.key.clone()).collect();
    check_addresses(&keys, wanted).context(REFUSED)?;
    let since = env.elapsed();
    let (peer, inherited) = offer.commit(env).await.with_context(|| format!("--takeover: {folder}"))?;
    SocketTable::process().inherit(inherited);
    peer.released(env, crate::RELEASE_MAX).await.with_context(|| format!("--takeover: process {pid}, {folder}"))?;
    wait_for_lock(env, data).await?;
    Ok(Some(TakenOver { pid, sockets, since, peer }))
}

/// Connects with the process that uses the data folder; `None` if there is none.
#[cfg(unix)]
async fn connect(data: &DataDir) -> anyhow::Result<Option<tokio::net::UnixStream>> {
    use std::io::ErrorKind;

    use anyhow::Context as _;
    use machinery_serve::handover;
    use tokio::net::UnixStream;

    use crate::control::ControlPath;

    let path = ControlPath::of(data);
    let connected = match &path {
        Ok(path) => UnixStream::connect(&path.path).await,
        Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
    };
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            drop(data.lock().with_context(|| {
                "--takeover: the running process gives no sockets away: it starts or stops, or its version can't; try again"
            })?);
            return Ok(None);
        }
        Err(error) => {
            let path = data.control();
            return Err(error).with_context(|| format!("--takeover: {}", path.display()));
        }
    };
    let folder = data.path().display();
    handover::check_user(&stream).with_context(|| format!("--takeover: the process of {folder}"))?;
    Ok(Some(stream))
}

/// Waits until the process that has ended has released the folder.
#[cfg(unix)]
async fn wait_for_lock(env: &Env, data: &DataDir) -> anyhow::Result<()> {
    /// The system releases a lock at the end of its process, within milliseconds after that of its connections.
    const LOCK_MAX: Duration = Duration::from_secs(5);
    const RETRY_AFTER: Duration = Duration::from_millis(5);
    let deadline = env.deadline(LOCK_MAX);
    loop {
        match data.lock() {
            Ok(_) => return Ok(()),
            Err(error) if deadline.passed(env) => return Err(error),
            Err(_) => env.sleep(RETRY_AFTER).await,
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const PROGRAM: &str = "1.0.0 (test)";

    #[tokio::test]
    async fn without_a_running_process_it_is_a_normal_start() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().join("data"));
        assert!(take(&Env::real(), &data, (&[], PROGRAM), async { Ok(()) }).await.unwrap().is_none());
        let _held = data.lock().unwrap();
        let refused = format!("{:#}", take(&Env::real(), &data, (&[], PROGRAM), async { Ok(()) }).await.unwrap_err());
        assert!(refused.contains("gives no sockets away") && refused.contains("in use by another"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_may_take_longer_than_the_exchange() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().to_owned());
        let env = Env::real();
        let _running = crate::control::listen(&env, &data, PROGRAM);
        // The exchange gets as far as the check of addresses, which ends it.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = [ListenAddress { flag: "--port", address: taken.local_addr().unwrap() }];
        let slow = async {
            env.sleep(Duration::from_secs(60)).await;
            Ok(())
        };
        let refused = format!("{:#}", take(&env, &data, (&wanted, PROGRAM), slow).await.unwrap_err());
        assert!(refused.contains("--port: cannot listen on"), "{refused}");
    }
}
