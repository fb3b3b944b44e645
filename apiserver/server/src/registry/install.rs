//! The API server's own writes of default objects: no user, no admission, no validation.

use futures::StreamExt as _;
use machinery_api::ApiError;
use serde_json::{Value, json};

use super::change::{Existing, ObjectChange};
use super::intent::Intent;
use super::object::{self, metadata_mut};
use super::{ObjectConversions, Registry, RequestScope, body};
use crate::bootstrap::Write;
use apiserver_admission::Options;
use apiserver_auth::{MASTERS, UserInfo};
use apiserver_resources::options::WriteOptions;
use apiserver_schema as schema;

/// The maximum number of concurrent writes, so that they share the store's syncs.
const AT_ONCE: usize = 64;

impl Registry {
    /// Performs all writes. Objects that other writers changed meanwhile are left alone: plan again to find what is
    /// still missing.
    pub async fn install(&self, writes: Vec<Write>) -> Result<(), ApiError> {
        let mut done = futures::stream::iter(writes).map(|write| self.install_one(write)).buffer_unordered(AT_ONCE);
        while let Some(result) = done.next().await {
            result?;
        }
        Ok(())
    }

    async fn install_one(&self, write: Write) -> Result<(), ApiError> {
        let (removes, installs) = match &write {
            Write::Create { .. } | Write::Update { .. } => (false, true),
            Write::Remove { .. } => (true, false),
            Write::Recreate { .. } => (true, true),
        };
        let (Write::Create { group, plural, object }
        | Write::Update { group, plural, object }
        | Write::Remove { group, plural, object }
        | Write::Recreate { group, plural, object }) = write;
        let catalog = self.served.load();
        let row = catalog.stored(group, plural);
        let Some(row) = row else {
            return Err(ApiError::Internal(format!("{plural} are not served, but are among the default objects")));
        };
        let user = UserInfo::component("system:apiserver", Some(MASTERS));
        let mut call = RequestScope {
            catalog: &catalog,
            row,
            subresource: None,
            namespace: object::text(&object, "namespace"),
            name: object::text(&object, "name"),
            user: &user,
            now: self.env.now(),
            warnings: Vec::new(),
            conversions: ObjectConversions::default(),
        };
        let options = WriteOptions::default();
        if removes {
            self.write(&mut call, &mut Intent::RemoveDefault, Options::Write(&options)).await?;
        }
        if installs {
            self.write(&mut call, &mut Intent::InstallDefault(&object), Options::Write(&options)).await?;
        }
        Ok(())
    }

    /// The change for a default object: a create if none exists, an update if the version is still the planned one.
    pub(super) fn default_object(
        &self,
        call: &RequestScope<'_>,
        mut new: Value,
        existing: Option<&Existing>,
    ) -> ObjectChange {
        let row = call.row;
        let planned_on = object::client_version(&new).unwrap_or(0);
        if planned_on != existing.map_or(0, Existing::modified) {
            return ObjectChange::Keep;
        }
        metadata_mut(&mut new).remove("resourceVersion");
        let says_status = new.get("status").is_some();
        schema::default(row.schema.hold().get(), &mut new);
        row.strategy.default(&mut new);
        if let Some(existing) = existing {
            let old = &*existing.value;
            if row.strategy.counts_generation() && row.strategy.generation_changes(&new, old) {
                object::set_generation(&mut new, object::generation(old) + 1);
            }
            body::normalise(row, &mut new);
            return ObjectChange::Update(new);
        }
        let metadata = metadata_mut(&mut new);
        metadata.insert("creationTimestamp".into(), json!(object::time(call.now)));
        metadata.insert("uid".into(), json!(self.env.uid()));
        // Fields that the default object leaves out get the kind's usual values.
        let mut status = new.get("status").filter(|_| says_status).cloned();
        if let Some(conditions) = status.as_mut().and_then(|status| status.get_mut("conditions")?.as_array_mut()) {
            for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                condition.entry("lastTransitionTime").or_insert_with(|| json!(object::time(call.now)));
            }
        }
        row.strategy.prepare_create(&self.context(call, ""), &mut new);
        if let (Some(status), Some(map)) = (status, new.as_object_mut()) {
            map.insert("status".into(), status);
        }
        if row.strategy.starts_generation() {
            object::set_generation(&mut new, 1);
        }
        body::normalise(row, &mut new);
        ObjectChange::Create { object: new, version: None, generated: false }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use machinery_env::Env;

    use crate::bootstrap::{self, Cluster};
    use crate::server::{Apiserver, Config};
    use apiserver_resources::objects::ObjectReader as _;
    use apiserver_storage::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_second_start_has_nothing_to_write() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let server = Apiserver::open(&env, Arc::new(MemoryStore::new(env.clone())), Config::of_tests()).await.unwrap();
        let cluster = Cluster {
            service_ip: "10.96.0.1".parse().unwrap(),
            services: "10.96.0.0/12".parse().unwrap(),
            address: "127.0.0.1:6443".parse().unwrap(),
            ca_pem: "ca".into(),
            alternative_names: Vec::new(),
        };
        server.bootstrap(&cluster).await.unwrap();
        let objects = server.objects();
        let desired =
            |cluster: &Cluster| bootstrap::desired(cluster, &[cluster.address].into(), crate::test_catalog::built_in());
        assert_eq!(bootstrap::plan(&*objects, &desired(&cluster)), []);
        let class = objects.get("scheduling.k8s.io", "priorityclasses", "", "system-node-critical").unwrap();
        assert_eq!(class["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");

        let local = objects.get("apiregistration.k8s.io", "apiservices", "", "v1.apps").unwrap();
        assert_eq!(local["status"]["conditions"][0]["reason"], "Local");

        let moved = Cluster { address: "127.0.0.1:7000".parse().unwrap(), ..cluster };
        server.bootstrap(&moved).await.unwrap();
        assert_eq!(bootstrap::plan(&*objects, &desired(&moved)), []);
        let slice = objects.get("discovery.k8s.io", "endpointslices", "default", "kubernetes").unwrap();
        assert_eq!(slice["ports"][0]["port"], 7000);
    }
}
