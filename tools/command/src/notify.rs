//! The state of this process for its supervisor, by systemd's protocol (sd_notify(3)): a datagram to the Unix socket in
//! the variable `NOTIFY_SOCKET`. Without the variable, and on other systems than Unix, nothing is sent. A supervisor that
//! doesn't listen changes nothing but a warning in the log.

use std::fmt::Arguments;

use crate::output::result;

/// Prints the line that begins with `ready `, and notifies the supervisor.
///
/// # Errors
/// If stdout can't be written.
pub fn ready(line: Arguments<'_>) -> anyhow::Result<()> {
    let line = line.to_string();
    result(format_args!("{line}\n"))?;
    notify(&message("READY=1", &line));
    Ok(())
}

/// Notifies the supervisor that the process stops.
pub fn stopping() {
    notify(&message("STOPPING=1", "stops"));
}

/// A state with its text for people. Each line of a message is an assignment of its own.
fn message(state: &str, status: &str) -> String {
    format!("{state}\nSTATUS={}", status.replace(['\n', '\r'], " "))
}

#[cfg(unix)]
fn notify(message: &str) {
    let Some(socket) = crate::environment::variable_path("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, message) {
        tracing::warn!(socket = %socket.display(), "cannot notify the supervisor: {error}");
    }
}

#[cfg(not(unix))]
fn notify(_message: &str) {}

/// Sends to a path, or to a name of Linux's abstract namespace, which begins with `@`. It never waits for the receiver.
#[cfg(unix)]
fn send(socket: &std::path::Path, message: &str) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let address = match socket.as_os_str().as_encoded_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    use super::*;

    fn received(supervisor: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = supervisor.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_supervisor_gets_state_and_status_at_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        send(&path, &message("READY=1", "ready server=https://127.0.0.1:6443")).unwrap();
        assert_eq!(received(&supervisor), "READY=1\nSTATUS=ready server=https://127.0.0.1:6443");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_of_the_abstract_namespace_begins_with_an_at() {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::SocketAddr;

        let name = format!("coracle-notify-{}", std::process::id());
        let supervisor = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(Path::new(&format!("@{name}")), &message("STOPPING=1", "stops")).unwrap();
        assert_eq!(received(&supervisor), "STOPPING=1\nSTATUS=stops");
    }

    #[test]
    fn a_path_cannot_add_an_assignment() {
        assert_eq!(message("READY=1", "kubeconfig=/a\nMAINPID=1"), "READY=1\nSTATUS=kubeconfig=/a MAINPID=1");
    }

    #[test]
    fn a_supervisor_that_is_gone_is_an_error_without_a_wait() {
        let folder = tempfile::tempdir().unwrap();
        let error = send(&folder.path().join("notify"), "READY=1").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
