//! A real server for tests: `redis-server` (or `valkey-server`) from `PATH`, on a port of loopback.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use machinery_env::Env;
use tokio::runtime::Handle;

use super::{SharedStoreConfig, SharedStoreFiles, SharedStores};
use crate::Quota;

/// Stores at this address.
pub(crate) fn stores(url: &str, quota: Quota) -> Arc<SharedStores> {
    let config = SharedStoreConfig::new(url, SharedStoreFiles::default()).unwrap();
    SharedStores::new(config, quota, &Env::real(), &Handle::current())
}

/// A port that nothing listens on, below those that systems give to connections: a server that starts again needs it again.
pub(super) fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 30_100 + u16::try_from(std::process::id() % 100 * 25).unwrap();
    let mut ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// A server without data on the disk.
pub(crate) struct Server {
    pub(crate) port: u16,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// Starts it with more settings.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let mut server = Self { port: port(), folder: tempfile::tempdir().unwrap(), process: None };
        server.restart(settings);
        server
    }

    pub(super) fn restart(&mut self, settings: &[&str]) {
        self.kill();
        let port = self.port.to_string();
        let usual =
            ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--daemonize", "no", "--loglevel", "warning"];
        let started = ["redis-server", "valkey-server"].iter().find_map(|program| {
            let mut command = Command::new(program);
            command.current_dir(&self.folder).args(usual).args(settings).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().ok()
        });
        self.process =
            Some(started.expect("no redis-server in PATH: install Debian's package redis-server or valkey-server"));
        let listens = || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        // A thread of the test waits: nothing else runs on it.
        for _ in 0..1000 {
            if listens() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("redis-server does not listen on {}", self.port);
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let process = self.process.as_ref().expect("running");
        rustix::process::kill_process(rustix::process::Pid::from_child(process), signal).unwrap();
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A client that writes what it likes.
    pub(super) fn client(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }
}
