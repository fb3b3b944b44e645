//! Probes the sandbox: tries to reach everything that a guest must not reach, and prints one line of JSON:
//! `{"reached": […], "tried": […], "given": […], "note": "…"}`. On a sound host `reached` is empty.
//!
//! A module of WASI preview 1, the interface with the largest attack surface: file descriptors. `given` lists the folders
//! that the pod mounts. Their content is permitted; paths that leave them are violations.
#![no_std]
use guest::{String, ToOwned, Vec, format, vec};
use wasip1::{
    CLOCKID_MONOTONIC, Ciovec, Errno, FD_STDOUT, FDFLAGS_NONBLOCK, Fd, Iovec, LOOKUPFLAGS_SYMLINK_FOLLOW, OFLAGS_DIRECTORY,
    RIGHTS_FD_READ, RIGHTS_FD_READDIR, SDFLAGS_RD, SDFLAGS_WR,
};

/// Bound of the probed descriptors; 0 to 2 are the standard streams.
const FDS: core::ops::Range<Fd> = 3..64;

/// Files and folders of any Unix machine, and some of nodes of this cluster.
const LOOT: [&str; 10] = [
    "/etc/passwd",
    "/etc/hostname",
    "/proc/self/environ",
    "/proc/self/cmdline",
    "/proc/self/root/etc/passwd",
    "/proc/net/tcp",
    "/dev/tcp/127.0.0.1/6443", // a shell's path to a socket
    "/dev/mem",
    "/root",
    "/",
];

/// Ascending paths, up to the deepest mount below the root.
const UP: &str = "../../../../../../../../../../../../../../../..";

/// Variables of host processes that no pod has without its spec; this pod's spec has none.
const VARIABLES: [&str; 12] = [
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "TERM", "KUBECONFIG", "CARGO_HOME", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR",
];

const NOTE: &str = "preview 1 has no call that makes a socket or looks up a name: sockets were tried on the descriptors 0 to 63";

#[unsafe(no_mangle)]
extern "C" fn _start() {
    let mut report = Report::default();
    let mut mounts = Vec::new();
    for fd in FDS {
        match mount(fd) {
            Some(path) => mounts.push((fd, path)),
            // SAFETY: fills in a plain structure owned by this function.
            None => report.tried(format!("descriptor {fd}"), unsafe { wasip1::fd_fdstat_get(fd) }.is_ok()),
        }
    }
    for (fd, path) in &mounts {
        report.given.push(path.clone());
        files(&mut report, *fd, path);
        links(&mut report, *fd, path);
        strays(&mut report, *fd, path);
    }
    // A descriptor that was never given must not serve as a folder either.
    for fd in [0, 1, 2, 63, u32::MAX] {
        report.tried(format!("open /etc/passwd from descriptor {fd}"), opens(fd, "/etc/passwd"));
        report.tried(format!("open etc/passwd from descriptor {fd}"), opens(fd, "etc/passwd"));
    }
    sockets(&mut report);
    environment(&mut report);
    // The one permitted resource: a clock. It shows that an allowed call works.
    // SAFETY: fills in a number owned by this function.
    let clock = unsafe { wasip1::clock_time_get(CLOCKID_MONOTONIC, 1) };
    report.given.push(if clock.is_ok() { "clock".to_owned() } else { "no clock".to_owned() });
    print(&report.json());
}

/// The attempts in words, the successful ones, and the resources that the pod was given.
#[derive(Default)]
struct Report {
    tried: Vec<String>,
    reached: Vec<String>,
    given: Vec<String>,
}

impl Report {
    fn tried(&mut self, what: String, reached: bool) {
        if reached {
            self.reached.push(what.clone());
        }
        self.tried.push(what);
    }

    fn json(&self) -> String {
        let (reached, tried, given) = (list(&self.reached), list(&self.tried), list(&self.given));
        format!("{{\"reached\":{reached},\"tried\":{tried},\"given\":{given},\"note\":{}}}\n", quoted(NOTE))
    }
}

/// Paths out of a mount: absolute ones, and ascending ones.
fn files(report: &mut Report, fd: Fd, mount: &str) {
    for loot in LOOT {
        report.tried(format!("open {loot} from {mount}"), opens(fd, loot));
        report.tried(format!("open {UP}{loot} from {mount}"), opens(fd, &format!("{UP}{loot}")));
    }
    for path in ["..", "../", "./..", "a/../..", "../..", "..\\..", "/..", "//etc/passwd", "..//etc/passwd", "file:///etc/passwd"] {
        report.tried(format!("open {path} from {mount}"), opens(fd, path));
    }
    // Inside of a mount, and violations as well: these exist only if the mount is the machine's root.
    for path in ["etc/passwd", "proc/self/environ"] {
        report.tried(format!("open {path} from {mount}"), opens(fd, path));
    }
    // With a NUL a careless host passes a shorter path to the system than the one that it checked.
    report.tried(format!("open ..\\0x from {mount}"), opens(fd, "..\0x"));
    // SAFETY: the paths live as long as the calls.
    unsafe {
        report.tried(format!("stat .. from {mount}"), wasip1::path_filestat_get(fd, LOOKUPFLAGS_SYMLINK_FOLLOW, "..").is_ok());
        let mut target = [0; 256];
        let read = wasip1::path_readlink(fd, "/proc/self/exe", target.as_mut_ptr(), target.len());
        report.tried(format!("read the link /proc/self/exe from {mount}"), read.is_ok());
    }
}

