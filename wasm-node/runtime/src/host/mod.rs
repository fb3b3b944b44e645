//! The table of host interfaces: what a guest may import, always or only by a grant of its pod's annotation
//! `host.coracle.dev/<container>`. To add an interface, add a file here and a row in [`HOST_INTERFACES`]; its state of
//! an instance ([`state::InterfaceState`]) is in its file, too.

pub(crate) mod clocks;
pub(crate) mod config;
pub(crate) mod disk;
pub(crate) mod disk_threads;
pub(crate) mod environment;
pub(crate) mod exchange;
pub(crate) mod file_stream;
mod file_work;
pub(crate) mod filesystem;
pub(crate) mod first_bytes;
pub(crate) mod flushes;
mod folder;
pub(crate) mod guest;
pub(crate) mod handles;
pub(crate) mod http;
pub(crate) mod io;
pub(crate) mod keyvalue;
pub(crate) mod listing;
pub(crate) mod net;
mod null_device;
pub(crate) mod outgoing_body;
mod positioned;
pub(crate) mod preview1;
mod preview1_names;
pub(crate) mod random;
pub(crate) mod sockets;
pub(crate) mod stat;
pub(crate) mod state;
pub(crate) mod stdio;
mod tls;
pub(crate) mod volumes;
pub(crate) mod wasi03;
pub(crate) mod wasi_version;
mod working_directory;

use std::any::Any;

use runtime_api::Grants;
use wasmtime::component::Linker;

use state::{ComponentState, CoreState};
use wasi_version::WasiVersion;

/// Condition for an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantCondition {
    /// Available to every guest.
    Always,
    /// GrantCondition by the annotation.
    ByAnnotation,
    /// For the node's own toolbox.
    ToToolbox,
}

/// One row: a package (or a part of one) that guests may import.
pub struct HostInterface {
    /// Its name in the annotation and in docs.
    pub name: &'static str,
    /// The WIT package, `namespace:name`.
    pub package: &'static str,
    /// The implemented interfaces of the package; empty: all of the package's world.
    pub interfaces: &'static [&'static str],
    /// The version: matches guests of the same major and minor, or of exactly the same draft.
    pub version: &'static str,
    /// Who may import it.
    pub granted: GrantCondition,
    /// Adds it to a linker.
    pub(crate) link: fn(&mut Linker<ComponentState>) -> wasmtime::Result<()>,
    /// Host memory of an entry of the guest's table, if the entry is of this interface and holds more than a handle.
    pub(crate) held_bytes: fn(&(dyn Any + Send)) -> Option<u64>,
}

/// For an interface whose handles hold no further memory.
fn handles_only(_: &(dyn Any + Send)) -> Option<u64> {
    None
}

/// Host memory of an entry of the guest's table, besides the handle.
pub(crate) fn held_bytes(entry: &(dyn Any + Send)) -> u64 {
    rows().find_map(|row| (row.held_bytes)(entry)).unwrap_or(0)
}

