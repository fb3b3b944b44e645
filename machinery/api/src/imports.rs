//! Import rules of a namespace and of a pod's container, as written in their annotations: a grammar like selectors, read
//! by admission, nodes, the runtime and `coracle push`. Pure.
//!
//! The syntax is that of `--controllers`: `*,-wasi:sockets` allows everything but sockets, `wasi:cli,wasi:io` only
//! these, an empty list nothing. A pattern is `*`, a namespace (`wasi:*`), a package (`wasi:sockets`) or an interface
//! (`wasi:sockets/tcp`), the latter two optionally with a version (`wasi:sockets/tcp@0.2.0`). The most specific pattern
//! decides; of two equally specific ones the denial.

use std::collections::BTreeMap;

use crate::names::IMPORTS;

/// Maximum bytes of a list: several times a component's imports.
pub const LIST_BYTES_MAX: usize = 16 << 10;
/// Maximum bytes of a pattern.
const PATTERN_BYTES_MAX: usize = 256;
/// The import module of core modules.
const PREVIEW1: &str = "wasi_snapshot_preview1";

/// Specificity of a pattern.
type Exactness = u8;

/// A parsed list of import rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ImportRules {
    /// The annotation's text.
    text: String,
    /// Patterns, true for allowed ones.
    patterns: BTreeMap<String, bool>,
}

impl ImportRules {
    /// Parses a list.
    ///
    /// # Errors
    /// The first error in the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LIST_BYTES_MAX {
            return Err(format!("has {} bytes, at most {LIST_BYTES_MAX} are taken", text.len()));
        }
        let mut patterns = BTreeMap::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (pattern, allowed) = entry.strip_prefix('-').map_or((entry, true), |denied| (denied, false));
            if !is_pattern(pattern) {
                return Err(format!(
                    "{entry:?} is no import: give \"*\", \"wasi:*\", \"wasi:sockets\", \"wasi:sockets/tcp\" or \
                     \"wasi:sockets/tcp@0.2.0\", with a \"-\" before what is denied"
                ));
            }
            let known = patterns.entry(pattern.to_owned()).or_insert(allowed);
            *known &= allowed;
        }
        if !patterns.is_empty() && patterns.values().all(|allowed| !allowed) {
            return Err("names only what is denied: begin with \"*\" to allow the rest".into());
        }
        Ok(Self { text: text.to_owned(), patterns })
    }

    /// Rules that allow exactly these imports; `None` if a list can't express one of the names.
    #[must_use]
    pub fn exactly<'a>(imports: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut names: Vec<&str> = imports.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        let fits = |name: &&str| is_pattern(name) && !name.ends_with('*') && !name.starts_with('-');
        if !names.iter().all(fits) {
            return None;
        }
        Self::parse(&names.join(",")).ok()
    }

    /// The annotation's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether an import is allowed: `wasi:cli/stdout@0.2.3`, or `wasi_snapshot_preview1/fd_write` of a core module. A
    /// core module's function without a matching pattern is allowed if its WASI 0.2 equivalents are.
    #[must_use]
    pub fn allows(&self, import: &str) -> bool {
        let own = self.decide(import);
        let meanings = import.strip_prefix(PREVIEW1).and_then(|rest| rest.strip_prefix('/')).map(meanings);
        match (own, meanings) {
            (Some((exactness, allowed)), _) if exactness > 0 => allowed,
            (_, Some(meanings)) if !meanings.is_empty() => {
                meanings.iter().all(|meaning| self.decide(meaning).is_some_and(|(_, allowed)| allowed))
            }
            (own, _) => own.is_some_and(|(_, allowed)| allowed),
        }
    }

    /// Whether everything that `other` allows is allowed. `other` must list imports one by one; otherwise the result is
    /// false.
    #[must_use]
    pub fn allows_all(&self, other: &Self) -> bool {
        other.patterns.iter().all(|(name, allowed)| !allowed || (name.contains('/') && self.allows(name)))
    }

    /// The verdict of the most specific pattern.
    fn decide(&self, import: &str) -> Option<(Exactness, bool)> {
        let (name, version) = import.split_once('@').map_or((import, None), |(name, version)| (name, Some(version)));
        let package = name.split_once('/').map_or(name, |(package, _)| package);
        let namespace = package.split_once(':').map(|(namespace, _)| format!("{namespace}:*"));
        let versioned = version.map(|version| format!("{package}@{version}"));
        let patterns = [Some(import), Some(name), versioned.as_deref(), Some(package), namespace.as_deref(), Some("*")];
        patterns.into_iter().zip((0..=5).rev()).find_map(|(pattern, exactness)| {
            let allowed = self.patterns.get(pattern?)?;
            Some((exactness, *allowed))
        })
    }
}

