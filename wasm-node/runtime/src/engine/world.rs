//! Which world a module fits: one of WASI's that everybody knows, or one of its own, for a person. By names alone: what they
//! have within is the linker's to judge.

use std::fmt;

use runtime_api::Inspection;

/// Packages of which a command may import everything (`wasi:cli/command`).
const COMMAND: [&str; 6] =
    ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];
/// What a server may import (`wasi:http/proxy`).
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
/// Custom sections by which toolchains tell the world of a core module that is to become a component.
const COMPONENT_TYPE: &str = "component-type:";
/// Names that are told of one module: honest ones have a handful.
const NAMES_MAX: usize = 64;
/// The longest name of a package or world that is told.
const NAME_CHARS_MAX: usize = 120;

/// A world, as a module's names tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum World {
    /// One of WASI's.
    Known {
        /// With the version of what is exported: `wasi:cli/command@0.2.3`.
        name: String,
        /// What it imports and that world doesn't have.
        beyond: Vec<String>,
    },
    /// A component's that exports what is its own.
    Plugin {
        /// The packages of what it exports, with their versions; empty: plain functions.
        packages: Vec<String>,
    },
    /// A core module's with `_start`.
    Preview1,
    /// A core module that is to become a component of that world.
    Unfinished(String),
    /// None that is known.
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

/// A name of the module's as it may be printed.
pub(super) fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect()
}

/// The world that a custom section of that name tells of.
pub(super) fn declared(section: &str) -> Option<String> {
    let rest = section.strip_prefix(COMPONENT_TYPE)?;
    // wit-bindgen's: its own name and version before, and what is encoded behind.
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

/// Which world it is. `declared`: what a custom section says.
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
    // A server before a command, as it is run.
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

/// What must be the same of two versions for them to fit: `0.2` of `0.2.3`.
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

    fn told(component: bool, imports: &[&str], exports: &[&str], section: &str) -> String {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let found = Inspection { component, kind: None, imports: owned(imports), exports: owned(exports) };
        world(&found, declared(section)).to_string()
    }

    #[test]
    fn worlds_of_wasi_and_what_is_beyond_them() {
        let (types, handler) = ("wasi:http/types@0.2.3", "wasi:http/incoming-handler@0.2.3");
        assert_eq!(told(true, &[types], &[handler], ""), "wasi:http/proxy@0.2.3");
        let command = ["wasi:cli/environment@0.2.0", "wasi:sockets/tcp@0.2.6"];
        assert_eq!(told(true, &command, &["wasi:cli/run@0.2.6"], ""), "wasi:cli/command@0.2.6");
        let beyond = "wasi:http/proxy@0.2.3, and beyond it wasi:cli/environment@0.2.0, wasi:io/poll@0.3.0, f";
        let imports = [types, command[0], "wasi:io/poll@0.3.0", "f"];
        assert_eq!(told(true, &imports, &["wasi:cli/run@0.2.3", handler], ""), beyond);
    }

    #[test]
    fn worlds_of_plugins_and_core_modules() {
        let exports = ["acme:greet/a@1.0.0", "acme:greet/b@1.0.0", "acme:k/c", "plain"];
        assert_eq!(told(true, &[], &exports, ""), "its own (a plugin of acme:greet@1.0.0, acme:k)");
        assert_eq!(told(true, &[], &["plain"], ""), "its own (a plugin)");
        assert_eq!(told(true, &[], &[], ""), "none that is known");
        assert_eq!(told(false, &[], &["_start"], "name"), "wasi preview 1 command");
        assert_eq!(told(false, &[], &["run"], "name"), "none that is known");
    }

    #[test]
    fn what_toolchains_note_of_a_world() {
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
        let said = told(false, &[], &["_start"], "component-type:\u{1b}[2Jgreeter");
        assert_eq!(said, "[2Jgreeter, which it is to be made a component for");
    }

    #[test]
    fn what_is_long_or_much_is_cut() {
        let exports: Vec<String> = (0..1000).map(|n| format!("a:p{n}{}/i", "x".repeat(1000))).collect();
        let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
        assert!(told(true, &[], &exports, "").len() <= NAMES_MAX * (NAME_CHARS_MAX + 2) + 100);
        let said = told(true, &exports, &["wasi:cli/run@0.2.0"], "");
        assert!(said.len() <= NAMES_MAX * (NAME_CHARS_MAX + 2) + 100, "{}", said.len());
    }
}
