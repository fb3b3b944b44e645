//! What is known of an image that is on a node: what it is made of, where it may be used, who holds it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::access::Trust;
use super::volume_manifest::VolumeLayer;
use oci_registry::blobs::BlobStore;

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be run.
    Module,
    /// To be mounted.
    Volume,
}

/// An image that is on this node, ready to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name it was pulled by, normalized.
    pub name: String,
    /// For `status.containerStatuses[].imageID`: `registry.local/hello@sha256:…`.
    pub image_id: String,
    /// The module's own digest; empty where the image is only mounted.
    pub module: String,
    /// What a volume of it is made of; none = it is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Vec<VolumeLayer>>,
    /// What the root folder of its containers is made of; empty = it holds modules only, and they have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<VolumeLayer>,
    /// Every module of an image's layers by its absolute path, with links to them: what can be run beside the entrypoint.
    #[serde(default)]
    pub modules: BTreeMap<String, String>,
    /// The manifest that it was made of, where that was kept: of an index it is a child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Blobs that belong to it.
    pub blobs: Vec<String>,
    /// Sum of its blobs' sizes.
    pub size_bytes: u64,
    /// Entrypoint and arguments of the image; argv[0] is the module's name where the layout has none.
    pub argv: Vec<String>,
    /// The image's environment.
    pub env: Vec<(String, String)>,
    /// The image's working directory.
    pub working_dir: Option<String>,
}

impl Image {
    /// What it is known by: an image that is run and mounted is two.
    pub(super) fn key(&self) -> String {
        let purpose = if self.volume.is_some() { Purpose::Volume } else { Purpose::Module };
        key(&self.name, purpose)
    }

    /// The layers that are unpacked into a folder: none where nothing of it is seen as files.
    pub(super) fn unpacked(&self) -> &[VolumeLayer] {
        self.volume.as_deref().unwrap_or(&self.files)
    }

    /// Whether all that it is made of is there.
    pub(super) fn is_whole(&self, blobs: &BlobStore) -> bool {
        let is_mounted = self.volume.is_some();
        let is_there = |digest: &str| blobs.size(digest).is_some();
        (is_mounted || is_there(&self.module)) && self.unpacked().iter().all(|layer| is_there(&layer.digest))
    }
}

/// No name of an image has a space in it.
pub(super) fn key(name: &str, purpose: Purpose) -> String {
    match purpose {
        Purpose::Module => name.to_owned(),
        Purpose::Volume => format!("{name} volume"),
    }
}

/// What is kept of an image on the disk.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) image: Image,
    #[serde(flatten)]
    pub(super) trust: Trust,
}

/// An image as it is known. That somebody else holds the `Arc` is what keeps it: a pod's worker has it from the moment
/// in which it is decided that the image is there until nothing of the pod is left, so that no list of users can lie.
pub(super) struct Known {
    pub(super) image: Arc<Image>,
    pub(super) trust: Trust,
    pub(super) detected_at: Duration,
    pub(super) used_at: Duration,
}

#[derive(Default)]
pub(super) struct AllKnown {
    /// By what they are known by.
    pub(super) by_name: BTreeMap<String, Known>,
    /// Whose name means another image now, and which pods may still have.
    pub(super) replaced: Vec<Weak<Image>>,
}