/// Every host interface of this node.
pub static HOST_INTERFACES: &[HostInterface] = &[
    HostInterface {
        name: "io",
        package: "wasi:io",
        interfaces: &["error", "poll", "streams"],
        version: "0.2",
        granted: GrantCondition::Always,
        link: io::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "environment",
        package: "wasi:cli",
        interfaces: &["environment", "exit"],
        version: "0.2",
        granted: GrantCondition::Always,
        link: environment::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "stdio",
        package: "wasi:cli",
        interfaces: &[
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
        version: "0.2",
        granted: GrantCondition::Always,
        link: stdio::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "clocks",
        package: "wasi:clocks",
        interfaces: &["monotonic-clock", "wall-clock"],
        version: "0.2",
        granted: GrantCondition::Always,
        link: clocks::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "random",
        package: "wasi:random",
        interfaces: &["random", "insecure", "insecure-seed"],
        version: "0.2",
        granted: GrantCondition::Always,
        link: random::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "filesystem",
        package: "wasi:filesystem",
        interfaces: &["types", "preopens"],
        version: "0.2",
        granted: GrantCondition::Always,
        link: filesystem::link,
        held_bytes: filesystem::held_bytes,
    },
    HostInterface {
        name: "stat",
        package: "coracle:host",
        interfaces: &["stat"],
        version: "0.1",
        granted: GrantCondition::Always,
        link: stat::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "net",
        package: "coracle:host",
        interfaces: &["net"],
        version: "0.1",
        granted: GrantCondition::ToToolbox,
        link: net::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "sockets",
        package: "wasi:sockets",
        interfaces: &[
            "network",
            "instance-network",
            "tcp",
            "tcp-create-socket",
            "udp",
            "udp-create-socket",
            "ip-name-lookup",
        ],
        version: "0.2",
        granted: GrantCondition::Always,
        link: sockets::link,
        held_bytes: sockets::held_bytes,
    },
    HostInterface {
        name: "tls",
        package: "wasi:tls",
        interfaces: &["types"],
        version: tls::VERSION,
        granted: GrantCondition::Always,
        link: tls::link,
        held_bytes: tls::held_bytes,
    },
    HostInterface {
        name: "http",
        package: "wasi:http",
        interfaces: &["types", "outgoing-handler"],
        version: "0.2",
        granted: GrantCondition::Always,
        link: http::link,
        held_bytes: http::held_bytes,
    },
    HostInterface {
        name: "config",
        package: "wasi:config",
        interfaces: &["store"],
        version: config::VERSION,
        granted: GrantCondition::ByAnnotation,
        link: config::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "keyvalue",
        package: "wasi:keyvalue",
        interfaces: &["store", "atomics", "batch"],
        version: keyvalue::VERSION,
        granted: GrantCondition::ByAnnotation,
        link: keyvalue::link,
        held_bytes: keyvalue::held_bytes,
    },
    HostInterface {
        name: "environment",
        package: "wasi:cli",
        interfaces: &["environment", "exit"],
        version: "0.3",
        granted: GrantCondition::Always,
        link: wasi03::environment::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "stdio",
        package: "wasi:cli",
        interfaces: &[
            "types",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
        version: "0.3",
        granted: GrantCondition::Always,
        link: wasi03::link_stdio,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "clocks",
        package: "wasi:clocks",
        interfaces: &["types", "monotonic-clock", "system-clock"],
        version: "0.3",
        granted: GrantCondition::Always,
        link: wasi03::link_clocks,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "random",
        package: "wasi:random",
        interfaces: &["random", "insecure", "insecure-seed"],
        version: "0.3",
        granted: GrantCondition::Always,
        link: wasi03::link_random,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "filesystem",
        package: "wasi:filesystem",
        interfaces: &["types", "preopens"],
        version: "0.3",
        granted: GrantCondition::Always,
        link: wasi03::filesystem::link,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "sockets",
        package: "wasi:sockets",
        interfaces: &["types", "ip-name-lookup"],
        version: "0.3",
        granted: GrantCondition::Always,
        link: wasi03::link_sockets,
        held_bytes: handles_only,
    },
    HostInterface {
        name: "http",
        package: "wasi:http",
        interfaces: &["types", "client"],
        version: "0.3",
        granted: GrantCondition::Always,
        link: wasi03::http::link,
        held_bytes: wasi03::http::held_bytes,
    },
];

fn rows() -> impl Iterator<Item = &'static HostInterface> {
    let rows = HOST_INTERFACES.iter();
    #[cfg(test)]
    let rows = rows.chain(tests::GRANTED_IN_TESTS);
    rows
}

/// The linker of components with these grants. Interfaces of WASI 0.3 need an engine of that version, whose components may
/// import those of 0.2 too.
pub(crate) fn component_linker(
    engine: &wasmtime::Engine,
    grants: &Grants,
    wasi: WasiVersion,
) -> wasmtime::Result<Linker<ComponentState>> {
    let mut linker = Linker::new(engine);
    linker.allow_shadowing(true);
    let fits = |row: &HostInterface| wasi == WasiVersion::V0_3 || row.version != wasi03::VERSION;
    for interface in rows().filter(|row| allows(grants, row) && fits(row)) {
        (interface.link)(&mut linker)?;
    }
    Ok(linker)
}

/// The linker of core modules: preview 1.
pub(crate) fn core_linker(engine: &wasmtime::Engine) -> wasmtime::Result<wasmtime::Linker<CoreState>> {
    let mut linker = wasmtime::Linker::new(engine);
    preview1::link(&mut linker)?;
    Ok(linker)
}

/// The row of an import (`wasi:cli/stdout@0.2.6`), granted or not.
pub(crate) fn offered(import: &str) -> Option<&'static HostInterface> {
    let (package, rest) = import.split_once('/')?;
    let (interface, version) = rest.split_once('@')?;
    // A draft (0.2.0-rc.1) matches only itself.
    let fits = |row: &HostInterface| match version.contains('-') || row.version.contains('-') {
        true => version == row.version,
        false => version.strip_prefix(row.version).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
    };
    rows().find(|row| row.package == package && row.interfaces.contains(&interface) && fits(row))
}