fn is_pattern(text: &str) -> bool {
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b":/@._-+".contains(&byte);
    let name = match text.strip_suffix('*') {
        Some("") => return true,
        Some(namespace) if namespace.ends_with(':') => namespace,
        Some(_) => return false,
        None => text,
    };
    !name.is_empty() && name.len() <= PATTERN_BYTES_MAX && name.bytes().all(is_char)
}

/// The WASI 0.2 interfaces equivalent to a function of preview 1. File descriptors come only from `path_open` and the
/// preopens: without these, the other functions act on standard input and output.
fn meanings(function: &str) -> &'static [&'static str] {
    match function {
        "args_get" | "args_sizes_get" | "environ_get" | "environ_sizes_get" => &["wasi:cli/environment"],
        "clock_res_get" | "clock_time_get" => &["wasi:clocks/monotonic-clock", "wasi:clocks/wall-clock"],
        "random_get" => &["wasi:random/random"],
        "proc_exit" | "proc_raise" => &["wasi:cli/exit"],
        "poll_oneoff" => &["wasi:clocks/monotonic-clock", "wasi:io/poll"],
        "sched_yield" => &["wasi:io/poll"],
        "fd_read"
        | "fd_write"
        | "fd_close"
        | "fd_seek"
        | "fd_tell"
        | "fd_fdstat_get"
        | "fd_fdstat_set_flags"
        | "fd_fdstat_set_rights"
        | "fd_renumber" => &["wasi:io/streams"],
        other if other.starts_with("sock_") => &["wasi:sockets/tcp"],
        other if other.starts_with("path_") || other.starts_with("fd_") => &["wasi:filesystem/types"],
        _ => &[],
    }
}

/// A namespace's requirements on its pods' modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportPolicy {
    /// A violation rejects the pod.
    pub enforce: Option<ImportRules>,
    /// A violation adds a warning.
    pub warn: Option<ImportRules>,
    /// A violation adds an audit annotation.
    pub audit: Option<ImportRules>,
}

