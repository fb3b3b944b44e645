//! Parses a container image's config: the module's file, its arguments, environment, working directory and ports. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::manifest::{Refusal, is_wasm, short};

/// Maximum ports that are taken of an image; the lowest ones count.
const EXPOSED_PORTS_MAX: usize = 64;

/// The parameters for running an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageConfig {
    /// The module's path in the layers, no leading slash.
    pub(crate) module: String,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: Option<String>,
    /// The TCP ports of `ExposedPorts`, ascending.
    pub(crate) exposed_tcp_ports: Vec<u16>,
}

#[derive(Deserialize, Default)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RawRun>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
}

impl RawRun {
    fn argv(&self) -> Vec<String> {
        self.entrypoint.iter().flatten().chain(self.cmd.iter().flatten()).cloned().collect()
    }

    fn into_config(self, module: String, argv: Vec<String>) -> ImageConfig {
        let env = self.env.into_iter().flatten();
        let env = env.filter_map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
        let ports = self.exposed_ports.iter().flat_map(BTreeMap::keys);
        let ports: BTreeSet<u16> = ports.filter_map(|port| tcp_port(port)).collect();
        let exposed_tcp_ports = ports.into_iter().take(EXPOSED_PORTS_MAX).collect();
        let working_dir = self.working_dir.filter(|dir| !dir.is_empty());
        ImageConfig { module, argv, env, working_dir, exposed_tcp_ports }
    }
}

/// The port of a key of `ExposedPorts` (`8080/tcp`, `8080`); `None` for another protocol, or what isn't a port.
fn tcp_port(key: &str) -> Option<u16> {
    let number = match key.split_once('/') {
        Some((number, "tcp")) => number,
        Some(_) => return None,
        None => key,
    };
    number.parse().ok().filter(|port| *port > 0)
}

fn raw(bytes: &[u8]) -> Result<RawConfig, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::Malformed(format!("its config: {error}")))
}

/// Parses the config of an image whose layers are archives. Returns the module if argv[0] is one; else the error names
/// the platform that the image is built for.
pub(crate) fn image_config(bytes: &[u8]) -> Result<ImageConfig, Refusal> {
    let raw = raw(bytes)?;
    let run = raw.config.unwrap_or_default();
    let argv = run.argv();
    let is_module = argv.first().is_some_and(|first| first.ends_with(".wasm"));
    if !is_module && !is_wasm(&raw.os, &raw.architecture) {
        return Err(Refusal::Platform { found: format!("{}/{}", short(&raw.os), short(&raw.architecture)) });
    }
    let Some(first) = argv.first() else { return Err(Refusal::Entrypoint { found: "(none)".into() }) };
    if !is_module {
        return Err(Refusal::Entrypoint { found: format!("{:?}", short(first)) });
    }
    // A relative argv[0] is resolved in the image's working directory.
    let module = match (run.working_dir.as_deref().filter(|dir| !dir.is_empty()), first.starts_with('/')) {
        (Some(dir), false) => format!("{}/{first}", dir.trim_matches('/')),
        _ => first.clone(),
    };
    Ok(run.into_config(module, argv))
}

/// Parses the config of an image whose only layer is the module: argv[0] may name anything.
pub(crate) fn module_image_config(bytes: &[u8], name: &str) -> Result<ImageConfig, Refusal> {
    let run = raw(bytes)?.config.unwrap_or_default();
    let mut argv = run.argv();
    if argv.is_empty() {
        argv.push(name.to_owned());
    }
    Ok(run.into_config(String::new(), argv))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn config(os: &str, run: Value) -> Result<ImageConfig, Refusal> {
        let architecture = if os == "linux" { "amd64" } else { "wasm" };
        image_config(json!({"os": os, "architecture": architecture, "config": run}).to_string().as_bytes())
    }

    #[test]
    fn configs() {
        let run = json!({"Entrypoint": ["/app.wasm"], "Cmd": ["x"], "Env": ["A=1=2", "bad"], "WorkingDir": "/w"});
        let read = config("wasi", run.clone()).unwrap();
        assert_eq!(read.argv, ["/app.wasm", "x"]);
        assert_eq!(read.env, [("A".to_owned(), "1=2".to_owned())]);
        let relative = json!({"Entrypoint": ["app.wasm"], "WorkingDir": "/w"});
        assert_eq!(config("linux", relative).unwrap().module, "w/app.wasm");
        let shell = config("linux", json!({"Entrypoint": ["/bin/sh"]})).unwrap_err();
        assert_eq!(shell, Refusal::Platform { found: "linux/amd64".into() });
        assert_eq!(config("wasi", json!({})).unwrap_err(), Refusal::Entrypoint { found: "(none)".into() });
        let bare = module_image_config(json!({"config": run}).to_string().as_bytes(), "app").unwrap();
        assert_eq!((bare.argv.len(), bare.working_dir.as_deref()), (2, Some("/w")));
        assert_eq!(module_image_config(b"{}", "app").unwrap().argv, ["app"]);
        let ports = json!({"8080/tcp": {}, "443": {}, "53/udp": {}, "0/tcp": {}, "9000-9009/tcp": {}, "x": null, "443/tcp": {}});
        let exposing = json!({"config": {"ExposedPorts": ports}}).to_string();
        assert_eq!(module_image_config(exposing.as_bytes(), "app").unwrap().exposed_tcp_ports, [443, 8080]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = image_config(&bytes);
            let _ = module_image_config(&bytes, "x");
        }
    }
}
