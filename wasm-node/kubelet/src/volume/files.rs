//! Computes the files of a volume from its sources. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume};

use crate::config::environment::{ConfigError, EnvContext, field, resource};
use crate::config::sources::{Content, SourceKind};

/// Default mode of files (upstream's).
const MODE_DEFAULT: u32 = 0o644;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
}

/// Files by path within the volume.
pub type Files = BTreeMap<String, File>;

/// Why a volume can't be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// An object or a field is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key is missing.
    #[error("{kind} references non-existent {what} key: {key}")]
    NoKey {
        /// `configmap`, `secret`.
        kind: &'static str,
        /// `config`, `secret`.
        what: &'static str,
        /// The key.
        key: String,
    },
    /// A token is not available yet.
    #[error("{0}")]
    Token(String),
}

/// The tokens of a pod's projected volumes by audience and lifetime in seconds.
pub type Tokens = BTreeMap<(String, i64), String>;

/// Returns the files of a configMap, secret, downwardAPI or projected volume.
pub fn files(given: &EnvContext<'_>, volume: &Volume, tokens: &Tokens) -> Result<Files, FilesError> {
    let mut files = Files::new();
    let optional = |optional: &Option<bool>| *optional == Some(true);
    if let Some(map) = &volume.config_map {
        let mode = mode(map.default_mode);
        add(given, &mut files, SourceKind::ConfigMap, &map.name, map.items.as_deref(), mode, optional(&map.optional))?;
    }
    if let Some(secret) = &volume.secret {
        let (mode, name) = (mode(secret.default_mode), secret.secret_name.as_deref().unwrap_or_default());
        add(given, &mut files, SourceKind::Secret, name, secret.items.as_deref(), mode, optional(&secret.optional))?;
    }
    if let Some(downward) = &volume.downward_api {
        add_downward(given, &mut files, downward.items.as_deref().unwrap_or_default(), mode(downward.default_mode))?;
    }
    if let Some(projected) = &volume.projected {
        let mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                let (items, optional) = (map.items.as_deref(), optional(&map.optional));
                add(given, &mut files, SourceKind::ConfigMap, &map.name, items, mode, optional)?;
            }
            if let Some(secret) = &source.secret {
                let (items, optional) = (secret.items.as_deref(), optional(&secret.optional));
                add(given, &mut files, SourceKind::Secret, &secret.name, items, mode, optional)?;
            }
            if let Some(downward) = &source.downward_api {
                add_downward(given, &mut files, downward.items.as_deref().unwrap_or_default(), mode)?;
            }
            if let Some(token) = &source.service_account_token {
                let value = tokens
                    .get(&token_key(token))
                    .ok_or_else(|| FilesError::Token("the token is not there yet".into()))?;
                files.insert(token.path.clone(), File { bytes: value.clone().into_bytes(), mode });
            }
        }
    }
    Ok(files)
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE_DEFAULT) & 0o777
}

fn add(
    given: &EnvContext<'_>,
    files: &mut Files,
    kind: SourceKind,
    name: &str,
    items: Option<&[KeyToPath]>,
    default: u32,
    optional: bool,
) -> Result<(), FilesError> {
    let content: Arc<Content> = match (given.lookup)(kind, name) {
        Some(content) => content,
        None if optional => return Ok(()),
        None => return Err(ConfigError::NotFound { kind: kind.word(), name: name.to_owned() }.into()),
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in &content.data {
            files.insert(key.clone(), File { bytes: bytes.clone(), mode: default });
        }
        return Ok(());
    };
    for item in items {
        match content.data.get(&item.key) {
            Some(bytes) => {
                let mode = item.mode.map_or(default, |own| mode(Some(own)));
                files.insert(item.path.clone(), File { bytes: bytes.clone(), mode });
            }
            None if optional => {}
            None => {
                let what = if kind == SourceKind::ConfigMap { "config" } else { "secret" };
                return Err(FilesError::NoKey { kind: kind.word(), what, key: item.key.clone() });
            }
        }
    }
    Ok(())
}

