//! Tests of the plugin with an in-memory registry.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::FutureExt as _;
use machinery_api::GroupVersionKind;
use machinery_env::Env;
use serde_json::json;

use super::super::{Chain, Options, Request};
use super::*;
use apiserver_auth::UserInfo;
use apiserver_resources::objects::memory::MemoryObjects;
use apiserver_resources::options::WriteOptions;
use apiserver_schema::FieldValidation;
use jiff::Timestamp;

/// Returns the configured imports of an image, and records the requests.
#[derive(Default)]
struct Registry {
    images: BTreeMap<&'static str, Vec<&'static str>>,
    lookups: Mutex<Vec<(String, usize)>>,
}

impl ImageMetadata for Registry {
    fn imports<'a>(&'a self, image: &'a str, secrets: &'a [Arc<Value>]) -> BoxFuture<'a, Result<ImageImports, String>> {
        async move {
            self.lookups.lock().unwrap().push((image.to_owned(), secrets.len()));
            if image == "slow" {
                std::future::pending::<()>().await;
            }
            let found = self.images.get(image).ok_or("not found")?;
            Ok(found.iter().map(|import| (*import).to_owned()).collect())
        }
        .boxed()
    }
}

struct World {
    map: MemoryObjects,
    chain: Chain,
    registry: Arc<Registry>,
}

fn world(annotations: Value) -> World {
    let registry = Arc::new(Registry {
        images: [
            ("pure", vec!["wasi:io/poll@0.2.0"]),
            ("net", vec!["wasi:io/poll@0.2.0", "wasi:sockets/tcp@0.2.0"]),
            ("odd", vec!["a,b"]),
        ]
        .into(),
        lookups: Mutex::default(),
    });
    let map = MemoryObjects::default();
    let namespace = json!({"metadata": {"name": "n", "annotations": annotations}});
    map.put("", "namespaces", namespace);
    map.put(
        "",
        "serviceaccounts",
        json!({"metadata": {"namespace": "n", "name": "default"}, "imagePullSecrets": [{"name": "s"}]}),
    );
    map.put("", "secrets", json!({"metadata": {"namespace": "n", "name": "s"}}));
    let env = Env::seeded(1, Timestamp::UNIX_EPOCH).0;
    let images: Arc<dyn ImageMetadata> = registry.clone();
    let chain = Chain::new(&env, Arc::default()).with_images(Some(images));
    World { map, chain, registry }
}

impl World {
    /// Runs only this plugin on a write. Returns the object or the rejection, and the effects.
    async fn write(
        &self,
        (resource, kind, subresource): (&str, &str, &str),
        mut object: Value,
        old: Option<&Value>,
    ) -> (Result<Value, String>, Effects) {
        let user = UserInfo::component("admin", Some("system:masters"));
        let group = if resource == "deployments" { "apps" } else { "" };
        let request = Request {
            user: &user,
            group,
            version: "v1",
            resource,
            subresource,
            kind: GroupVersionKind { group, version: "v1", kind },
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            namespace: "n",
            name: "p",
            path_name: "p",
            options: Options::Write(&OPTIONS),
        };
        let (context, mut effects) = (self.chain.context(&request, &self.map, old), Effects::default());
        let plugin = &self.chain.imports;
        if let Err(error) = plugin.mutate(&context, &mut object, &mut effects).get().await {
            return (Err(error.status().message), effects);
        }
        let validated = plugin.validate(&context, &object, &mut effects).get().await;
        (validated.map(|()| object).map_err(|error| error.status().message), effects)
    }

    async fn pod(&self, image: &str) -> (Result<Value, String>, Effects) {
        self.write(("pods", "Pod", ""), pod(image), None).await
    }
}

fn pod(image: &str) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main", "image": image}]}})
}

static OPTIONS: WriteOptions = WriteOptions {
    dry_run: false,
    field_validation: FieldValidation::Warn,
    field_manager: String::new(),
    shows_warnings: false,
    force: false,
    agent: String::new(),
};

const ENFORCE: &str = "imports.coracle.dev/enforce";
const NOTE: &str = "imports.coracle.dev/main";

#[tokio::test(start_paused = true)]
async fn a_pod_is_checked_by_the_imports_of_its_image() {
    let world = world(json!({ENFORCE: "*,-wasi:sockets"}));
    let (admitted, _) = world.pod("pure").await;
    assert_eq!(admitted.unwrap()["metadata"]["annotations"], json!({NOTE: "wasi:io/poll@0.2.0"}));
    for (image, why) in [
        ("net", "container \"main\" (image \"net\") imports wasi:sockets/tcp@0.2.0"),
        ("gone", "imports is not known: not found (push it with"),
        ("odd", "imports is not known: it imports what no node offers"),
        ("slow", "its registry doesn't answer in time"),
        ("", "it names no image"),
    ] {
        let refused = world.pod(image).await.0.unwrap_err();
        let head =
            "pods \"p\" is forbidden: violates the namespace's imports.coracle.dev/enforce \"*,-wasi:sockets\": ";
        assert!(refused.starts_with(head) && refused.contains(why), "{image}: {refused}");
    }
    let lookups = world.registry.lookups.lock().unwrap();
    assert!(lookups.iter().all(|(_, secrets)| *secrets == 1), "{lookups:?}");
    assert_eq!(lookups.iter().filter(|(image, _)| image == "pure").count(), 1, "one question for both phases");
}

#[tokio::test]
async fn a_namespace_without_rules_costs_nothing() {
    let world = world(json!({"other": "x"}));
    assert_eq!(world.pod("net").await.0.unwrap(), pod("net"));
    assert!(world.registry.lookups.lock().unwrap().is_empty());
}

