//! Determines the world that a module fits, one of WASI's or one of its own, for display. By names alone: the linker checks
//! types.

use std::fmt;

use runtime_api::Inspection;

/// Packages of which a command may import everything (`wasi:cli/command`).
const COMMAND: [&str; 6] =
    ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];
/// Imports of a server (`wasi:http/proxy`).
const PROXY: [&str; 11] = [
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/random",
];
/// Imports of a server of WASI 0.3 (`wasi:http/service`). A middleware also imports a handler.
const SERVICE: [&str; 12] = [
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/types",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:http/client",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
];
/// The handler of WASI 0.3.
const HANDLER: &str = "wasi:http/handler";
/// Prefix of custom sections with the world of a core module that is to become a component.
const COMPONENT_TYPE: &str = "component-type:";
/// Maximum names shown of one module: honest ones have a handful.
const NAMES_MAX: usize = 64;
/// Maximum shown characters of a package or world name.
const NAME_CHARS_MAX: usize = 120;

/// A world, derived from a module's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum World {
    /// One of WASI's.
    Known {
        /// With the version of its export: `wasi:cli/command@0.2.3`.
        name: String,
        /// Its imports beyond that world.
        beyond: Vec<String>,
    },
    /// A component with exports of its own.
    Plugin {
        /// The packages of its exports, with versions; empty: plain functions.
        packages: Vec<String>,
    },
    /// A core module's with `_start`.
    Preview1,
    /// A core module that is to become a component of that world.
    Unfinished(String),
    /// No known world.
    Unknown,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known { name, beyond } if beyond.is_empty() => f.write_str(name),
            Self::Known { name, beyond } => write!(f, "{name}, and beyond it {}", beyond.join(", ")),
            Self::Plugin { packages } if packages.is_empty() => f.write_str("its own (a plugin)"),
            Self::Plugin { packages } => write!(f, "its own (a plugin of {})", packages.join(", ")),
            Self::Preview1 => f.write_str("wasi preview 1 command"),
            Self::Unfinished(world) => write!(f, "{world}, which it is to be made a component for"),
            Self::Unknown => f.write_str("none that is known"),
        }
    }
}

/// A module's name without control characters, truncated.
pub(super) fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect()
}

/// The world declared by a custom section's name.
pub(super) fn declared(section: &str) -> Option<String> {
    let rest = section.strip_prefix(COMPONENT_TYPE)?;
    // wit-bindgen's form: its own name and version first, the encoding last.
    let rest = rest.strip_prefix("wit-bindgen:").and_then(|rest| Some(rest.split_once(':')?.1)).unwrap_or(rest);
    let rest = rest.strip_suffix(":encoded world").unwrap_or(rest);
    let world = match rest.rsplit_once(':') {
        Some((package, world)) if package.contains(':') => match package.split_once('@') {
            Some((package, version)) => format!("{package}/{world}@{version}"),
            None => format!("{package}/{world}"),
        },
        _ => rest.to_owned(),
    };
    Some(printable(&world)).filter(|world| !world.is_empty())
}

/// Determines the world. `declared`: the world of a custom section.
pub(super) fn world(found: &Inspection, declared: Option<String>) -> World {
    if !found.component {
        let starts = found.exports.iter().any(|name| name == "_start");
        return match declared {
            Some(world) => World::Unfinished(world),
            None if starts => World::Preview1,
            None => World::Unknown,
        };
    }
    let version = |of: &str| found.exports.iter().find_map(|name| name.strip_prefix(of));
    // A server before a command, and the newer version first, the same as when it is run.
    if let Some(version) = version("wasi:http/handler@") {
        let is_middleware =
            found.imports.iter().any(|import| import.split_once('@').is_some_and(|(name, _)| name == HANDLER));
        let name = if is_middleware { "wasi:http/middleware" } else { "wasi:http/service" };
        return known(name, version, &found.imports, |name| SERVICE.contains(&name) || name == HANDLER);
    }
    if let Some(version) = version("wasi:http/incoming-handler@") {
        return known("wasi:http/proxy", version, &found.imports, |name| PROXY.contains(&name));
    }
    if let Some(version) = version("wasi:cli/run@") {
        return known("wasi:cli/command", version, &found.imports, |name| {
            COMMAND.iter().any(|package| name.starts_with(package))
        });
    }
    if found.exports.is_empty() {
        return World::Unknown;
    }
    let mut packages = Vec::new();
    for package in found.exports.iter().filter_map(|name| package(name)).map(|name| printable(&name)) {
        if packages.len() < NAMES_MAX && !packages.contains(&package) {
            packages.push(package);
        }
    }
    World::Plugin { packages }
}

