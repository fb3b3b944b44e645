//! Reads the facts of this machine. Probes of ports bind them for a moment, and listen on none.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use http::header::DATE;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use machinery_env::Env;
use machinery_env::child_process::cluster_variables;
use machinery_serve::descriptors::Descriptors;
use serde_json::Value;
use tokio::process::Command;
use wasm_runtime::clock_sync;
use wasm_runtime::engine::{GuestBounds, PoolCapacity};

use super::facts::{ClockFacts, Facts, FileMode, FolderFacts, Kubectl, MachineFacts, PortState, ToolFacts};
use crate::inspection::certificates;
use crate::inspection::disk::DiskSpace;
use crate::inspection::lock::holder;
use crate::program::Program;
use tools_cluster::kubeconfig::KubeconfigSource;
use tools_cluster::probe::ApiProbe;
use tools_command::data_dir::DataDir;
use tools_command::environment;

/// An address outside of all clusters' blocks, which end at 127.251.255.255.
const PROBE_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 252, 0, 1);
/// The port of Services that people open in a browser.
const HTTP_PORT: u16 = 80;
/// Deadline of `kubectl version --client`.
const KUBECTL_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of files in a folder of keys whose modes are read.
#[cfg(unix)]
const FILES_MAX: usize = 64;

/// Reads everything. `address`: where the API server will listen.
///
/// # Errors
/// If the system refuses a thread.
pub(crate) async fn read(env: &Env, data: &DataDir, address: SocketAddr, program: &Program) -> anyhow::Result<Facts> {
    let server_time = server_time(env, data);
    let kubectl = kubectl_version(env);
    let (server_time, kubectl) = tokio::join!(server_time, kubectl);
    let (now, folder, claims) = (env.now(), data.clone(), program.block_claims.clone());
    let answers = server_time.is_some();
    let local = tokio::task::spawn_blocking(move || (machine(address, &claims), folder_facts(&folder, now, answers)));
    let (machine, folder) = local.await.context("this machine can't be examined")?;
    let authority = folder.certificates.iter().find(|one| one.file == "pki/ca.crt");
    Ok(Facts {
        clock: ClockFacts {
            now,
            built_at: program.committed_at,
            server_time,
            authority_since: authority.map(|authority| authority.not_before),
            synchronized: clock_sync::is_synchronized(),
        },
        tools: ToolFacts {
            kubeconfig: Some(data.kubeconfig()).filter(|file| file.exists()),
            kubeconfig_variable: environment::paths_of("KUBECONFIG"),
            kubectl,
        },
        machine,
        folder,
    })
}

/// The time of the cluster's API server, if it answers.
async fn server_time(env: &Env, data: &DataDir) -> Option<Timestamp> {
    if !data.kubeconfig().exists() {
        return None;
    }
    let probe = ApiProbe::of(env, KubeconfigSource::Folder(data.kubeconfig())).await.ok()?;
    let response = probe.request("/livez").await.ok()?;
    let date = response.headers.get(DATE)?.to_str().ok()?;
    Some(rfc2822::parse(date).ok()?.timestamp())
}

fn machine(address: SocketAddr, block_claims: &[SocketAddrV4]) -> MachineFacts {
    let (memory_bytes, memory_limit_bytes) = memory();
    MachineFacts {
        descriptor_shortage: Descriptors::process().shortage(),
        api_address: address,
        api_port: port_state(address),
        http_port: cfg!(target_os = "linux").then(|| port_state(SocketAddr::new(PROBE_ADDRESS.into(), HTTP_PORT))),
        unprivileged_port_start: proc_number("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
        pool: PoolCapacity::probe(GuestBounds::default()),
        overcommit: proc_number("/proc/sys/vm/overcommit_memory"),
        memory_bytes,
        memory_limit_bytes,
        free_blocks: free_blocks(block_claims),
    }
}

fn proc_number<N: std::str::FromStr>(path: &str) -> Option<N> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether this process may listen on an address. The socket is closed at once; a connection would not be accepted.
fn port_state(address: SocketAddr) -> PortState {
    use std::io::ErrorKind;
    match std::net::TcpListener::bind(address) {
        Ok(_) => PortState::Free,
        Err(error) => match error.kind() {
            ErrorKind::AddrInUse => PortState::Taken,
            ErrorKind::PermissionDenied => PortState::Forbidden,
            _ => PortState::Failed(error.to_string()),
        },
    }
}

/// The machine's memory, and the limit of this process's control group if that is lower.
fn memory() -> (Option<u64>, Option<u64>) {
    let Ok(mut system) = sysinfo::System::new() else { return (None, None) };
    system.refresh_memory();
    let total = system.total_memory();
    let limit = system.cgroup_limits().map(|limits| limits.total_memory).filter(|limit| *limit > 0 && *limit < total);
    (Some(total), limit)
}

/// The number of blocks without a claim. Binding the claims' sockets would take a block from a cluster that starts.
#[cfg(target_os = "linux")]
fn free_blocks(claims: &[SocketAddrV4]) -> Option<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let claimed = super::proc_files::listeners(&table);
    Some(claims.iter().filter(|claim| !claimed.contains(claim)).count())
}

