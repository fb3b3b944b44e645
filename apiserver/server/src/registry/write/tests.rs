//! Tests of the types of the write path: an intent becomes a change and an outcome, warnings belong to one attempt, and
//! a draft owns its managed fields.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use apiserver_schema::{FieldValidation, Media};
use machinery_env::Env;
use serde_json::json;

use super::*;
use crate::fair_queue::FairQueue;
use crate::registry::body::{self, Body};
use crate::registry::{ObjectConversions, PatchType, RequestObject, fields, scale};
use crate::server::{Apiserver, ChainExtensions, Config};
use apiserver_admission::{MaybeReady, Plugin};
use apiserver_auth::UserInfo;
use apiserver_catalog::Catalog;
use apiserver_resources::options::WriteOptions;
use apiserver_storage::store::memory::MemoryStore;
use apiserver_storage::store::{Store as _, Txn};

/// More checks than the evaluation budget has.
const CHECKS: usize = 1000;
/// The warnings of an attempt.
const WARNINGS: [&str; 2] = ["mutated", "validated"];

/// A plugin that warns once in each phase. It can exceed the evaluation budget, or write before the attempt commits.
struct WarningPlugin {
    store: Arc<MemoryStore>,
    attempts: AtomicUsize,
    /// The number of attempts that exceed their budget.
    excessive: AtomicUsize,
    /// The number of attempts that another writer interrupts.
    interrupted: AtomicUsize,
}

fn take_one(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

impl Plugin for WarningPlugin {
    fn name(&self) -> &'static str {
        "Warning"
    }

    fn mutate<'a>(
        &'a self,
        context: &'a apiserver_admission::Context<'_>,
        _: &'a mut Value,
        effects: &'a mut Effects,
    ) -> MaybeReady<'a> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        effects.warnings.push(WARNINGS[0].into());
        if take_one(&self.excessive) {
            let _ = (0..CHECKS).take_while(|_| !budget::is_exhausted()).count();
        }
        if !take_one(&self.interrupted) {
            return MaybeReady::Ready(Ok(()));
        }
        let old = context.old.cloned().unwrap_or_default();
        MaybeReady::Pending(Box::pin(async move {
            let mut other = old;
            object::metadata_mut(&mut other).insert("labels".into(), json!({"other": "writer"}));
            let key = format!("/registry/namespaces/{}", context.request.name);
            let record = Record::read(other.to_string().as_bytes(), |_| None);
            let ops = vec![Op::Put { key, record, ttl: None }];
            self.store.txn(Txn { compares: Vec::new(), ops }).await.expect("a store in memory");
            Ok(())
        }))
    }

    fn validate<'a>(
        &'a self,
        _: &'a apiserver_admission::Context<'_>,
        _: &'a Value,
        effects: &'a mut Effects,
    ) -> MaybeReady<'a> {
        effects.warnings.push(WARNINGS[1].into());
        MaybeReady::Ready(Ok(()))
    }
}

struct Server {
    server: Apiserver,
    plugin: Arc<WarningPlugin>,
    catalog: Arc<Catalog>,
    user: UserInfo,
}

impl Server {
    async fn open() -> Self {
        let (env, _) = Env::seeded(7, "2026-01-01T00:00:00Z".parse().unwrap());
        let store = Arc::new(MemoryStore::new(env.clone()));
        let count = AtomicUsize::default;
        let plugin =
            WarningPlugin { store: store.clone(), attempts: count(), excessive: count(), interrupted: count() };
        let plugin = Arc::new(plugin);
        let extensions = ChainExtensions { plugins: vec![plugin.clone()], ..ChainExtensions::default() };
        let server = Apiserver::open_with(&env, store, Config::of_tests(), extensions).await.unwrap();
        let catalog = server.handler().deps.registry.served.load();
        let server =
            Self { server, plugin, catalog, user: UserInfo::component("admin", Some(apiserver_auth::MASTERS)) };
        assert_eq!(server.create("", "namespaces", json!({"metadata": {"name": "default"}})).await, WARNINGS);
        server
    }

    fn registry(&self) -> &Registry {
        &self.server.handler().deps.registry
    }

    fn scope<'a>(&'a self, (group, plural): (&str, &str), name: &'a str) -> RequestScope<'a> {
        let row = self.catalog.stored(group, plural).unwrap();
        RequestScope {
            catalog: &self.catalog,
            row,
            subresource: None,
            namespace: if row.namespaced { "default" } else { "" },
            name,
            user: &self.user,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            warnings: Vec::new(),
            conversions: ObjectConversions::default(),
        }
    }