/// Whether a guest with these grants may import this interface.
pub(crate) fn allows(grants: &Grants, row: &HostInterface) -> bool {
    match row.granted {
        GrantCondition::Always => true,
        GrantCondition::ByAnnotation => grants.contains(row.name),
        GrantCondition::ToToolbox => grants.is_toolbox(),
    }
}

/// The interfaces of WASI 0.3, for a message.
pub(crate) fn names_of_0_3() -> String {
    let of_0_3 = rows().filter(|row| row.version == wasi03::VERSION);
    let named = of_0_3.map(|row| format!("{} ({})", row.package, row.interfaces.join(", ")));
    named.collect::<Vec<_>>().join(", ")
}

/// Names of the interfaces that need a grant.
pub(crate) fn optional() -> Vec<&'static str> {
    rows().filter(|row| row.granted == GrantCondition::ByAnnotation).map(|row| row.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row for tests only.
    pub(super) static GRANTED_IN_TESTS: &[HostInterface] = &[HostInterface {
        name: "answer",
        package: "test:granted",
        interfaces: &["answer"],
        version: "0.1",
        granted: GrantCondition::ByAnnotation,
        link: |linker| {
            let mut instance = linker.instance("test:granted/answer@0.1.0")?;
            instance.func_wrap("answer", |_, (): ()| Ok((42_u32,)))
        },
        held_bytes: handles_only,
    }];

    #[test]
    fn imports_are_matched_by_package_interface_and_minor_version() {
        for good in [
            "wasi:cli/stdout@0.2.0",
            "wasi:http/outgoing-handler@0.2.12",
            "wasi:io/poll@0.2.99",
            "wasi:config/store@0.2.0-rc.1",
            "wasi:keyvalue/atomics@0.2.0-draft2",
            "wasi:http/client@0.3.2",
        ] {
            assert!(offered(good).is_some(), "{good}");
        }
        for bad in [
            "wasi:keyvalue/store@0.2.0-draft",
            "wasi:config/store@0.2.0",
            "wasi:config/store@0.2.0-rc.2",
            "wasi:config/store@0.2.0-rc.1.1",
            "wasi:http/outgoing-handler@0.3.0",
            "wasi:http/types@0.3.0-rc-2026-03-15",
            "wasi:cli/stdout@0.20.0",
            "wasi:cli/stdout@0.2.0-rc-2023",
            "wasi:http/nonsense@0.2.0",
            "env",
            "",
        ] {
            assert!(offered(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn every_row_links() {
        let all = Grants::parse("answer,config,keyvalue", &optional()).unwrap().toolbox(true);
        for wasi in [WasiVersion::V0_2, WasiVersion::V0_3] {
            component_linker(&wasmtime::Engine::default(), &all, wasi).unwrap();
        }
        core_linker(&wasmtime::Engine::default()).unwrap();
    }
}