#[cfg(not(target_os = "linux"))]
fn free_blocks(_: &[SocketAddrV4]) -> Option<usize> {
    None
}

/// Blocks. `answers`: the API server does.
fn folder_facts(data: &DataDir, now: Timestamp, answers: bool) -> FolderFacts {
    let path = data.path();
    let error = match std::fs::read_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Some(error.to_string()),
        _ => None,
    };
    let process = holder(&data.lock_file());
    let is_running = answers || process.is_some();
    FolderFacts {
        path: path.to_owned(),
        disk: existing(path).and_then(DiskSpace::of),
        modes: modes(data),
        error,
        certificates: certificates::of_folder(data, now),
        is_running,
        // Elsewhere the holder of the lock is unknown.
        leftover_socket: Some(data.control()).filter(|path| cfg!(target_os = "linux") && !is_running && path.exists()),
    }
}

/// A folder, or the nearest one above it that exists.
fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.is_dir())
}

/// The modes of the data folder and of its private files.
#[cfg(unix)]
fn modes(data: &DataDir) -> Option<Vec<FileMode>> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut paths = vec![data.path().to_owned(), data.kubeconfig(), data.registry_password(), data.pki()];
    let keys = std::fs::read_dir(data.pki()).into_iter().flatten().flatten().take(FILES_MAX);
    paths.extend(keys.map(|entry| entry.path()).filter(|path| is_private_key(path)));
    let found = paths.into_iter().filter_map(|path| {
        let metadata = std::fs::symlink_metadata(&path).ok()?;
        Some(FileMode { path, mode: metadata.permissions().mode() & 0o777, is_folder: metadata.is_dir() })
    });
    Some(found.collect())
}

#[cfg(unix)]
fn is_private_key(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "key" || extension == "pem")
}

#[cfg(not(unix))]
fn modes(_: &DataDir) -> Option<Vec<FileMode>> {
    None
}

async fn kubectl_version(env: &Env) -> Kubectl {
    let name = if cfg!(windows) { "kubectl.exe" } else { "kubectl" };
    let found = environment::paths_of("PATH").into_iter().map(|folder| folder.join(name)).find(|file| file.is_file());
    let Some(program) = found else { return Kubectl::Absent };
    match client_version(env, &program).await {
        Ok(version) => Kubectl::Version(version),
        Err(why) => Kubectl::Failed(format!("{}: {why}", program.display())),
    }
}

async fn client_version(env: &Env, program: &Path) -> Result<String, String> {
    let mut command = Command::new(program);
    for name in cluster_variables() {
        command.env_remove(name);
    }
    command.args(["version", "--client", "--output", "json"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = env.timeout(KUBECTL_TIMEOUT, command.output()).await;
    let output = output.map_err(|_| format!("no answer within {} s", KUBECTL_TIMEOUT.as_secs()))?;
    let output = output.map_err(|error| error.to_string())?;
    let json: Value = serde_json::from_slice(&output.stdout).map_err(|_| "it prints no JSON".to_owned())?;
    let version = json["clientVersion"]["gitVersion"].as_str().map(str::to_owned);
    version.ok_or_else(|| "it prints no version".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_or_taken() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        assert_eq!(port_state(address), PortState::Taken);
        drop(socket);
        assert_eq!(port_state(address), PortState::Free);
        // TEST-NET-1: no machine has it.
        let elsewhere = port_state(SocketAddr::from(([192, 0, 2, 1], 0)));
        assert!(matches!(elsewhere, PortState::Failed(_)), "{elsewhere:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_that_does_not_exist_has_a_disk() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().join("a/b"));
        let program = Program { commit: "unknown", committed_at: None, block_claims: Vec::new() };
        let facts = read(&Env::real(), &data, SocketAddr::from(([127, 0, 0, 1], 0)), &program).await.unwrap();
        assert!(facts.folder.disk.is_some() && facts.folder.error.is_none() && !facts.folder.is_running);
        assert_eq!(facts.folder.modes.as_deref().unwrap_or_default(), []);
        assert!(!data.path().exists(), "nothing is left behind");
        assert!(facts.clock.server_time.is_none() && facts.machine.pool.live > 0);
    }

    #[cfg(unix)]
    #[tokio::test(flavor = "multi_thread")]
    async fn the_facts_of_a_stopped_cluster_are_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().join("data"));
        drop(data.lock().unwrap());
        let env = Env::real();
        apiserver_auth::pki::Pki::open_or_create(&data.pki(), &env, &[]).unwrap();
        std::fs::write(data.control(), "").unwrap();
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(data.pki().join("ca.key"), open).unwrap();
        let facts = folder_facts(&data, env.now(), false);
        let open: Vec<_> = facts.modes.iter().flatten().filter(|file| file.mode & 0o077 != 0).collect();
        assert_eq!(open.len(), 1, "{facts:?}");
        assert_eq!((open[0].path.as_path(), open[0].mode), (data.pki().join("ca.key").as_path(), 0o644));
        assert_eq!(facts.certificates.len(), 3);
        assert_eq!(facts.leftover_socket.is_some(), cfg!(target_os = "linux"));
        let _held = data.lock().unwrap();
        assert_eq!(folder_facts(&data, env.now(), false).leftover_socket, None);
    }
}
