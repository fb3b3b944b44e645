//! Each plugin, compared with recorded results of upstream.

use jiff::Timestamp;
use serde_json::json;

use futures::FutureExt as _;

use super::*;
use apiserver_auth::NODES;
use apiserver_resources::objects::memory::MemoryObjects;
use apiserver_schema::FieldValidation;

struct World {
    map: MemoryObjects,
    chain: Chain,
}

fn world() -> World {
    let (env, _) = Env::seeded(1, Timestamp::UNIX_EPOCH);
    let map = MemoryObjects::default();
    map.put("", "namespaces", json!({"metadata": {"name": "ns"}, "status": {"phase": "Active"}}));
    map.put("", "namespaces", json!({"metadata": {"name": "going"}, "status": {"phase": "Terminating"}}));
    map.put("", "serviceaccounts", json!({"metadata": {"namespace": "ns", "name": "default"}}));
    map.put(
        "scheduling.k8s.io",
        "priorityclasses",
        json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"}),
    );
    map.put(
        "node.k8s.io",
        "runtimeclasses",
        json!({"metadata": {"name": "ring"}, "handler": "ring", "overhead": {"podFixed": {"memory": "8Mi"}},
            "scheduling": {"nodeSelector": {"ring": "1"}, "tolerations": [{"key": "ring", "operator": "Exists"}]}}),
    );
    World { map, chain: Chain::new(&env, Arc::default()) }
}

impl World {
    fn run(&self, request: &Request<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), String> {
        self.admit(request, object, old).now_or_never().expect("built-in plugins wait for a namespace's account only")
    }

    async fn admit(&self, request: &Request<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), String> {
        let mut effects = Effects::default();
        let mut admitted = self.chain.mutate(request, &self.map, object, old, &mut effects).await;
        if admitted.is_ok() {
            let input = ValidateInput { object, given: object, old };
            admitted = self.chain.validate(request, &self.map, input, &mut effects).await;
        }
        admitted.map_err(|error| error.status().message)
    }

    fn create(&self, resource: &str, namespace: &str, mut object: Value) -> Result<Value, String> {
        let user = UserInfo::component("admin", Some("system:masters"));
        self.run(&request(&user, resource, Operation::Create, namespace, ""), &mut object, None).map(|()| object)
    }

    fn pod(&self, spec: Value) -> Result<Value, String> {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
        if pod["spec"]["containers"].is_null() {
            pod["spec"]["containers"] = json!([{"name": "c"}]);
        }
        self.create("pods", "ns", pod).map(|pod| pod["spec"].clone())
    }
}

fn request<'a>(
    user: &'a UserInfo,
    resource: &'a str,
    operation: Operation,
    namespace: &'a str,
    name: &'a str,
) -> Request<'a> {
    static OPTIONS: WriteOptions = WriteOptions {
        dry_run: false,
        field_validation: FieldValidation::Warn,
        field_manager: String::new(),
        shows_warnings: false,
        force: false,
        agent: String::new(),
    };
    Request {
        user,
        group: "",
        version: "v1",
        resource,
        subresource: "",
        kind: GroupVersionKind::default(),
        operation,
        namespace,
        name,
        path_name: name,
        options: Options::Write(&OPTIONS),
    }
}

#[test]
fn namespaces_live() {
    let world = world();
    let config = || json!({"metadata": {"name": "late"}});
    assert_eq!(world.create("configmaps", "nope", config()).unwrap_err(), "namespaces \"nope\" not found");
    assert_eq!(
        world.create("configmaps", "going", config()).unwrap_err(),
        "configmaps \"late\" is forbidden: unable to create new content in namespace going because it is being terminated"
    );
    let user = UserInfo::default();
    for (name, refused) in [("default", true), ("kube-system", true), ("kube-node-lease", false), ("ns", false)] {
        let request = request(&user, "namespaces", Operation::Delete, name, name);
        let ended = world.run(&request, &mut Value::Null, None);
        assert_eq!(ended.is_err(), refused, "{name}");
    }
}

#[test]
fn pods_run_as_a_service_account() {
    let world = world();
    assert_eq!(
        world.pod(json!({"serviceAccountName": "nobody"})).unwrap_err(),
        "pods \"p\" is forbidden: error looking up service account ns/nobody: serviceaccount \"nobody\" not found"
    );
    let spec = world.pod(json!({"initContainers": [{"name": "i"}]})).unwrap();
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-") && volume.len() == 21, "{volume}");
    let mount = json!([{"mountPath": MOUNT, "name": volume, "readOnly": true}]);
    assert_eq!(spec["containers"][0]["volumeMounts"], mount);
    assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
    assert_eq!((&spec["serviceAccountName"], &spec["serviceAccount"]), (&json!("default"), &json!("default")));

    let spec = world.pod(json!({"automountServiceAccountToken": false})).unwrap();
    assert!(spec.get("volumes").is_none());
    let own = json!({"containers": [{"name": "c", "volumeMounts": [{"name": "x", "mountPath": MOUNT}]}]});
    assert!(world.pod(own).unwrap().get("volumes").is_none());
}