    /// Creates an object as `jo`; returns the warnings.
    async fn create(&self, group: &str, plural: &str, mut object: Value) -> Vec<String> {
        let mut call = self.scope((group, plural), "");
        object["apiVersion"] = json!(&*call.row.api_version);
        object["kind"] = json!(&*call.row.kind);
        let (row, bytes) = (call.row, object.to_string());
        let body = Body { bytes: bytes.as_bytes(), media: Media::Json };
        let decode = || body::object(row, body, FieldValidation::Strict, &mut Vec::new());
        let options = WriteOptions { field_manager: "jo".into(), ..WriteOptions::default() };
        self.registry().create(&mut call, RequestObject::new(decode().unwrap(), &decode), &options).await.unwrap();
        call.warnings
    }

    fn attempts(&self) -> usize {
        self.plugin.attempts.swap(0, Ordering::Relaxed)
    }
}

fn patch(data: &'static str) -> Intent<'static> {
    Intent::Patch { kind: PatchType::Merge, patch: data.as_bytes(), validation: FieldValidation::Strict }
}

#[tokio::test]
async fn warnings_are_those_of_the_attempt_that_succeeded() {
    let server = Server::open().await;
    assert_eq!(server.attempts(), 1);
    server.plugin.interrupted.store(2, Ordering::Relaxed);
    let mut call = server.scope(("", "namespaces"), "default");
    call.warn("before");
    let data = br#"{"metadata": {"annotations": {"a": "b"}}}"#;
    let options = WriteOptions::default();
    server.registry().patch(&mut call, PatchType::Merge, data, &options).await.unwrap();
    assert_eq!(server.attempts(), 3, "two conflicts");
    assert_eq!(call.warnings, ["before", WARNINGS[0], WARNINGS[1]]);
    let stored = server.registry().load(&call).await.unwrap().unwrap();
    assert_eq!(stored.value["metadata"]["labels"]["other"], "writer");
    assert_eq!(stored.value["metadata"]["annotations"]["a"], "b");
}

#[tokio::test]
async fn an_attempt_that_exceeds_its_budget_leaves_no_warnings() {
    let server = Server::open().await;
    let (queue, minute) = (Arc::new(FairQueue::new(Env::real())), Duration::from_secs(60));
    server.attempts();
    server.plugin.excessive.store(1, Ordering::Relaxed);
    let created = server.create("", "namespaces", json!({"metadata": {"name": "a"}}));
    assert_eq!(budget::scope(&queue, "jo", minute, created).await, WARNINGS);
    assert_eq!(server.attempts(), 2);
    server.plugin.excessive.store(1, Ordering::Relaxed);
    let mut call = server.scope(("", "namespaces"), "a");
    let (mut object, options) = (json!({"metadata": {"name": "a"}}), WriteOptions::default());
    let admitted = server.registry().admit_virtual(&mut call, &mut object, &options);
    budget::scope(&queue, "jo", minute, admitted).await.unwrap();
    assert_eq!((server.attempts(), call.warnings), (2, WARNINGS.map(str::to_owned).to_vec()));
}

/// With a paused clock, a wait for a lock that is never released times out at once.
#[tokio::test(start_paused = true)]
async fn a_discarded_attempt_releases_its_quota_locks() {
    let server = Server::open().await;
    let hard = json!({"count/configmaps": "5"});
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "default"},
        "spec": {"hard": hard}, "status": {"hard": hard, "used": {"count/configmaps": "0"}},
    });
    let (mut call, options) = (server.scope(("", "resourcequotas"), "q"), WriteOptions::default());
    let install = &mut Intent::InstallDefault(&quota);
    server.registry().write(&mut call, install, Options::Write(&options)).await.unwrap();
    server.attempts();
    server.plugin.excessive.store(1, Ordering::Relaxed);
    let created = server.create("", "configmaps", json!({"metadata": {"name": "c"}}));
    let created = budget::scope(&Arc::new(FairQueue::new(Env::real())), "jo", Duration::from_secs(60), created).await;
    assert_eq!((server.attempts(), created), (2, WARNINGS.map(str::to_owned).to_vec()));
    let charged = server.registry().load(&call).await.unwrap().unwrap();
    assert_eq!(charged.value["status"]["used"]["count/configmaps"], "1");
}