/// Links that lead out of a mount. Creating one is allowed, following it is a violation.
fn links(report: &mut Report, fd: Fd, mount: &str) {
    const LINK: &str = "burglar-link";
    for target in ["/etc/passwd".to_owned(), format!("{UP}/etc/passwd"), "..".to_owned(), "/".to_owned(), "/proc/self/environ".to_owned()] {
        // SAFETY: the paths live as long as the calls.
        let made = unsafe { wasip1::path_symlink(&target, fd, LINK) }.is_ok();
        let through = format!("{LINK}/etc/passwd");
        report.tried(format!("follow a link to {target} from {mount}"), made && (opens(fd, LINK) || opens(fd, &through)));
        if made {
            // SAFETY: as above.
            let _ = unsafe { wasip1::path_unlink_file(fd, LINK) };
        }
    }
    for target in ["/etc/passwd".to_owned(), format!("{UP}/etc/passwd")] {
        // SAFETY: as above.
        let made = unsafe { wasip1::path_link(fd, LOOKUPFLAGS_SYMLINK_FOLLOW, &target, fd, LINK) }.is_ok();
        report.tried(format!("hard link to {target} from {mount}"), made);
        if made {
            // SAFETY: as above.
            let _ = unsafe { wasip1::path_unlink_file(fd, LINK) };
        }
    }
}

/// Creates something outside of a mount.
fn strays(report: &mut Report, fd: Fd, mount: &str) {
    const STRAY: &str = "burglar-was-here";
    for path in [format!("../{STRAY}"), format!("/tmp/{STRAY}"), format!("{UP}/tmp/{STRAY}")] {
        // SAFETY: the paths live as long as the calls.
        unsafe {
            let made = wasip1::path_create_directory(fd, &path).is_ok();
            report.tried(format!("make the folder {path} from {mount}"), made);
            if made {
                let _ = wasip1::path_remove_directory(fd, &path);
            }
            let inside = wasip1::path_create_directory(fd, STRAY).is_ok();
            let moved = inside && wasip1::path_rename(fd, STRAY, fd, &path).is_ok();
            report.tried(format!("move a folder to {path} from {mount}"), moved);
            if inside {
                let _ = wasip1::path_remove_directory(fd, if moved { &path } else { STRAY });
            }
        }
    }
}

/// Every socket call of preview 1, on every descriptor.
fn sockets(report: &mut Report) {
    for fd in 0..FDS.end {
        let mut buffer = [0; 16];
        let (to, from) = (Iovec { buf: buffer.as_mut_ptr(), buf_len: buffer.len() }, Ciovec { buf: b"hi".as_ptr(), buf_len: 2 });
        // SAFETY: the buffers live as long as the calls.
        let did = unsafe {
            wasip1::sock_accept(fd, FDFLAGS_NONBLOCK).is_ok()
                || wasip1::sock_recv(fd, &[to], 0).is_ok()
                || wasip1::sock_send(fd, &[from], 0).is_ok()
                || wasip1::sock_shutdown(fd, SDFLAGS_RD | SDFLAGS_WR).is_ok()
        };
        report.tried(format!("socket on descriptor {fd}"), did);
    }
}

/// The variables of the host process.
fn environment(report: &mut Report) {
    // A failure means no environment; the names are searched in the result.
    let found = variables().unwrap_or_default();
    for name in VARIABLES {
        let reached = found.iter().any(|variable| variable.split('=').next() == Some(name));
        report.tried(format!("environment variable {name}"), reached);
    }
}

fn variables() -> Result<Vec<String>, Errno> {
    // SAFETY: the host reports the required size, and gets a buffer of that size.
    let bytes = unsafe {
        let (count, size) = wasip1::environ_sizes_get()?;
        let (mut starts, mut bytes) = (vec![core::ptr::null_mut(); count], vec![0; size]);
        wasip1::environ_get(starts.as_mut_ptr(), bytes.as_mut_ptr())?;
        bytes
    };
    Ok(bytes.split(|byte| *byte == 0).map(|variable| String::from_utf8_lossy(variable).into_owned()).collect())
}

/// The guest's path of a given folder, `None` for any other descriptor.
fn mount(fd: Fd) -> Option<String> {
    // SAFETY: preview 1 has folders only, so the union's one member is set; the buffer has the reported length.
    unsafe {
        let length = wasip1::fd_prestat_get(fd).ok()?.u.dir.pr_name_len;
        let mut name = vec![0; length];
        wasip1::fd_prestat_dir_name(fd, name.as_mut_ptr(), length).ok()?;
        Some(String::from_utf8_lossy(&name).into_owned())
    }
}

/// Whether the path can be opened, as a file or as a folder.
fn opens(fd: Fd, path: &str) -> bool {
    [(0, RIGHTS_FD_READ), (OFLAGS_DIRECTORY, RIGHTS_FD_READDIR)].into_iter().any(|(flags, rights)| {
        // SAFETY: the path lives as long as the call, and the opened descriptor is closed once.
        unsafe {
            let open = wasip1::path_open(fd, LOOKUPFLAGS_SYMLINK_FOLLOW, path, flags, rights, rights, 0);
            open.is_ok_and(|open| wasip1::fd_close(open).is_ok())
        }
    })
}

fn list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(","))
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = "\"".to_owned();
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            letter if letter < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out + "\""
}

fn print(text: &str) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let piece = Ciovec { buf: rest.as_ptr(), buf_len: rest.len() };
        // SAFETY: the piece points into `text`.
        match unsafe { wasip1::fd_write(FD_STDOUT, &[piece]) } {
            Ok(written) if written > 0 => rest = &rest[written..],
            _ => return,
        }
    }
}
