//! Metrics of the store, under upstream's names where upstream has them. Computed at collection, so that requests pay
//! nothing for them.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use apiserver_catalog::SharedCatalog;
use apiserver_storage::cache::WatchCache;
use apiserver_storage::store::StoreMeasurements;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupResource {
    group: Arc<str>,
    resource: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceName {
    resource: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StorageCluster {
    storage_cluster_id: &'static str,
}

/// The name of the embedded store in upstream's label; etcd's clusters are `etcd-0` and so on.
const EMBEDDED: StorageCluster = StorageCluster { storage_cluster_id: "embedded" };

/// Collects the store's metrics.
pub(crate) struct StoreCollector {
    pub(crate) served: Arc<SharedCatalog>,
    /// Weak, so that the registry of metrics doesn't keep a store open.
    pub(crate) cache: Weak<WatchCache>,
}

impl std::fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreCollector").finish_non_exhaustive()
    }
}

impl StoreCollector {
    /// The number of objects of each stored resource. Groups that share objects (events) count once.
    fn objects(&self, cache: &WatchCache) -> Vec<(GroupResource, u64)> {
        let mut prefixes = BTreeSet::new();
        let catalog = self.served.load();
        let stored = catalog.all_stored().filter_map(|row| Some((row, row.prefix.as_ref()?.as_str().to_owned())));
        let unique = stored.filter(|(_, prefix)| prefixes.insert(prefix.clone()));
        let count = |(row, prefix): (&Arc<apiserver_resources::ResourceInfo>, String)| {
            let labels = GroupResource { group: row.group.clone(), resource: row.plural.clone() };
            (labels, cache.count(&prefix))
        };
        unique.map(count).collect()
    }
}

type Written = Result<(), std::fmt::Error>;

fn gauge<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    values: impl IntoIterator<Item = (L, u64)>,
) -> Written {
    let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
    }
    Ok(())
}

fn files(encoder: &mut DescriptorEncoder<'_>, store: &StoreMeasurements) -> Written {
    let size = ("apiserver_storage_size_bytes", "Bytes that the store's files occupy on the disk");
    gauge(encoder, size, [(EMBEDDED, store.size_bytes)])?;
    let (name, help) = ("coracle_store_log_bytes", "Bytes of the store's log");
    let log = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::try_from(store.log_bytes).unwrap_or(i64::MAX)).encode(log)?;
    let (name, help) = ("coracle_store_commit_duration_seconds", "Time to append and sync a group of transactions");
    let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    let commits = &store.commits;
    encoder.encode_histogram::<NoLabelSet>(commits.seconds, commits.count(), &commits.buckets, None)
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Written {
        let Some(cache) = self.cache.upgrade() else { return Ok(()) };
        let objects = self.objects(&cache);
        let named = |(of, count): &(GroupResource, u64)| {
            let resource = match &*of.group {
                "" => of.resource.to_string(),
                group => format!("{}.{group}", of.resource),
            };
            (ResourceName { resource }, *count)
        };
        let names = objects.iter().map(named);
        gauge(&mut encoder, ("apiserver_storage_objects", "Number of stored objects by resource"), names)?;
        gauge(&mut encoder, ("apiserver_resource_objects", "Number of stored objects by resource"), objects)?;
        if let Some(count) = cache.store().replaced_histories() {
            let (name, help) =
                ("coracle_etcd_replaced_histories", "How often etcd was found to have gone back in time");
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(encoder)?;
        }
        match cache.store().measurements() {
            Some(store) => files(&mut encoder, &store),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use apiserver_storage::store::Store as _;
    use apiserver_storage::store::embedded::{EmbeddedStore, Options};
    use apiserver_storage::store::{Op, Record, Txn};
    use machinery_env::Env;

    use crate::server::{Apiserver, Config};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_page_has_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::real();
        let store = EmbeddedStore::open(&folder.path().join("store"), env.clone(), Options::default()).unwrap();
        store.start().unwrap();
        let record =
            Record::read(br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"n"}}"#, |_| None);
        let op = Op::Put { key: "/registry/pods/n/a".into(), record, ttl: None };
        store.txn(Txn { ops: vec![op], ..Txn::default() }).await.unwrap();
        let server = Apiserver::open(&env, store.clone(), Config::of_tests()).await.unwrap();
        let page = server.handler().deps.metrics.page();
        for line in [
            "apiserver_storage_objects{resource=\"pods\"} 1",
            "apiserver_storage_objects{resource=\"deployments.apps\"} 0",
            "apiserver_resource_objects{group=\"\",resource=\"pods\"} 1",
            "# TYPE coracle_store_commit_duration_seconds histogram",
        ] {
            assert!(page.lines().any(|one| one == line), "{line}: {page}");
        }
        let value = |name: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
        };
        assert!(value("coracle_store_log_bytes") > 0.0);
        assert!(value("apiserver_storage_size_bytes{storage_cluster_id=\"embedded\"}") > 0.0);
        let commits = value("coracle_store_commit_duration_seconds_count");
        assert!(commits >= 1.0);
        assert_eq!(value("coracle_store_commit_duration_seconds_bucket{le=\"+Inf\"}"), commits);
        let resources = page.lines().filter(|line| line.contains("_resource_objects{") && line.contains("\"events\""));
        assert_eq!(resources.count(), 1, "events of both groups are the same objects");
        store.close();
    }
}