#[tokio::test]
async fn a_rejected_attempt_returns_its_warnings() {
    let server = Server::open().await;
    let mut call = server.scope(("", "namespaces"), "default");
    let data = br#"{"metadata": {"labels": {"bad key": "x"}}}"#;
    let failed = server.registry().patch(&mut call, PatchType::Merge, data, &WriteOptions::default()).await;
    assert!(matches!(failed, Err(ApiError::Invalid(..))), "{failed:?}");
    assert_eq!(call.warnings, [WARNINGS[0]]);
}

#[tokio::test]
async fn an_intent_becomes_a_change_and_an_outcome() {
    let server = Server::open().await;
    let registry = server.registry();
    let call = server.scope(("", "namespaces"), "default");
    let existing = registry.load(&call).await.unwrap();
    let options = WriteOptions::default();
    let write = Options::Write(&options);
    let mut labels = patch(r#"{"metadata": {"labels": {"a": "b"}}}"#);
    let decided = async |intent: &mut Intent<'_>, options| {
        registry.attempt(&call, intent, options, existing.as_ref()).await.decision.unwrap()
    };
    let Continue(first) = decided(&mut labels, write).await else { panic!("a change needs a transaction") };
    let Continue(second) = decided(&mut labels, write).await else { panic!("nothing was written") };
    assert_eq!(
        (first.was, first.key.as_str()),
        (existing.as_ref().unwrap().modified(), "/registry/namespaces/default")
    );
    assert!(matches!(first.object, ObjectChange::Update(_)) && first.record.is_some());
    let outcome = registry.commit_change(&call, &mut labels, existing.as_ref(), first).await.unwrap();
    assert!(matches!(outcome, Outcome::Response(VerbResult::Object(200, _))), "{outcome:?}");
    let outcome = registry.commit_change(&call, &mut labels, existing.as_ref(), second).await.unwrap();
    let Outcome::Conflict(Some(Some(entry))) = outcome else { panic!("{outcome:?}") };
    assert!(entry.modified > existing.as_ref().unwrap().modified(), "the record of the first commit");
    // No change and a dry run need no transaction.
    let unchanged = decided(&mut patch("{}"), write).await;
    assert!(matches!(unchanged, Break(Outcome::Response(VerbResult::Object(200, ResponseObject::Cached(_))))));
    let dry_run = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let shown = decided(&mut labels, Options::Write(&dry_run)).await;
    assert!(matches!(shown, Break(Outcome::Response(VerbResult::Object(200, ResponseObject::Value(_))))));
    let again = || Err(ApiError::NoSuchResource);
    let named = json!({"metadata": {"name": "default"}});
    let mut create = Intent::Create(RequestObject::new(named, &again));
    let collection = server.scope(("", "namespaces"), "");
    let taken = registry.attempt(&collection, &mut create, Options::Write(&dry_run), None);
    let Ok(Break(Outcome::NameConflict { name, generated, .. })) = taken.await.decision else { panic!("it exists") };
    assert_eq!((name.as_str(), generated), ("default", false));
}

#[tokio::test]
async fn a_draft_maps_the_managed_fields_of_a_scale() {
    let server = Server::open().await;
    let labels = json!({"app": "web"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": labels}, "template": template});
    server.create("apps", "deployments", json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let mut call = server.scope(("apps", "deployments"), "web");
    call.subresource = call.row.subresources.iter().find(|sub| sub.name == "scale").copied();
    assert!(call.is_scale());
    let existing = server.registry().load(&call).await.unwrap().unwrap();
    let managers = fields::managers_of_scale(&call, &existing);
    let draft = Draft::scale(scale::of(call.row, &existing.value), &existing, &call, managers.clone());
    let [entry] = draft.effects.managed.old.entries() else { panic!("{managers:?}") };
    assert_eq!((&*entry.who.manager, &*entry.who.api_version), ("jo", "autoscaling/v1"));
    assert_eq!(draft.effects.managed.new, managers);
    assert_eq!(draft.managers(&call, Some(&existing)), existing.managers(), "unchanged after the way back");
    // A manager that gave the replicas up leaves the rest of its fields.
    let given_up = Draft::scale(json!({}), &existing, &call, Managers::default()).managers(&call, Some(&existing));
    assert!(!given_up.is_empty() && given_up != existing.managers());
    let binding = Draft::binding(json!({}), &call);
    assert!(binding.effects.managed.new.is_empty());
    assert_eq!(binding.managers(&call, Some(&existing)), existing.managers());
    let deletion = Draft::deletion(&existing, &call);
    assert_eq!(deletion.effects.managed.old, existing.managers());
    assert_eq!(deletion.managers(&call, Some(&existing)), existing.managers());
}
