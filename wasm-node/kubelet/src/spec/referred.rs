//! What a pod's spec refers to, as the node knows it: ConfigMaps, Secrets and claims' volumes. Values only.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// The kind of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl SourceKind {
    /// The lower-case word in "not found" messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    /// The kind's name.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// The content of a ConfigMap or Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The data by key.
    pub data: BTreeMap<String, Vec<u8>>,
    /// The object is immutable.
    pub immutable: bool,
    /// The object's uid.
    pub uid: String,
    /// A Secret's type.
    pub secret_type: String,
}

/// The volume that a claim is bound to, on this node.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BoundVolume {
    /// A volume stored by the node.
    Local {
        /// The volume's uid.
        uid: String,
        /// Maximum bytes of its content.
        capacity: u64,
        /// Whether only one pod may use it at a time.
        alone: bool,
    },
    /// A folder of the machine.
    Host(HostPathVolumeSource),
}

/// Removes other characters from a name. The API server validates names, too.
pub(crate) fn plain(name: &str) -> String {
    let plain: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    if plain.is_empty() { "none".to_owned() } else { plain }
}
