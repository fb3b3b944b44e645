//! Options of the node agents of a process: those of the kubelet, of images, of guests, and of what nodes share.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use images::ImageOptions;
use keyvalue::options::KeyvalueOptions;
use kubelet::options::KubeletOptions;
use wasm_runtime::options::guests::GuestOptions;

use crate::config::NodesConfig;
use tools_command::failure::Failure;
use tools_command::output::print_stderr;

/// Flags of a node's pods, images and limits.
#[derive(Debug, Clone, Args)]
pub(in crate::cmd) struct NodeFlags {
    #[command(flatten)]
    kubelet: KubeletOptions,
    #[command(flatten)]
    images: ImageOptions,
    #[command(flatten)]
    guests: GuestOptions,
    /// Exchanges compiled modules with other nodes of the same version and CPU features that have this flag, instead of
    /// compiling each module once per node. Compiled code is trusted: each of these nodes can run code of its own on all
    /// of them
    #[arg(long, env = "CORACLE_SHARE_COMPILED_MODULES")]
    share_compiled_modules: bool,
    #[command(flatten)]
    keyvalue: KeyvalueOptions,
}

impl NodeFlags {
    /// The configuration of `count` agents that listen on `bind`.
    ///
    /// # Errors
    /// On contradicting flags, and on files that can't be read.
    pub(in crate::cmd) fn config(&self, count: u32, bind: IpAddr, short_leases: bool) -> Result<NodesConfig, Failure> {
        self.kubelet.check()?;
        report_missing("--allow-file-images", &self.images.allow_file_images);
        report_missing("--allow-host-path", &self.kubelet.allow_host_path);
        Ok(NodesConfig {
            count,
            short_leases,
            bind,
            kubelet: self.kubelet.clone(),
            images: self.images.settings()?,
            guests: self.guests.clone(),
            share_compiled: self.share_compiled_modules,
            keyvalue: self.keyvalue.config()?,
        })
    }
}

/// Reports folders that don't exist.
fn report_missing(flag: &str, folders: &[PathBuf]) {
    for folder in folders.iter().filter(|folder| !folder.is_dir()) {
        print_stderr!("coracle: {flag} {}: there is no such folder, so it allows nothing", folder.display());
    }
}
