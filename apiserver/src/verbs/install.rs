//! The API server's own writes of the objects that every cluster has: no user, no admission, no object validation.

use futures::StreamExt as _;
use jiff::Timestamp;
use machinery::api::ApiError;
use serde_json::{Value, json};

use super::object::{self, metadata_mut};
use super::{Verbs, body, key};
use crate::bootstrap::Write;
use crate::resources::{Context, Row, TABLE};
use crate::schema;

/// Writes under way at once, so that they share the store's syncs.
const AT_ONCE: usize = 64;

impl Verbs {
    /// Does all writes. What somebody else changed meanwhile is left alone: plan again to see what is still missing.
    pub async fn install(&self, writes: Vec<Write>) -> Result<(), ApiError> {
        let mut done = futures::stream::iter(writes).map(|write| self.install_one(write)).buffer_unordered(AT_ONCE);
        while let Some(result) = done.next().await {
            result?;
        }
        Ok(())
    }

    async fn install_one(&self, write: Write) -> Result<(), ApiError> {
        let (group, plural, mut new, replaces) = match write {
            Write::Create { group, plural, object } => (group, plural, object, false),
            Write::Update { group, plural, object } => (group, plural, object, false),
            Write::Recreate { group, plural, object } => (group, plural, object, true),
        };
        let row = TABLE.iter().copied().find(|r| r.group == group && r.plural == plural && r.storage_version);
        let Some(row) = row else {
            return Err(ApiError::Internal(format!("{plural} are not served, but are among the default objects")));
        };
        let version = object::client_version(&new)?;
        let key = key(row, object::text(&new, "namespace"), object::text(&new, "name"));
        metadata_mut(&mut new).remove("resourceVersion");
        schema::default(row.schema, &mut new);
        row.strategy.default(&mut new);
        let existing = self.cache.get(&key);
        if replaces && let Some(existing) = &existing {
            self.remove(&key, existing.modified).await?;
        }
        if version == 0 {
            self.fresh(row, &mut new);
        } else {
            let Some(old) = existing.filter(|old| old.modified == version) else { return Ok(()) };
            let old = old.shared();
            if row.strategy.counts_generation() && row.strategy.generation_changes(&new, &old) {
                object::set_generation(&mut new, object::generation(&old) + 1);
            }
        }
        body::normalise(row, &mut new);
        self.put(row, &key, version, Self::encode(row, &new)?).await?;
        Ok(())
    }

    fn fresh(&self, row: &'static Row, new: &mut Value) {
        let now: Timestamp = self.env.now();
        let metadata = metadata_mut(new);
        metadata.insert("creationTimestamp".into(), json!(object::time(now)));
        metadata.insert("uid".into(), json!(self.env.uid()));
        let context = Context { env: &self.env, now, subresource: "", loopback: self.allocator.loopback() };
        let status = new.get("status").cloned();
        row.strategy.prepare_create(&context, new);
        if let (Some(status), Some(map)) = (status, new.as_object_mut()) {
            map.insert("status".into(), status);
        }
        if row.strategy.counts_generation() {
            object::set_generation(new, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use machinery::env::Env;

    use crate::auth::jwt::SigningKey;
    use crate::bootstrap::{self, Cluster};
    use crate::http::logs::Kubelets;
    use crate::objects::Objects as _;
    use crate::resources::allocate::ServiceNetwork;
    use crate::server::{Apiserver, Config};
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_second_start_has_nothing_to_write() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let key = SigningKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let config = Config {
            address: "127.0.0.1:6443".into(),
            signing_key: Arc::new(key),
            services: ServiceNetwork {
                cidr: "10.96.0.0/12".parse().unwrap(),
                node_ports: 30000..=32767,
                loopback: Vec::new(),
            },
            toleration_seconds: 300,
            kubelets: Kubelets::default(),
            registry: Arc::new(Mutex::default()),
        };
        let server = Apiserver::open(&env, Arc::new(MemoryStore::new(env.clone())), config).await.unwrap();
        let cluster = Cluster {
            service_ip: "10.96.0.1".parse().unwrap(),
            advertise: "127.0.0.1".parse().unwrap(),
            port: 6443,
            ca_pem: "ca".into(),
        };
        server.bootstrap(&cluster).await.unwrap();
        let objects = server.objects();
        assert_eq!(bootstrap::plan(&*objects, &bootstrap::desired(&cluster)), []);
        let class = objects.get("scheduling.k8s.io", "priorityclasses", "", "system-node-critical").unwrap();
        assert_eq!(class["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");

        let moved = Cluster { port: 7000, ..cluster };
        server.bootstrap(&moved).await.unwrap();
        assert_eq!(bootstrap::plan(&*objects, &bootstrap::desired(&moved)), []);
        let slice = objects.get("discovery.k8s.io", "endpointslices", "default", "kubernetes").unwrap();
        assert_eq!(slice["ports"][0]["port"], 7000);
    }
}
