//! Spin applications: what of a locked application (Spin's `spin_locked_app`) runs here. One component that answers HTTP
//! and is a layer of the artifact; what more an application asks for is named and refused. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::image_config::ImageConfig;
use super::manifest::{Descriptor, Refusal, short};

#[derive(Deserialize)]
struct Application<'a> {
    #[serde(default)]
    triggers: Vec<Trigger>,
    #[serde(default, borrow)]
    components: Vec<Component<'a>>,
}

#[derive(Deserialize)]
struct Trigger {
    #[serde(default)]
    trigger_type: String,
}

#[derive(Deserialize)]
struct Component<'a> {
    #[serde(default)]
    id: String,
    source: Source,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Whatever these hold: what counts is that there is something.
    #[serde(default, borrow)]
    files: Vec<&'a RawValue>,
    #[serde(default, borrow)]
    config: BTreeMap<String, &'a RawValue>,
    #[serde(default, borrow)]
    dependencies: BTreeMap<String, &'a RawValue>,
}

#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    digest: Option<String>,
}

/// The layer that is the application's module, and how it is run.
pub(crate) fn component(bytes: &[u8], layers: &[Descriptor]) -> Result<(Descriptor, ImageConfig), Refusal> {
    let application: Application<'_> = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::Malformed(format!("its locked Spin application: {error}")))?;
    if let Some(other) = application.triggers.iter().find(|trigger| trigger.trigger_type != "http") {
        return Err(Refusal::Spin(format!("it has a trigger of type {:?}, only http is", short(&other.trigger_type))));
    }
    let [component] = application.components.as_slice() else {
        let count = application.components.len();
        return Err(Refusal::Spin(format!("it has {count} components, and a container is one: push each of its own")));
    };
    let asks = [
        (!component.files.is_empty(), "static files (mount a ConfigMap or an emptyDir instead)"),
        (!component.config.is_empty(), "variables (give the container env instead)"),
        (!component.dependencies.is_empty(), "dependencies (compose the component before pushing it)"),
    ];
    if let Some((_, what)) = asks.iter().find(|(asked, _)| *asked) {
        return Err(Refusal::Spin(format!("its component {:?} wants {what}", short(&component.id))));
    }
    let digest = component.source.digest.as_deref().unwrap_or_default();
    let layer = layers.iter().find(|layer| layer.digest == digest);
    let layer = layer.ok_or_else(|| Refusal::Spin("its component is no layer of the artifact".into()))?;
    let env = component.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let argv = vec![component.id.clone()];
    Ok((layer.clone(), ImageConfig { argv, env, ..ImageConfig::default() }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(change: impl FnOnce(&mut Value)) -> Result<(String, ImageConfig), String> {
        let digest = format!("sha256:{}", "a".repeat(64));
        let mut application = json!({
            "spin_lock_version": 1,
            "triggers": [{"id": "trigger--web", "trigger_type": "http", "trigger_config": {"component": "web", "route": "/..."}}],
            "components": [{"id": "web", "metadata": {}, "source": {"content_type": "application/wasm", "digest": digest}, "env": {"A": "b"}}],
        });
        change(&mut application);
        let layer: Descriptor = serde_json::from_value(json!({"mediaType": "m", "digest": digest, "size": 1})).unwrap();
        let read = component(application.to_string().as_bytes(), &[layer]);
        read.map(|(layer, run)| (layer.digest, run)).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn one_http_component_is_run_and_the_rest_named() {
        let (digest, run) = read(|_| {}).unwrap();
        assert!(digest.ends_with(&"a".repeat(64)));
        assert_eq!((run.argv, run.env), (vec!["web".to_owned()], vec![("A".to_owned(), "b".to_owned())]));
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 6] = [
            (|app| app["triggers"][0]["trigger_type"] = json!("redis"), "\"redis\""),
            (|app| app["components"] = json!([]), "0 components"),
            (|app| app["components"][0]["files"] = json!([{"path": "/a"}]), "static files"),
            (|app| app["components"][0]["config"] = json!({"a": "{{ b }}"}), "variables"),
            (|app| app["components"][0]["source"]["digest"] = json!("sha256:b"), "no layer"),
            (|app| app["components"] = json!(1), "not an image manifest"),
        ];
        for (change, says) in cases {
            let error = read(change).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = component(&bytes, &[]);
        }
    }
}