impl ImportPolicy {
    /// Whether there are no requirements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.enforce.is_none() && self.warn.is_none() && self.audit.is_none()
    }

    /// Parses a namespace's annotations; returns errors by annotation. An invalid `enforce` allows nothing; other
    /// invalid rules are ignored.
    pub fn of<'a>(annotations: impl IntoIterator<Item = (&'a str, &'a str)>) -> (Self, Vec<(String, String)>) {
        let (mut policy, mut wrong) = (Self::default(), Vec::new());
        for (name, text) in annotations {
            let Some(mode) = name.strip_prefix(IMPORTS) else { continue };
            let slot = match mode {
                "enforce" => &mut policy.enforce,
                "warn" => &mut policy.warn,
                "audit" => &mut policy.audit,
                _ => {
                    wrong.push((name.to_owned(), "there are enforce, warn and audit".to_owned()));
                    continue;
                }
            };
            match ImportRules::parse(text) {
                Ok(rules) => *slot = Some(rules),
                Err(why) => {
                    wrong.push((name.to_owned(), why));
                    *slot = (mode == "enforce").then(ImportRules::default);
                }
            }
        }
        (policy, wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(rules: &str, import: &str) -> bool {
        ImportRules::parse(rules).unwrap().allows(import)
    }

    #[test]
    fn the_most_exact_pattern_decides() {
        let tcp = "wasi:sockets/tcp@0.2.0";
        for (rules, import, wanted) in [
            ("", tcp, false),
            ("*", tcp, true),
            ("*,-wasi:sockets", tcp, false),
            ("*,-wasi:sockets", "wasi:sockets-of-another/tcp@0.2.0", true),
            ("*,-wasi:sockets", "wasi:cli/stdout@0.2.3", true),
            ("*, -wasi:*, wasi:cli", "wasi:cli/stdout@0.2.3", true),
            ("*,-wasi:*,wasi:cli", tcp, false),
            ("*,-wasi:*,wasi:cli", "acme:a/b", true),
            ("wasi:sockets,-wasi:sockets/tcp", tcp, false),
            ("wasi:sockets,-wasi:sockets/tcp", "wasi:sockets/udp@0.2.0", true),
            ("*,-wasi:sockets,wasi:sockets/tcp", tcp, true),
            ("wasi:sockets/tcp@0.2.0", tcp, true),
            ("wasi:sockets/tcp@0.2.0", "wasi:sockets/tcp@0.2.1", false),
            ("wasi:sockets@0.2.0", tcp, true),
            ("wasi:sockets,-wasi:sockets@0.2.0", tcp, false),
            ("wasi:sockets,-wasi:sockets", tcp, false),
            ("log", "log", true),
            ("*", "unlocked-dep=<a:b/c@{>=1.0.0}>", true),
            ("wasi:cli", "", false),
        ] {
            // A list of denials only is invalid, so both signs of a pattern are tested with another one.
            let rules =
                if rules == "wasi:sockets,-wasi:sockets" { "wasi:sockets,-wasi:sockets,wasi:io" } else { rules };
            assert_eq!(allows(rules, import), wanted, "{rules} {import}");
        }
    }

    #[test]
    fn preview_1_functions_map_to_wasi_packages() {
        for (rules, function, wanted) in [
            ("*,-wasi:filesystem", "path_open", false),
            ("*,-wasi:filesystem", "fd_prestat_get", false),
            ("*,-wasi:filesystem", "fd_write", true),
            ("*,-wasi:sockets", "sock_accept", false),
            ("wasi:io", "fd_write", true),
            ("wasi:io", "poll_oneoff", false),
            ("wasi:io,wasi:clocks", "poll_oneoff", true),
            ("*,-wasi_snapshot_preview1", "fd_write", false),
            ("wasi_snapshot_preview1", "path_open", true),
            ("*,-wasi:filesystem,wasi_snapshot_preview1/path_open", "path_open", true),
            ("*", "of_tomorrow", true),
            ("wasi:*", "of_tomorrow", false),
        ] {
            assert_eq!(allows(rules, &format!("wasi_snapshot_preview1/{function}")), wanted, "{rules} {function}");
        }
    }

    #[test]
    fn invalid_lists_are_errors() {
        for (text, part) in [
            ("-wasi:sockets", "begin with \"*\""),
            ("wasi:so*", "\"wasi:so*\" is no import"),
            ("*,--x y", "no import"),
            ("wasi:cli;wasi:io", "no import"),
            ("-", "no import"),
        ] {
            let why = ImportRules::parse(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
        assert!(ImportRules::parse(&"a,".repeat(LIST_BYTES_MAX)).unwrap_err().contains("at most"));
        assert!(ImportRules::parse(&"a".repeat(PATTERN_BYTES_MAX + 1)).is_err());
        assert_eq!(ImportRules::exactly(["b/c@1", "a", "b/c@1"]).unwrap().as_str(), "a,b/c@1");
        let rules = ImportRules::parse("*,-wasi:sockets").unwrap();
        let all = |other: &str| rules.allows_all(&ImportRules::parse(other).unwrap());
        assert!(
            all("")
                && all("wasi:io/poll@0.2.0")
                && !all("wasi:io/poll,wasi:sockets/tcp")
                && !all("*")
                && !all("wasi:io")
        );
        assert_eq!(ImportRules::exactly([]).unwrap(), ImportRules::default());
        for name in ["a,b", "*", "a:*", "-a", "x y", "url=<a>", ""] {
            assert_eq!(ImportRules::exactly([name]), None, "{name}");
        }
    }

    #[test]
    fn three_annotations_restrict_a_namespace() {
        let of = |pairs: &[(&'static str, &'static str)]| ImportPolicy::of(pairs.iter().copied());
        assert!(of(&[("a", "b"), ("host.coracle.dev/enforce", "x")]).0.is_empty());
        let (policy, wrong) = of(&[("imports.coracle.dev/enforce", "*"), ("imports.coracle.dev/warn", "wasi:cli")]);
        assert!(wrong.is_empty() && policy.audit.is_none());
        assert_eq!((policy.enforce.unwrap().as_str(), policy.warn.unwrap().as_str()), ("*", "wasi:cli"));
        let (policy, wrong) = of(&[("imports.coracle.dev/enforce", "?"), ("imports.coracle.dev/warn", "?")]);
        assert_eq!((policy.enforce, policy.warn, wrong.len()), (Some(ImportRules::default()), None, 2));
        let (policy, wrong) = of(&[("imports.coracle.dev/deny", "wasi:sockets")]);
        assert!(policy.is_empty() && wrong[0].1.contains("enforce, warn and audit"));
    }

    #[test]
    fn any_list_parses_and_an_exact_one_allows_itself() {
        bolero::check!().with_type().for_each(|(rules, import): &(String, String)| {
            if let Ok(rules) = ImportRules::parse(rules) {
                let _ = rules.allows(import);
                assert_eq!(ImportRules::parse(rules.as_str()).as_ref(), Ok(&rules));
            }
            if let Some(rules) = ImportRules::exactly([import.as_str()]) {
                assert!(rules.allows(import));
            }
        });
    }
}