#[tokio::test]
async fn annotations_of_the_creation_are_immutable() {
    let world = world(json!({ENFORCE: "*,-wasi:sockets"}));
    let old = world.pod("pure").await.0.unwrap();
    let write =
        async |subresource: &str, new: Value| world.write(("pods", "Pod", subresource), new, Some(&old)).await.0;
    // A changed note is restored, and so is a removed one, for every subresource.
    for subresource in ["", "status", "resize"] {
        let mut other = old.clone();
        other["metadata"]["annotations"] = json!({NOTE: "*", "imports.coracle.dev/x": "*", "a": "b"});
        let kept = write(subresource, other).await.unwrap();
        assert_eq!(kept["metadata"]["annotations"], json!({NOTE: "wasi:io/poll@0.2.0", "a": "b"}), "{subresource}");
        assert_eq!(write(subresource, pod("pure")).await.unwrap(), old, "{subresource}");
    }
    // A container with another image is checked, and so is an ephemeral container.
    assert!(write("", pod("net")).await.unwrap_err().contains("wasi:sockets/tcp@0.2.0"));
    let mut debugged = old.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "net"}]);
    let refused = write("ephemeralcontainers", debugged.clone()).await.unwrap_err();
    assert!(refused.contains("container \"d\" (image \"net\") imports wasi:sockets/tcp@0.2.0"), "{refused}");
    debugged["spec"]["ephemeralContainers"][0]["image"] = json!("pure");
    let kept = write("ephemeralcontainers", debugged).await.unwrap();
    assert_eq!(kept["metadata"]["annotations"]["imports.coracle.dev/d"], "wasi:io/poll@0.2.0");
    // A Binding adds its annotations to the pod.
    let binding =
        |annotations: Value| json!({"metadata": {"name": "p", "annotations": annotations}, "target": {"name": "n"}});
    let bind = async |object: Value| world.write(("pods", "Binding", "binding"), object, None).await.0;
    assert!(bind(binding(json!({NOTE: "*"}))).await.unwrap_err().contains("are written when it is admitted"));
    assert!(bind(binding(json!({"a": "b"}))).await.is_ok());
}

#[tokio::test]
async fn annotations_of_a_pod_grant_no_imports() {
    let world = world(json!({ENFORCE: "*,-wasi:sockets"}));
    let mut liar = pod("net");
    liar["metadata"]["annotations"] = json!({NOTE: ""});
    assert!(world.write(("pods", "Pod", ""), liar, None).await.0.is_err());
    let mut honest = pod("pure");
    honest["metadata"]["annotations"] = json!({NOTE: "*"});
    let kept = world.write(("pods", "Pod", ""), honest, None).await.0.unwrap();
    assert_eq!(kept["metadata"]["annotations"][NOTE], "wasi:io/poll@0.2.0");
}

#[tokio::test]
async fn templates_are_warned_of_and_pods_where_nothing_is_enforced() {
    let deployment = |image: &str| json!({"metadata": {"name": "d"}, "spec": {"template": pod(image)}});
    for (mode, warned) in [("enforce", 1), ("warn", 1), ("audit", 0)] {
        let world = world(json!({format!("imports.coracle.dev/{mode}"): "*,-wasi:sockets"}));
        let object = ("deployments", "Deployment", "");
        let (admitted, effects) = world.write(object, deployment("net"), None).await;
        assert!(admitted.is_ok() && effects.warnings.len() == warned, "{mode}: {:?}", effects.warnings);
        let old = deployment("net");
        let (_, effects) = world.write(object, deployment("net"), Some(&old)).await;
        assert!(effects.warnings.is_empty(), "nothing changed");
        let (_, effects) = world.pod("net").await;
        let audited = usize::from(mode == "audit");
        assert_eq!((effects.warnings.len(), effects.audit.len()), (usize::from(mode == "warn"), audited), "{mode}");
    }
}

#[tokio::test]
async fn a_namespaces_lists_are_read_when_they_are_written() {
    let world = world(json!({}));
    let namespace = |list: &str| json!({"metadata": {"name": "n", "annotations": {ENFORCE: list}}});
    let object = ("namespaces", "Namespace", "");
    let refused = world.write(object, namespace("-wasi:sockets"), None).await.0.unwrap_err();
    assert!(
        refused.contains("metadata.annotations[imports.coracle.dev/enforce]: Invalid value")
            && refused.contains("\"*\""),
        "{refused}"
    );
    // An old error does not block an update that leaves it unchanged.
    let old = namespace("-wasi:sockets");
    assert!(world.write(object, namespace("-wasi:sockets"), Some(&old)).await.0.is_ok());
    for name in ["a", "b"] {
        let mut old = pod("net");
        old["metadata"] = json!({"namespace": "n", "name": name});
        world.map.put("", "pods", old);
    }
    let mut held = pod("pure");
    held["metadata"] = json!({"namespace": "n", "name": "c", "annotations": {NOTE: "wasi:io/poll@0.2.0"}});
    world.map.put("", "pods", held);
    let old = json!({"metadata": {"name": "n"}});
    let (admitted, effects) = world.write(object, namespace("*,-wasi:sockets"), Some(&old)).await;
    assert!(admitted.is_ok());
    let wanted = "existing pods in namespace \"n\" are not held to the new imports.coracle.dev/enforce, and run on: a (and 1 other pod)";
    assert_eq!(effects.warnings, [wanted]);
}
