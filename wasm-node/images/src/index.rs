//! The index of the images on a node: content, access and users of each.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::access::Trust;
use super::volume_manifest::VolumeLayer;
use oci_registry::blobs::BlobStore;

/// How an image is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The image is run.
    Module,
    /// The image is mounted.
    Volume,
}

/// An image on this node, ready to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The normalized name that it was pulled by.
    pub name: String,
    /// For `status.containerStatuses[].imageID`: `registry.local/hello@sha256:…`.
    pub image_id: String,
    /// The module's own digest; empty if the image is only mounted.
    pub module: String,
    /// The layers of its volume; none = the image is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Vec<VolumeLayer>>,
    /// The layers of its containers' root folder; empty = the image holds modules only, and its containers have no root
    /// folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<VolumeLayer>,
    /// Every module of an image's layers by its absolute path, with links to them: the programs that can run beside the
    /// entrypoint.
    #[serde(default)]
    pub modules: BTreeMap<String, String>,
    /// The manifest that it was made of, if stored: for an index, a child's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// The digests of its blobs.
    pub blobs: Vec<String>,
    /// Sum of its blobs' sizes.
    pub size_bytes: u64,
    /// Entrypoint and arguments of the image; argv[0] is the module's name where the layout has none.
    pub argv: Vec<String>,
    /// The image's environment.
    pub env: Vec<(String, String)>,
    /// The image's working directory.
    pub working_dir: Option<String>,
    /// The TCP ports that the image exposes, ascending: those of a container that declares none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_tcp_ports: Vec<u16>,
}

impl Image {
    /// Returns its key in the index: an image that is run and mounted has two entries.
    pub(super) fn key(&self) -> String {
        let purpose = if self.volume.is_some() { Purpose::Volume } else { Purpose::Module };
        key(&self.name, purpose)
    }

    /// Returns the layers that are unpacked into a folder; empty if the image has no files.
    pub(super) fn unpacked(&self) -> &[VolumeLayer] {
        self.volume.as_deref().unwrap_or(&self.files)
    }

    /// Returns whether all its blobs are in the store.
    pub(super) fn is_whole(&self, blobs: &BlobStore) -> bool {
        let is_mounted = self.volume.is_some();
        let is_there = |digest: &str| blobs.size(digest).is_some();
        (is_mounted || is_there(&self.module)) && self.unpacked().iter().all(|layer| is_there(&layer.digest))
    }
}

/// A space separates the purpose: no image name contains one.
pub(super) fn key(name: &str, purpose: Purpose) -> String {
    match purpose {
        Purpose::Module => name.to_owned(),
        Purpose::Volume => format!("{name} volume"),
    }
}

/// The persistent record of an image.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) image: Image,
    #[serde(flatten)]
    pub(super) trust: Trust,
}

/// An entry of the index. A second reference to the `Arc` keeps the image. A pod's worker holds one from the decision
/// that the image is present until the pod is removed completely, so no separate list of users can be wrong.
pub(super) struct IndexEntry {
    pub(super) image: Arc<Image>,
    pub(super) trust: Trust,
    pub(super) detected_at: Duration,
    pub(super) used_at: Duration,
}

#[derive(Default)]
pub(super) struct ImageIndex {
    /// Entries by key.
    pub(super) by_name: BTreeMap<String, IndexEntry>,
    /// Images whose name now refers to another image. Pods may still use them.
    pub(super) replaced: Vec<Weak<Image>>,
}