#[tokio::test]
async fn a_pod_waits_for_the_account_of_a_new_namespace() {
    let world = world();
    let user = UserInfo::component("admin", None);
    let request = request(&user, "pods", Operation::Create, "new", "");
    let new_pod = || json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
    let mut pod = new_pod();
    assert_eq!(
        world.admit(&request, &mut pod, None).now_or_never(),
        Some(Err("namespaces \"new\" not found".to_owned())),
        "where there is no namespace nothing is waited for"
    );
    world.map.put("", "namespaces", json!({"metadata": {"name": "new"}}));
    let mut admitted = Box::pin(world.admit(&request, &mut pod, None));
    assert_eq!(futures::poll!(&mut admitted), std::task::Poll::Pending);
    world.map.put("", "serviceaccounts", json!({"metadata": {"namespace": "new", "name": "default"}}));
    assert_eq!(admitted.await, Ok(()));
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
    world.map.remove("", "serviceaccounts", "new", "default");
    let refused = world.admit(&request, &mut new_pod(), None).await.unwrap_err();
    assert!(refused.ends_with("serviceaccount \"default\" not found"), "not for ever: {refused}");
}

#[test]
fn a_create_holds_only_while_its_namespace_is_unchanged() {
    let world = world();
    world.map.put("", "namespaces", json!({"metadata": {"name": "ns", "resourceVersion": "7"}}));
    let user = UserInfo::component("admin", None);
    let compares = |operation: Operation| {
        let mut effects = Effects::default();
        let request = request(&user, "configmaps", operation, "ns", "c");
        let mut object = json!({});
        let admitted = world.chain.mutate(&request, &world.map, &mut object, None, &mut effects);
        admitted.now_or_never().unwrap().unwrap();
        effects.txn.compares
    };
    let key = "/registry/namespaces/ns".to_owned();
    assert_eq!(compares(Operation::Create), [apiserver_storage::store::Compare { key, modified: 7 }]);
    assert_eq!(compares(Operation::Update), []);
}

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[test]
fn priorities_come_from_classes() {
    let world = world();
    let spec = world.pod(json!({"priorityClassName": "high"})).unwrap();
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(1000), &json!("Never")));
    assert_eq!(
        world.pod(json!({"priorityClassName": "none"})).unwrap_err(),
        "pods \"p\" is forbidden: no PriorityClass with name none was found"
    );
    assert_eq!(
        world.pod(json!({"priority": 7})).unwrap_err(),
        "pods \"p\" is forbidden: the integer value of priority (7) must not be provided in pod spec; priority admission \
         controller computed 0 from the given PriorityClass name"
    );
    assert!(world.pod(json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"})).is_err());
    let spec = world.pod(json!({})).unwrap();
    assert_eq!(spec["priority"], 0);
    assert!(spec.get("priorityClassName").is_none());
    world.map.put(
        "scheduling.k8s.io",
        "priorityclasses",
        json!({"metadata": {"name": "usual"}, "value": 5, "globalDefault": true}),
    );
    assert_eq!(world.pod(json!({})).unwrap()["priorityClassName"], "usual");
}

#[test]
fn tolerations_and_runtime_classes() {
    let world = world();
    let exists = |key: &str| json!({"effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": 300});
    let (not_ready, unreachable) = (exists("node.kubernetes.io/not-ready"), exists("node.kubernetes.io/unreachable"));
    let spec = world.pod(json!({"runtimeClassName": "ring", "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "mine", "operator": "Exists"}]}));
    let spec = spec.unwrap();
    assert_eq!(spec["nodeSelector"], json!({"a": "b", "ring": "1"}));
    assert_eq!(spec["overhead"], json!({"memory": "8Mi"}));
    assert_eq!(
        spec["tolerations"],
        json!([{"key": "mine", "operator": "Exists"}, not_ready, unreachable, {"key": "ring", "operator": "Exists"}])
    );
    let all = world.pod(json!({"tolerations": [{"operator": "Exists"}]})).unwrap();
    assert_eq!(all["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(
        world.pod(json!({"runtimeClassName": "ring", "nodeSelector": {"ring": "2"}})).unwrap_err(),
        "pods \"p\" is forbidden: conflict: runtimeClass.scheduling.nodeSelector[ring] = 1; pod.spec.nodeSelector[ring] = 2"
    );
    assert!(world.pod(json!({"runtimeClassName": "ring", "overhead": {"memory": "9Mi"}})).is_err());
    assert!(world.pod(json!({"runtimeClassName": "ring", "overhead": {"memory": "8192Ki"}})).is_ok());
    assert!(world.pod(json!({"overhead": {"memory": "9Mi"}})).is_err());
    assert!(world.pod(json!({"overhead": {}})).is_err(), "given, if empty");
    assert!(world.pod(json!({"runtimeClassName": "ring", "overhead": {}})).is_ok());
    assert!(world.pod(json!({"runtimeClassName": "ring", "overhead": {"memory": "8388608001m"}})).is_err());
    assert_eq!(
        world.pod(json!({"runtimeClassName": "none"})).unwrap_err(),
        "pods \"p\" is forbidden: pod rejected: RuntimeClass \"none\" not found"
    );
}

#[test]
fn kubelets_are_kept_to_their_own() {
    let world = world();
    let user = UserInfo::component("system:node:n1", Some(NODES));
    let node = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {}});
    let create = |mut object: Value| world.run(&request(&user, "nodes", Operation::Create, "", ""), &mut object, None);
    create(node("n1", json!({"kubernetes.io/os": "linux", "coracle.dev/host-os": "x", "a": "b"}))).unwrap();
    assert_eq!(
        create(node("n2", json!({}))).unwrap_err(),
        "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\""
    );
    assert_eq!(
        create(node("n1", json!({"node-restriction.kubernetes.io/x": "", "x.k8s.io/y": ""}))).unwrap_err(),
        "nodes \"n1\" is forbidden: node \"n1\" is not allowed to set the following labels: \
         node-restriction.kubernetes.io/x, x.k8s.io/y"
    );
    world.map.put("", "nodes", json!({"metadata": {"name": "n2"}, "spec": {"podCIDR": "10.244.2.0/24"}}));
    let ranged = |range: &str| json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": range, "podCIDRs": [range]}});
    create(ranged("10.244.1.0/24")).unwrap();
    assert_eq!(
        create(ranged("10.244.0.0/16")).unwrap_err(),
        "nodes \"n1\" is forbidden: the range 10.244.0.0/16 is in use by node \"n2\"; start node \"n1\" again to get a free one"
    );
    let tainted = |taints: Value| json!({"metadata": {"name": "n1"}, "spec": {"taints": taints}});
    let update = request(&user, "nodes", Operation::Update, "", "n1");
    assert!(world.run(&update, &mut tainted(json!([])), Some(&tainted(json!([{"key": "a"}])))).is_err());
    let (without, range) = (node("n1", json!({})), ranged("10.244.1.0/24"));
    assert!(world.run(&update, &mut range.clone(), Some(&range)).is_ok());
    assert_eq!(
        world.run(&update, &mut range.clone(), Some(&without)).unwrap_err(),
        "nodes \"n1\" is forbidden: node \"n1\" is not allowed to set its range of pod addresses: a controller assigns it"
    );

    let pod =
        |node: &str| json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"nodeName": node}});
    let status = Request { subresource: "status", ..request(&user, "pods", Operation::Update, "ns", "p") };
    assert!(world.run(&status, &mut pod("n1"), Some(&pod("n1"))).is_ok());
    assert!(world.run(&status, &mut pod("n2"), Some(&pod("n2"))).is_err());

    world.map.put(
        "",
        "pods",
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"nodeName": "n1", "volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}}),
    );
    let token =
        Request { subresource: "token", ..request(&user, "serviceaccounts", Operation::Create, "ns", "default") };
    let mut body = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}}});
    assert_eq!(world.run(&token, &mut body, None), Ok(()));
    body["spec"]["audiences"] = json!(["vault"]);
    assert!(
        world.run(&token, &mut body, None).unwrap_err().contains("audience \"vault\" not found in pod spec volume")
    );
    assert!(world.run(&token, &mut json!({"spec": {}}), None).is_err());
}

