//! The values of `wasi:config/store`: the current ConfigMaps in the container's `envFrom`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Container;
use runtime_api::{ConfigValues, Grants};

use super::sources::{ConfigSource, ConfigSourceManager, Content, SourceKind, SourceState};

/// The sources in their order, each with its prefix; they are watched while this is held.
pub struct GrantedConfig(Vec<(String, Arc<ConfigSource>)>);

impl GrantedConfig {
    /// The sources of a container. The environment reports missing ConfigMaps.
    #[must_use]
    pub fn of(sources: &ConfigSourceManager, namespace: &str, container: &Container) -> Self {
        let maps = container.env_from.iter().flatten().filter_map(|from| {
            let map = from.config_map_ref.as_ref()?;
            let prefix = from.prefix.clone().unwrap_or_default();
            Some((prefix, sources.get(SourceKind::ConfigMap, namespace, &map.name)))
        });
        Self(maps.collect())
    }

    /// The values of a container, if it is granted the interface.
    #[must_use]
    pub fn granted(
        grants: &Grants,
        sources: &ConfigSourceManager,
        namespace: &str,
        container: &Container,
    ) -> Option<Arc<dyn ConfigValues>> {
        grants.contains("config").then(|| Arc::new(Self::of(sources, namespace, container)) as Arc<dyn ConfigValues>)
    }

    fn present(&self) -> Vec<(&str, Arc<Content>)> {
        let present = self.0.iter().filter_map(|(prefix, source)| match &*source.known.borrow() {
            SourceState::Present(content) => Some((prefix.as_str(), content.clone())),
            SourceState::Unknown | SourceState::Failed(_) | SourceState::Missing => None,
        });
        present.collect()
    }
}

impl ConfigValues for GrantedConfig {
    fn get(&self, key: &str) -> Option<String> {
        get(&self.present(), key)
    }

    fn all(&self) -> Vec<(String, String)> {
        all(&self.present())
    }
}

/// The value of the last source with that key, as in an environment. Values that aren't UTF-8 are skipped.
fn get(sources: &[(&str, Arc<Content>)], key: &str) -> Option<String> {
    let found = sources.iter().rev().find_map(|(prefix, content)| content.data.get(key.strip_prefix(prefix)?))?;
    String::from_utf8(found.clone()).ok()
}

fn all(sources: &[(&str, Arc<Content>)]) -> Vec<(String, String)> {
    let mut all: BTreeMap<String, &[u8]> = BTreeMap::new();
    for (prefix, content) in sources {
        all.extend(content.data.iter().map(|(key, value)| (format!("{prefix}{key}"), value.as_slice())));
    }
    let texts = all.into_iter().filter_map(|(key, value)| Some((key, String::from_utf8(value.to_vec()).ok()?)));
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_source_wins_and_binary_values_are_absent() {
        let content = |pairs: &[(&str, &[u8])]| {
            let data = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect();
            Arc::new(Content { data, ..Content::default() })
        };
        let sources = [
            ("", content(&[("a", b"1"), ("b", b"1"), ("raw", b"\xff")])),
            ("x-", content(&[("a", b"2")])),
            ("", content(&[("b", b"3")])),
        ];
        assert_eq!(
            ["a", "b", "x-a", "raw", "x-", ""].map(|key| get(&sources, key)),
            [Some("1".into()), Some("3".into()), Some("2".into()), None, None, None]
        );
        let pairs = [("a", "1"), ("b", "3"), ("x-a", "2")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(all(&sources), pairs);
    }
}
