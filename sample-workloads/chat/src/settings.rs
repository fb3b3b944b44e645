//! The arguments.
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const USAGE: &str = "usage: chat [--port N] [--max-clients N] [--max-echo-bytes N] [--ping-seconds N] [--allow-origin ORIGIN], or chat call [--lines N] URL TEXT…";

/// The settings of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub port: u16,
    pub clients_max: usize,
    /// Maximum bytes of a message to `/echo`. A connection has two of them in memory.
    pub echo_bytes_max: usize,
    /// After this time without a byte from a client, it gets a ping. After the same time again, it is dropped.
    pub ping_ms: u64,
    /// Pages of these origins may connect, besides those of the server itself; `*` permits all.
    pub origins: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { port: 8080, clients_max: 500, echo_bytes_max: 64 * 1024, ping_ms: 20_000, origins: Vec::new() }
    }
}

impl Settings {
    /// # Errors
    /// An unknown argument, or a value that it doesn't permit.
    pub fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut settings = Self::default();
        let mut rest = arguments.iter();
        while let Some(option) = rest.next() {
            let value = rest.next().ok_or(USAGE)?;
            if option == "--allow-origin" {
                settings.origins.push(value.clone());
                continue;
            }
            let wrong = || format!("{option} can't be {value}; {USAGE}");
            let number = value.parse::<u32>().ok().filter(|number| *number > 0).ok_or_else(wrong);
            match option.as_str() {
                "--port" => settings.port = u16::try_from(number?).map_err(|_| wrong())?,
                "--max-clients" => settings.clients_max = number? as usize,
                "--max-echo-bytes" => settings.echo_bytes_max = number? as usize,
                "--ping-seconds" => settings.ping_ms = u64::from(number?) * 1000,
                _ => return Err(format!("no option {option}; {USAGE}")),
            }
        }
        Ok(settings)
    }
}

/// The parts of a client's URL: `ws://HOST[:PORT][/PATH]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Address<'a> {
    pub authority: &'a str,
    pub host: &'a str,
    pub port: u16,
    pub target: &'a str,
}

impl<'a> Address<'a> {
    pub fn parse(url: &'a str) -> Option<Self> {
        let rest = url.strip_prefix("ws://")?;
        let (authority, target) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (authority, 80),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic());
        let is_valid = !host.is_empty() && is_plain(authority) && is_plain(target);
        is_valid.then_some(Self { authority, host, port, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_a_port_and_a_target() {
        for (url, host, port, target) in [
            ("ws://chat/ws?room=a", "chat", 80, "/ws?room=a"),
            ("ws://chat:81", "chat", 81, "/"),
            ("ws://[fd00::1]:81/a:b", "fd00::1", 81, "/a:b"),
            ("ws://[fd00::1]/", "fd00::1", 80, "/"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.host, address.port, address.target), (host, port, target), "{url}");
        }
        for bad in
            ["http://chat/", "ws://", "ws:///a", "ws://chat:x/", "ws://chat:65536/", "ws://chat/a b", "ws://c\r\n/"]
        {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn arguments_are_checked() {
        let parse = |text: &str| Settings::parse(&text.split_whitespace().map(String::from).collect::<Vec<_>>());
        let all =
            parse("--port 1 --max-clients 2 --max-echo-bytes 3 --ping-seconds 4 --allow-origin a --allow-origin b")
                .unwrap();
        let origins = ["a", "b"].map(String::from).to_vec();
        assert_eq!(all, Settings { port: 1, clients_max: 2, echo_bytes_max: 3, ping_ms: 4000, origins });
        for (wrong, problem) in [
            ("--port 0", "--port can't be 0"),
            ("--port 65536", "--port can't be 65536"),
            ("--port", "usage"),
            ("--ping-seconds -1", "--ping-seconds can't be -1"),
            ("--rooms 1", "no option --rooms"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.starts_with(problem), "{wrong}: {error}");
        }
    }
}