#[test]
fn new_nodes_are_not_ready() {
    let world = world();
    let node = world.create("nodes", "", json!({"metadata": {"name": "n"}})).unwrap();
    assert_eq!(node["spec"]["taints"], json!([{"effect": "NoSchedule", "key": "node.kubernetes.io/not-ready"}]));
}

#[test]
fn claims_without_a_class_get_the_newest_default() {
    let world = world();
    let class = |name: &str, made: &str, mark: &str| json!({"metadata": {"name": name, "creationTimestamp": made, "annotations": {(mark): "true"}}});
    let storage = "storageclass.kubernetes.io/is-default-class";
    for (name, made) in [("old", "2025-01-01T00:00:00Z"), ("b", "2026-01-01T00:00:00Z"), ("a", "2026-01-01T00:00:00Z")]
    {
        world.map.put("storage.k8s.io", "storageclasses", class(name, made, storage));
    }
    world.map.put(
        "networking.k8s.io",
        "ingressclasses",
        class("front", "", "ingressclass.kubernetes.io/is-default-class"),
    );
    let claim =
        |spec: Value| world.create("persistentvolumeclaims", "ns", json!({"metadata": {"name": "c"}, "spec": spec}));
    let made = claim(json!({})).unwrap();
    assert_eq!(made["spec"]["storageClassName"], "a");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    assert_eq!(claim(json!({"storageClassName": ""})).unwrap()["spec"]["storageClassName"], "", "none is a wish, too");
    let user = UserInfo::default();
    let ingress = |object: Value| {
        let request =
            Request { group: "networking.k8s.io", ..request(&user, "ingresses", Operation::Create, "ns", "") };
        let mut object = object;
        world.run(&request, &mut object, None).map(|()| object)
    };
    assert_eq!(ingress(json!({"metadata": {}})).unwrap()["spec"]["ingressClassName"], "front");
    let old = json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}});
    assert!(ingress(old).unwrap()["spec"]["ingressClassName"].is_null());
}