fn add_downward(
    given: &EnvContext<'_>,
    files: &mut Files,
    items: &[DownwardAPIVolumeFile],
    default: u32,
) -> Result<(), FilesError> {
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(of), _) => field(given, of)?,
            (None, Some(of)) => resource(given, None, of)?,
            (None, None) => continue,
        };
        let mode = item.mode.map_or(default, |own| mode(Some(own)));
        files.insert(item.path.clone(), File { bytes: value.into_bytes(), mode });
    }
    Ok(())
}

/// Returns a token's key: audience and lifetime in seconds.
#[must_use]
pub fn token_key(token: &ServiceAccountTokenProjection) -> (String, i64) {
    (token.audience.clone().unwrap_or_default(), token.expiration_seconds.unwrap_or(3600))
}

/// Yields the token projections of volumes.
pub fn projections(volumes: &[Volume]) -> impl Iterator<Item = (&Volume, &ServiceAccountTokenProjection)> {
    volumes.iter().flat_map(|volume| {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        sources.filter_map(move |source| Some((volume, source.service_account_token.as_ref()?)))
    })
}

/// Returns audience and lifetime in seconds of the tokens that a pod's volumes need.
#[must_use]
pub fn wanted_tokens(volumes: &[Volume]) -> Vec<(String, i64)> {
    let mut wanted: Vec<(String, i64)> = projections(volumes).map(|(_, token)| token_key(token)).collect();
    wanted.sort();
    wanted.dedup();
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[test]
    fn items_modes_and_optional_sources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"containers": []},
        }))
        .unwrap();
        let content = Arc::new(Content {
            data: [("one".to_owned(), b"1".to_vec()), ("two".to_owned(), b"2".to_vec())].into(),
            ..Content::default()
        });
        let lookup =
            |kind: SourceKind, name: &str| (name == "there" && kind == SourceKind::ConfigMap).then(|| content.clone());
        let allocatable = BTreeMap::new();
        let given = EnvContext {
            pod: &pod,
            host_ip: "127.0.0.1".parse().unwrap(),
            pod_ip: None,
            allocatable: &allocatable,
            services: &[],
            lookup: &lookup,
            files: &crate::config::env_file::FileValues::new(),
        };
        let ask = |volume: serde_json::Value| {
            let volume: Volume = serde_json::from_value(volume).unwrap();
            let tokens = [((String::new(), 3600), "secret".to_owned())].into();
            files(&given, &volume, &tokens).map(|files| {
                let text = |file: &File| String::from_utf8(file.bytes.clone()).unwrap();
                files.iter().map(|(path, file)| format!("{path}={} {:o}", text(file), file.mode)).collect::<Vec<_>>()
            })
        };
        let all = ask(json!({"name": "v", "configMap": {"name": "there", "defaultMode": 256}})).unwrap();
        assert_eq!(all, ["one=1 400", "two=2 400"]);
        let items = json!([{"key": "two", "path": "deep/er", "mode": 384}]);
        let some = ask(json!({"name": "v", "configMap": {"name": "there", "items": items}})).unwrap();
        assert_eq!(some, ["deep/er=2 600"]);
        assert_eq!(
            ask(json!({"name": "v", "configMap": {"name": "no", "optional": true}})).unwrap(),
            Vec::<String>::new()
        );
        let error = ask(json!({"name": "v", "secret": {"secretName": "there"}})).unwrap_err();
        assert_eq!(error.to_string(), r#"secret "there" not found"#);
        let items = json!([{"key": "three", "path": "x"}]);
        let error = ask(json!({"name": "v", "configMap": {"name": "there", "items": items}})).unwrap_err();
        assert_eq!(error.to_string(), "configmap references non-existent config key: three");
        let projected = ask(json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ]}}))
        .unwrap();
        assert_eq!(projected, ["labels=a=\"x\\\"y\"\nb=\"2\" 644", "token=secret 644"]);
    }
}
