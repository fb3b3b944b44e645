//! Reads the pull secrets of a pod into a keyring.

use images::{ImageError, Keyring, PULL_SECRET_TYPES as TYPES, SecretIdentity};
use k8s_openapi::api::core::v1::Pod;

use super::sources::{ConfigSourceManager, Content, SourceKind, SourceState};

/// The pull secrets of a pod.
#[derive(Debug, Default)]
pub(crate) struct PullSecrets {
    /// The credentials of all secrets.
    pub(crate) keyring: Keyring,
    /// The unreadable secrets; a pull may succeed without them.
    pub(crate) missing: Vec<String>,
}

/// The Secrets that the pod references.
pub(crate) fn named(pod: &Pod) -> impl Iterator<Item = (SourceKind, String)> {
    let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    named.filter(|named| !named.name.is_empty()).map(|named| (SourceKind::Secret, named.name.clone()))
}

/// Reads the pod's `imagePullSecrets`. Admission has added those of its ServiceAccount if the pod had none.
pub(crate) async fn of(sources: &ConfigSourceManager, pod: &Pod) -> Result<PullSecrets, ImageError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    // All at once: each is watched as long as its source is held.
    let held: Vec<_> = named(pod)
        .map(|(kind, name)| {
            let source = sources.get(kind, namespace, &name);
            (name, source)
        })
        .collect();
    let mut found = PullSecrets::default();
    for (name, source) in held {
        match source.read().await {
            SourceState::Present(content) => add(&mut found.keyring, namespace, &name, &content)?,
            _ => found.missing.push(name),
        }
    }
    Ok(found)
}

/// Adds a Secret's credentials; Secrets of other types have none.
fn add(keyring: &mut Keyring, namespace: &str, name: &str, content: &Content) -> Result<(), ImageError> {
    let of_type =
        TYPES.iter().find(|(wanted, key, _)| content.secret_type == *wanted && content.data.contains_key(*key));
    let Some((_, key, form)) = of_type else { return Ok(()) };
    let secret = SecretIdentity { namespace: namespace.into(), name: name.into(), uid: content.uid.clone() };
    let added = keyring.add(&secret, *form, &content.data[*key]);
    added.map_err(|error| ImageError::Secret { secret: name.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_secrets_of_the_two_types_count() {
        let config = br#"{"auths": {"a.io": {"username": "u", "password": "hidden"}}}"#;
        let content = |secret_type: &str, key: &str, bytes: &[u8]| Content {
            data: [(key.to_owned(), bytes.to_vec())].into(),
            secret_type: secret_type.into(),
            uid: "1".into(),
            ..Content::default()
        };
        let mut keyring = Keyring::default();
        for other in [content("Opaque", ".dockerconfigjson", config), content(TYPES[0].0, ".dockercfg", config)] {
            add(&mut keyring, "n", "s", &other).unwrap();
        }
        assert!(keyring.lookup("a.io/x").is_empty());
        add(&mut keyring, "n", "s", &content(TYPES[0].0, TYPES[0].1, config)).unwrap();
        let secret = keyring.lookup("a.io/x")[0].secret.clone().unwrap();
        assert_eq!((secret.namespace.as_str(), secret.name.as_str(), secret.uid.as_str()), ("n", "s", "1"));
        let error = add(&mut keyring, "n", "s", &content(TYPES[1].0, TYPES[1].1, b"hidden")).unwrap_err();
        assert_eq!(error.reason(), "ErrImagePull");
        assert!(error.to_string().contains("\"s\"") && !error.to_string().contains("hidden"), "{error}");
    }
}