fn known(name: &str, version: &str, imports: &[String], has: impl Fn(&str) -> bool) -> World {
    let is_its_own = |import: &&String| {
        let (name, of) = import.split_once('@').unwrap_or((import, ""));
        has(name) && line(of) == line(version)
    };
    let beyond = imports.iter().filter(|import| !is_its_own(import));
    let beyond = beyond.take(NAMES_MAX).map(|import| printable(import)).collect();
    World::Known { name: printable(&format!("{name}@{version}")), beyond }
}

/// The compatible part of a version: `0.2` of `0.2.3`.
fn line(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(line, _)| line)
}

/// The package of an interface's name: `acme:greet@1.0.0` of `acme:greet/api@1.0.0`. A plain function has none.
fn package(name: &str) -> Option<String> {
    let (package, interface) = name.split_once('/')?;
    let version = interface.split_once('@').map(|(_, version)| format!("@{version}"));
    package.contains(':').then(|| format!("{package}{}", version.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(component: bool, imports: &[&str], exports: &[&str], section: &str) -> String {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let found = Inspection { component, kind: None, imports: owned(imports), exports: owned(exports) };
        world(&found, declared(section)).to_string()
    }

    #[test]
    fn worlds_of_wasi_and_beyond() {
        let (types, handler) = ("wasi:http/types@0.2.3", "wasi:http/incoming-handler@0.2.3");
        assert_eq!(reported(true, &[types], &[handler], ""), "wasi:http/proxy@0.2.3");
        let (client, service) = ("wasi:http/client@0.3.0", "wasi:http/handler@0.3.0");
        assert_eq!(reported(true, &[client], &[service, handler], ""), "wasi:http/service@0.3.0");
        assert_eq!(reported(true, &[client, service], &[service], ""), "wasi:http/middleware@0.3.0");
        let command = ["wasi:cli/environment@0.2.0", "wasi:sockets/tcp@0.2.6"];
        assert_eq!(reported(true, &command, &["wasi:cli/run@0.2.6"], ""), "wasi:cli/command@0.2.6");
        let beyond = "wasi:http/proxy@0.2.3, and beyond it wasi:cli/environment@0.2.0, wasi:io/poll@0.3.0, f";
        let imports = [types, command[0], "wasi:io/poll@0.3.0", "f"];
        assert_eq!(reported(true, &imports, &["wasi:cli/run@0.2.3", handler], ""), beyond);
    }

    #[test]
    fn worlds_of_plugins_and_core_modules() {
        let exports = ["acme:greet/a@1.0.0", "acme:greet/b@1.0.0", "acme:k/c", "plain"];
        assert_eq!(reported(true, &[], &exports, ""), "its own (a plugin of acme:greet@1.0.0, acme:k)");
        assert_eq!(reported(true, &[], &["plain"], ""), "its own (a plugin)");
        assert_eq!(reported(true, &[], &[], ""), "none that is known");
        assert_eq!(reported(false, &[], &["_start"], "name"), "wasi preview 1 command");
        assert_eq!(reported(false, &[], &["run"], "name"), "none that is known");
    }

    #[test]
    fn noted_worlds_of_toolchains() {
        let of = |section| declared(section).unwrap_or_default();
        assert_eq!(
            of("component-type:wit-bindgen:0.41.0:acme:greet@1.0.0:greeter:encoded world"),
            "acme:greet/greeter@1.0.0"
        );
        assert_eq!(of("component-type:wit-bindgen:0.41.0:acme:greet:greeter:encoded world"), "acme:greet/greeter");
        assert_eq!(
            (of("component-type:greeter"), of("component-type:"), of("producers")),
            ("greeter".into(), String::new(), String::new())
        );
        let description = reported(false, &[], &["_start"], "component-type:\u{1b}[2Jgreeter");
        assert_eq!(description, "[2Jgreeter, which it is to be made a component for");
    }

    #[test]
    fn long_or_many_items_are_truncated() {
        let exports: Vec<String> = (0..1000).map(|n| format!("a:p{n}{}/i", "x".repeat(1000))).collect();
        let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
        assert!(reported(true, &[], &exports, "").len() <= NAMES_MAX * (NAME_CHARS_MAX + 2) + 100);
        let description = reported(true, &exports, &["wasi:cli/run@0.2.0"], "");
        assert!(description.len() <= NAMES_MAX * (NAME_CHARS_MAX + 2) + 100, "{}", description.len());
    }
}
