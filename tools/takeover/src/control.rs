//! The control socket of a running process, in its data folder: gives the process's listening sockets to the next process
//! of the same user.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use machinery_env::Env;
use machinery_serve::handover::{self, HandedOver, HandoverError, Introduction};
use machinery_serve::sockets::SocketTable;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use tools_command::data_dir::DataDir;

/// Longest path of a Unix socket, without its final zero (unix(7); 103 on macOS).
const PATH_BYTES_MAX: usize = 100;
/// Connections at once. Each ends in time; further ones wait.
const CONNECTIONS_MAX: usize = 4;

/// This process, for the other one: its version and commit are `program`.
pub(crate) fn introduction(program: &str) -> Introduction {
    Introduction { pid: std::process::id(), program: program.to_owned() }
}

/// A path of the control socket that the system takes, also where the data folder's own is too long.
pub(crate) struct ControlPath {
    pub(crate) path: PathBuf,
    /// Keeps the path valid.
    _folder: Option<File>,
}

impl ControlPath {
    /// # Errors
    /// If the folder can't be opened.
    pub(crate) fn of(data: &DataDir) -> io::Result<Self> {
        let path = data.control();
        if path.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(Self { path, _folder: None });
        }
        Self::through_descriptor(data.path(), &path)
    }

    #[cfg(target_os = "linux")]
    fn through_descriptor(folder: &Path, path: &Path) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;
        let folder = File::open(folder)?;
        let name = path.file_name().unwrap_or_default();
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _folder: Some(folder) })
    }

    #[cfg(not(target_os = "linux"))]
    fn through_descriptor(_: &Path, path: &Path) -> io::Result<Self> {
        let why = format!("the path {} is longer than the {PATH_BYTES_MAX} bytes of a Unix socket", path.display());
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }
}

/// The takeovers that other processes request.
#[derive(Debug)]
pub struct HandoverRequests {
    committed: mpsc::Receiver<HandedOver>,
    serving: Option<AbortHandle>,
}

impl HandoverRequests {
    /// Waits for a process that has the sockets of this one. From then on this process only ends.
    pub async fn committed(&mut self) -> HandedOver {
        match self.committed.recv().await {
            Some(given) => given,
            None => std::future::pending().await,
        }
    }
}

impl Drop for HandoverRequests {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// Listens at the control socket of a locked data folder. Without one the process serves all the same. `program` is this one's
/// version and commit.
pub fn listen(env: &Env, data: &DataDir, program: &'static str) -> HandoverRequests {
    let (sender, committed) = mpsc::channel(1);
    let bound =
        bind(data).with_context(|| format!("no process can take over from this one: {}", data.control().display()));
    let serving = match bound {
        Ok(listener) => {
            let server = Arc::new(Server { env: env.clone(), program, committed: sender, offers: Semaphore::new(1) });
            Some(tokio::spawn(serve(server, listener)).abort_handle())
        }
        Err(error) => {
            tracing::warn!("{error:#}");
            None
        }
    };
    HandoverRequests { committed, serving }
}

fn bind(data: &DataDir) -> io::Result<UnixListener> {
    // Of an earlier process: this one has the folder's lock.
    match std::fs::remove_file(data.control()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&ControlPath::of(data)?.path)?;
    // The folder is private, too.
    std::fs::set_permissions(data.control(), std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

struct Server {
    env: Env,
    program: &'static str,
    committed: mpsc::Sender<HandedOver>,
    /// Held by the one that is offered the sockets, for ever once it has committed.
    offers: Semaphore,
}

async fn serve(server: Arc<Server>, listener: UnixListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accepting at the control socket failed");
                server.env.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let server = server.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = server.hand_over(stream).await {
                tracing::warn!(%error, "another process did not take over; this one goes on");
            }
        });
    }
}

/// Pause after a failed `accept`, in order not to spin.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

impl Server {
    async fn hand_over(&self, stream: UnixStream) -> Result<(), HandoverError> {
        let request = match handover::check_user(&stream) {
            Ok(()) => handover::read_request(&self.env, &stream).await,
            Err(error) => Err(error),
        };
        let to = match request {
            Ok(to) => to,
            // It checks that a process runs, before it checks itself.
            Err(HandoverError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => {
                handover::refuse(&self.env, &stream, &reason(&error)).await;
                return Err(error);
            }
        };
        let Ok(offer) = self.offers.try_acquire() else {
            let why = format!("another process takes over from process {} already", std::process::id());
            handover::refuse(&self.env, &stream, &why).await;
            return Err(HandoverError::Refused(why));
        };
        tracing::info!(pid = to.pid, program = to.program, "a process asks for the listening sockets");
        let given = handover::give(&self.env, stream, SocketTable::process(), introduction(self.program), to).await?;
        offer.forget();
        // The receiver lives as long as this task.
        let _ = self.committed.send(given).await;
        Ok(())
    }
}

/// The reason alone: the other side says who refuses.
fn reason(error: &HandoverError) -> String {
    match error {
        HandoverError::Refused(why) => why.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use machinery_serve::handover::take;

    use super::*;

    const PROGRAM: &str = "1.0.0 (test)";

    async fn asks(data: &DataDir) -> Result<handover::Offer, HandoverError> {
        let stream = UnixStream::connect(&ControlPath::of(data).unwrap().path).await.unwrap();
        handover::check_user(&stream).unwrap();
        take(&Env::real(), stream, introduction(PROGRAM)).await
    }

    #[tokio::test]
    async fn one_process_at_a_time_takes_over_and_may_leave_it() {
        let temp = tempfile::tempdir().unwrap();
        // Longer than the path of a Unix socket may be.
        let folder = temp.path().join("a".repeat(120));
        std::fs::create_dir(&folder).unwrap();
        let data = DataDir::at(folder);
        let mut requests = listen(&Env::real(), &data, PROGRAM);
        assert_eq!(std::fs::metadata(data.control()).unwrap().permissions().mode() & 0o777, 0o600);
        let first = asks(&data).await.unwrap();
        assert_eq!(first.from, introduction(PROGRAM));
        let second = asks(&data).await.unwrap_err().to_string();
        assert!(second.contains("another process takes over from process"), "{second}");
        drop(first);
        let mut third = asks(&data).await;
        while third.is_err() {
            tokio::task::yield_now().await;
            third = asks(&data).await;
        }
        let (_taken, _sockets) = third.unwrap().commit(&Env::real()).await.unwrap();
        assert_eq!(requests.committed().await.to, introduction(PROGRAM));
        assert!(asks(&data).await.is_err(), "for ever");
    }

    #[tokio::test]
    async fn a_socket_of_an_earlier_process_is_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().to_owned());
        drop(bind(&data).unwrap());
        assert!(data.control().exists());
        drop(bind(&data).unwrap());
    }
}