#[test]
fn a_data_plane_reports_waiting_requests_alone() {
    let world = world();
    let old = json!({"metadata": {"name": "s"}, "spec": {}, "status": {"loadBalancer": {}}});
    let update = |user: &UserInfo, status: Value| {
        let request = Request { subresource: "status", ..request(user, "services", Operation::Update, "ns", "s") };
        let mut new = old.clone();
        new["status"] = status;
        world.run(&request, &mut new, Some(&old))
    };
    let waiting = json!({"conditions": [{"type": machinery_rules::activation::CONDITION, "status": "True"}]});
    let waiting = || json!({"loadBalancer": {}, "conditions": waiting["conditions"]});
    let address = || json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    for user in [UserInfo::component("system:kube-proxy", None), UserInfo::component("system:node:n1", Some(NODES))] {
        assert_eq!(update(&user, waiting()), Ok(()), "{}", user.name);
        let refused = update(&user, address()).unwrap_err();
        assert!(refused.contains("a data plane can only update the condition"), "{refused}");
    }
    assert_eq!(update(&UserInfo::component("jo", None), address()), Ok(()), "RBAC decides");
}

#[test]
fn claims_grow_where_their_class_lets_them() {
    let world = world();
    let class = |name: &str, grows: bool| json!({"metadata": {"name": name}, "allowVolumeExpansion": grows});
    world.map.put("storage.k8s.io", "storageclasses", class("grows", true));
    world.map.put("storage.k8s.io", "storageclasses", class("stays", false));
    let claim = |class: &str, size: &str, phase: &str| {
        json!({"metadata": {"name": "c"}, "status": {"phase": phase},
            "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}})
    };
    let user = UserInfo::default();
    let update = |class: &str, from: &str, to: &str, phase: &str| {
        let request = request(&user, "persistentvolumeclaims", Operation::Update, "ns", "c");
        world.run(&request, &mut claim(class, to, phase), Some(&claim(class, from, phase)))
    };
    update("grows", "1Gi", "2Gi", "Bound").unwrap();
    update("stays", "2Gi", "1Gi", "Bound").unwrap();
    let why = "persistentvolumeclaims \"c\" is forbidden: ";
    assert_eq!(
        update("grows", "1Gi", "2Gi", "Pending").unwrap_err(),
        format!("{why}Only bound persistent volume claims can be expanded")
    );
    let refused = update("stays", "1Gi", "2Gi", "Bound").unwrap_err();
    assert_eq!(
        refused,
        format!(
            "{why}only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                 support resize"
        )
    );
}

#[test]
fn pods_know_the_zone_of_their_node() {
    let world = world();
    let labels = json!({"topology.kubernetes.io/zone": "z", "other": "o"});
    world.map.put("", "nodes", json!({"metadata": {"name": "n", "labels": labels}}));
    let user = UserInfo::default();
    let request = Request { subresource: "binding", ..request(&user, "pods", Operation::Create, "ns", "p") };
    let mut binding = json!({"target": {"kind": "Node", "name": "n"}});
    world.run(&request, &mut binding, None).unwrap();
    assert_eq!(binding["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
}
