//! Limits of a module's compilation and of guests, for every verb that runs guests. Errors about a limit name its flag
//! (`GuestBounds`, `LoadError`): the names here and there must be the same.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;
use guest_sockets::SocketLimits;
use machinery_api::quantity::Quantity;
use machinery_options::duration::duration;

use crate::engine::{CompileBounds, GuestBounds, HANDLES, STACK_BYTES};

/// A longer compilation would occupy the only background slot for too long.
const COMPILE_TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// The minimum covers the compiler process' own address space.
const COMPILE_BYTES: RangeInclusive<u64> = 1 << 30..=1 << 40;

/// Options of limits of guests.
#[derive(Debug, Clone, Args)]
pub struct GuestOptions {
    /// Timeout of a module's compilation, by wall clock: 1s to 1h
    #[arg(long, env = "CORACLE_MODULE_COMPILE_TIMEOUT", default_value = "2m0s", value_name = "DURATION", value_parser = compile_time)]
    module_compile_timeout: Duration,
    /// Address space in which a module compiles: 1Gi to 1Ti
    #[arg(long, env = "CORACLE_MODULE_COMPILE_MEMORY", default_value = "3Gi", value_name = "QUANTITY", value_parser = compile_bytes)]
    module_compile_memory: u64,
    /// Stack of each guest instance, in addition to its memory: 64Ki to 8Mi
    #[arg(long, env = "CORACLE_GUEST_STACK_SIZE", default_value = "512Ki", value_name = "QUANTITY", value_parser = stack_bytes)]
    guest_stack_size: usize,
    /// Maximum WASI handles of a guest instance: 64 to 1048576
    #[arg(long, env = "CORACLE_GUEST_HANDLES", default_value_t = GuestBounds::default().handles as u32, value_name = "N", value_parser = clap::value_parser!(u32).range(*HANDLES.start() as i64..=*HANDLES.end() as i64))]
    guest_handles: u32,
    /// Maximum open sockets of a pod's guests: connections in and out, those that wait to be accepted, listeners
    #[arg(long, env = "CORACLE_GUEST_CONNECTIONS", default_value_t = SocketLimits::default().connections, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    guest_connections: u32,
    /// Maximum ports that a pod's guests bind by sockets
    #[arg(long, env = "CORACLE_GUEST_LISTENERS", default_value_t = SocketLimits::default().listeners, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    guest_listeners: u32,
    /// Maximum datagrams that wait for a pod's guests; more are lost
    #[arg(long, env = "CORACLE_GUEST_DATAGRAMS", default_value_t = SocketLimits::default().datagrams, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    guest_datagrams: u32,
}

impl Default for GuestOptions {
    fn default() -> Self {
        machinery_options::defaults()
    }
}

impl GuestOptions {
    /// The limits of compilations.
    #[must_use]
    pub fn compile(&self) -> CompileBounds {
        CompileBounds {
            time: self.module_compile_timeout,
            memory_bytes: self.module_compile_memory,
            ..CompileBounds::default()
        }
    }

    /// The limits of each guest instance.
    #[must_use]
    pub fn instance(&self) -> GuestBounds {
        GuestBounds {
            stack_bytes: self.guest_stack_size,
            handles: self.guest_handles as usize,
            sockets: SocketLimits {
                connections: self.guest_connections,
                listeners: self.guest_listeners,
                datagrams: self.guest_datagrams,
            },
        }
    }
}

fn compile_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if COMPILE_TIME.contains(&time) { Ok(time) } else { Err("must be from 1s to 1h".to_owned()) }
}

fn compile_bytes(text: &str) -> Result<u64, String> {
    bytes(text)?.filter(|bytes| COMPILE_BYTES.contains(bytes)).ok_or_else(|| "must be from 1Gi to 1Ti".to_owned())
}

fn stack_bytes(text: &str) -> Result<usize, String> {
    let bytes = bytes(text)?.and_then(|bytes| usize::try_from(bytes).ok());
    bytes.filter(|bytes| STACK_BYTES.contains(bytes)).ok_or_else(|| "must be from 64Ki to 8Mi".to_owned())
}

/// Parses a whole number of bytes; `None` if it isn't one.
fn bytes(text: &str) -> Result<Option<u64>, String> {
    let quantity = Quantity::parse(text).map_err(|_| "not a quantity such as 512Ki or 3Gi".to_owned())?;
    Ok(u64::try_from(quantity.value()).ok().filter(|_| quantity.is_whole()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Verb {
        #[command(flatten)]
        guests: GuestOptions,
    }

    fn read(flags: &[&str]) -> Result<(CompileBounds, GuestBounds), String> {
        let verb = Verb::try_parse_from(["verb"].iter().chain(flags));
        verb.map(|verb| (verb.guests.compile(), verb.guests.instance())).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_the_engines() {
        assert_eq!(read(&[]), Ok((CompileBounds::default(), GuestBounds::default())));
    }

    #[test]
    fn each_flag_sets_its_bound() {
        let all = [
            ["--module-compile-timeout", "10m"],
            ["--module-compile-memory", "8Gi"],
            ["--guest-stack-size", "4Mi"],
            ["--guest-handles", "5000"],
        ];
        let (compile, instance) = read(&all.concat()).unwrap();
        assert_eq!((compile.time, compile.memory_bytes), (Duration::from_secs(600), 8 << 30));
        assert_eq!(compile.slice, CompileBounds::default().slice);
        assert_eq!(instance, GuestBounds { stack_bytes: 4 << 20, handles: 5000, ..GuestBounds::default() });
    }

    #[test]
    fn ranges_are_named_in_errors_and_include_their_ends() {
        for (flag, least, most, outside, range) in [
            ("--module-compile-timeout", "1", "1h", ["999ms", "3601s"], "from 1s to 1h"),
            ("--module-compile-memory", "1Gi", "1Ti", ["1G", "1025Gi"], "from 1Gi to 1Ti"),
            ("--guest-stack-size", "64Ki", "8Mi", ["65535", "8388609"], "from 64Ki to 8Mi"),
            ("--guest-handles", "64", "1048576", ["63", "1048577"], "64..=1048576"),
        ] {
            assert!(read(&[flag, least]).is_ok() && read(&[flag, most]).is_ok(), "{flag}");
            for value in outside {
                let error = read(&[flag, value]).unwrap_err();
                assert!(error.contains(flag) && error.contains(range), "{error}");
            }
        }
        for wrong in ["", "x", "512KiB", "65536.5", "1e30"] {
            assert!(read(&["--guest-stack-size", wrong]).is_err(), "{wrong}");
        }
    }
}
