//! Image metadata for the API server: from the registries that the nodes pull from, and from the runtime where a
//! module's bytes are local.

use std::pin::Pin;
use std::sync::Arc;

use apiserver::server::ChainExtensions;
use apiserver_admission::{ImageImports, ImageMetadata};
use dashboard_server::access::DashboardReaders;
use images::{Images, ImportInspector, RegistryAccess};
use machinery_env::Env;
use oci_registry::BlobStore;
use serde_json::Value;
use wasm_runtime::engine;

use crate::config::{ApiServerConfig, NodesConfig};
use tools_command::environment::proxies;

struct RegistryImageMetadata(ImportInspector);

impl ImageMetadata for RegistryImageMetadata {
    fn imports<'a>(
        &'a self,
        image: &'a str,
        secrets: &'a [Arc<Value>],
    ) -> Pin<Box<dyn Future<Output = Result<ImageImports, String>> + Send + 'a>> {
        Box::pin(self.0.imports(image, secrets))
    }
}

/// Additions to the API server: the metadata sources of images, which are the nodes' registries if there are nodes, and the
/// dashboard.
pub(super) fn chain_extensions(
    env: &Env,
    config: &NodesConfig,
    api: &ApiServerConfig,
    images: Option<&Arc<Images>>,
    (blobs, registry): (&Arc<BlobStore>, &RegistryAccess),
) -> ChainExtensions {
    let inspector = match images {
        Some(images) => ImportInspector::for_nodes(images.clone(), engine::imports),
        None => {
            let registries = config.images.registries.clone().with_proxies(proxies());
            ImportInspector::for_registries(registries, registry.clone(), blobs.clone(), engine::imports, env.clone())
        }
    };
    ChainExtensions {
        images: Some(Arc::new(RegistryImageMetadata(inspector))),
        admission: api.admission.clone(),
        files: api.dashboard.then(dashboard_server::files::files),
        authorizers: if api.dashboard { vec![Arc::new(DashboardReaders)] } else { Vec::new() },
        ..ChainExtensions::default()
    }
}
