//! What the API server asks of images: the registries that the nodes pull from know it, and the runtime, where a module's bytes
//! are here.

use std::pin::Pin;
use std::sync::Arc;

use apiserver::admission::{AdmissionConfiguration, ImageImports, ImageMetadata};
use apiserver::server::Chains;
use kubelet::image::{Describer, Images, Inspect, RegistryAccess};
use machinery_env::Env;
use oci_registry::BlobStore;
use serde_json::Value;
use wasm_runtime::engine;

use crate::config::{NodesConfig, proxies};

/// How modules are looked into.
pub(crate) const INSPECT: Inspect = Inspect { all: engine::inspect, imports: engine::imports };

struct OfRegistries(Describer);

impl ImageMetadata for OfRegistries {
    fn imports<'a>(
        &'a self,
        image: &'a str,
        secrets: &'a [Arc<Value>],
    ) -> Pin<Box<dyn Future<Output = Result<ImageImports, String>> + Send + 'a>> {
        Box::pin(self.0.imports(image, secrets))
    }
}

/// Whom the API server asks: as the nodes do, where there are some.
pub(super) fn chains(
    env: &Env,
    config: &NodesConfig,
    admission: &Arc<AdmissionConfiguration>,
    images: Option<&Arc<Images>>,
    (blobs, registry): (&Arc<BlobStore>, &RegistryAccess),
) -> Chains {
    let describer = match images {
        Some(images) => Describer::of_nodes(images.clone(), engine::imports),
        None => {
            let registries = config.registries.clone().beside_proxies(proxies());
            Describer::of_registries(registries, registry.clone(), blobs.clone(), engine::imports, env.clone())
        }
    };
    Chains { images: Some(Arc::new(OfRegistries(describer))), admission: admission.clone(), ..Chains::default() }
}
