//! The arguments.
use crate::protocol::WORD_BYTES_MAX;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

const USAGE: &str = "usage: kv [--port N] [--dir FOLDER] [--appendfsync always|everysec] [--maxclients N] [--maxmemory BYTES], or kv call HOST:PORT COMMAND…";

/// When the append-only file reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Before a client gets its reply.
    Always,
    /// Once a second, so that a machine that fails loses what a second brought. A process that ends loses nothing.
    EverySecond,
}

/// The settings of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub port: u16,
    /// The folder of the append-only file; without one the data ends with the process.
    pub folder: Option<String>,
    pub sync: Sync,
    pub clients_max: usize,
    /// Memory of keys and values above which commands that add to them are refused.
    pub memory_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { port: 6379, folder: None, sync: Sync::EverySecond, clients_max: 1000, memory_bytes_max: 24 << 20 }
    }
}

impl Settings {
    /// # Errors
    /// An unknown argument, or a value that isn't one of it.
    pub fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut settings = Self::default();
        let mut rest = arguments.iter();
        while let Some(option) = rest.next() {
            let value = rest.next().ok_or(USAGE)?;
            let wrong = || format!("{option} can't be {value}; {USAGE}");
            match option.as_str() {
                "--port" => settings.port = value.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
                "--dir" => settings.folder = Some(value.clone()),
                "--appendfsync" => {
                    settings.sync = match value.as_str() {
                        "always" => Sync::Always,
                        "everysec" => Sync::EverySecond,
                        _ => return Err(wrong()),
                    }
                }
                "--maxclients" => {
                    settings.clients_max = value.parse().ok().filter(|max| *max > 0).ok_or_else(wrong)?;
                }
                "--maxmemory" => settings.memory_bytes_max = value.parse().map_err(|_| wrong())?,
                _ => return Err(format!("no option {option}; {USAGE}")),
            }
        }
        Ok(settings)
    }

    /// The settings by Redis' names.
    pub fn config(&self) -> Vec<(&'static str, String)> {
        let sync = match self.sync {
            Sync::Always => "always",
            Sync::EverySecond => "everysec",
        };
        Vec::from([
            ("appendfsync", sync.to_string()),
            ("appendonly", if self.folder.is_some() { "yes" } else { "no" }.to_string()),
            ("databases", "1".to_string()),
            ("dir", self.folder.clone().unwrap_or_default()),
            ("maxclients", self.clients_max.to_string()),
            ("maxmemory", self.memory_bytes_max.to_string()),
            ("maxmemory-policy", "noeviction".to_string()),
            ("port", self.port.to_string()),
            ("proto-max-bulk-len", WORD_BYTES_MAX.to_string()),
            ("save", String::new()),
            ("timeout", "0".to_string()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_checked() {
        let parse = |text: &str| Settings::parse(&text.split_whitespace().map(String::from).collect::<Vec<_>>());
        let all = parse("--port 1 --dir /data --appendfsync always --maxclients 2 --maxmemory 3").unwrap();
        let expected =
            Settings { port: 1, folder: Some("/data".into()), sync: Sync::Always, clients_max: 2, memory_bytes_max: 3 };
        assert_eq!(all, expected);
        for (wrong, problem) in [
            ("--port 0", "--port can't be 0"),
            ("--port", "usage"),
            ("--appendfsync no", "--appendfsync can't be no"),
            ("--maxclients 0", "--maxclients can't be 0"),
            ("--save 1", "no option --save"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.starts_with(problem), "{wrong}: {error}");
        }
    }
}
