//! The process: its environment, its output, its sleep.
use crate::{String, Vec};
use core::cell::OnceCell;
use wasip2::io::streams::{OutputStream, StreamError};

/// Maximum bytes of one `blocking_write_and_flush`, by its definition.
const WRITE_BYTES_MAX: usize = 4096;

/// The environment, read once: it does not change during an instance's life, and the host allocates guest memory for each
/// name and each value.
struct Environment(OnceCell<Vec<(String, String)>>);

// SAFETY: a component has one thread.
unsafe impl Sync for Environment {}

static ENVIRONMENT: Environment = Environment(OnceCell::new());

/// The value of an environment variable.
pub fn env(name: &str) -> Option<String> {
    let all = ENVIRONMENT.0.get_or_init(wasip2::cli::environment::get_environment);
    all.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
}

/// The arguments, without the program's own name.
pub fn arguments() -> Vec<String> {
    wasip2::cli::environment::get_arguments().into_iter().skip(1).collect()
}

/// Prints one line on stdout, in one call if it fits, so that lines of concurrent requests don't mix.
pub fn print(line: &str) {
    write_all(&wasip2::cli::stdout::get_stdout(), crate::format!("{line}\n").as_bytes());
}

/// Prints one line on stderr.
pub fn print_error(line: &str) {
    write_all(&wasip2::cli::stderr::get_stderr(), crate::format!("{line}\n").as_bytes());
}

/// Writes as much as possible: a failing log does not stop the program.
pub fn write_all(to: &OutputStream, bytes: &[u8]) {
    let _: Result<(), StreamError> =
        bytes.chunks(WRITE_BYTES_MAX).try_for_each(|chunk| to.blocking_write_and_flush(chunk));
}

/// Sleeps in the host: the instance waits for a pollable and uses no CPU.
pub fn sleep_ms(ms: u64) {
    wasip2::clocks::monotonic_clock::subscribe_duration(ms.saturating_mul(1_000_000)).block();
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = wasip2::clocks::wall_clock::now();
    now.seconds * 1000 + u64::from(now.nanoseconds) / 1_000_000
}
