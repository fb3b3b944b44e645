//! Invariant of every controller: a performed plan leaves nothing to do.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Plan};
use machinery_env::Env;
use serde_json::Value;

use crate::{Authority, CONTROLLERS, CertificateTemplate, ControllerOptions, ExpressionWarning, Settings};

/// The maximum number of passes over one key until nothing is left. Some controllers take several steps: write, read,
/// write the status.
const PASSES_MAX: usize = 8;

/// The objects of a YAML stream.
pub(crate) fn objects(yaml: &str) -> Vec<Value> {
    yaml.split("\n---\n").map(|text| machinery_api::yaml::read(text).unwrap()).collect()
}

/// The time of all tests.
pub(crate) fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// A provider with one machine, one missing machine, and failures for all others.
struct Machines;

impl crate::Instances for Machines {
    fn instance(&self, node: &str, _: Option<&str>) -> Result<Option<std::sync::Arc<crate::Instance>>, String> {
        match node {
            "bare" => Ok(Some(std::sync::Arc::new(crate::Instance { zone: "z".into(), ..crate::Instance::default() }))),
            "vanished" => Ok(None),
            _ => Err("unknown".into()),
        }
    }
}

/// The settings of the tests' controllers.
pub(crate) fn settings() -> Settings {
    let mut options = ControllerOptions::default();
    options.pods.terminated_max = 0;
    options.balancers.set_pool("192.0.2.0/28".parse().unwrap());
    Settings {
        options,
        root_ca_pem: "a certificate".into(),
        cluster_cidrs: vec![("10.244.0.0/16".parse().unwrap(), 24)],
        instances: Some(std::sync::Arc::new(Machines)),
        authority: std::sync::Arc::new(Keys),
        ..Settings::default()
    }
}

/// Signs with plain text, and finds one wrong expression.
struct Keys;

impl Authority for Keys {
    fn signs_tokens(&self) -> bool {
        true
    }

    fn sign_token(&self, claims: &Value) -> Option<String> {
        Some(claims.to_string())
    }

    fn signs_certificates(&self) -> bool {
        true
    }

    fn sign_certificate(&self, template: &CertificateTemplate<'_>) -> Option<Result<String, String>> {
        Some(Ok(template.request.common_name.clone()))
    }

    fn check_policy(&self, policy: &Value) -> Option<Vec<ExpressionWarning>> {
        let is_wrong = policy["spec"]["validations"][0]["expression"] == "wrong";
        let warning =
            || ExpressionWarning { field_ref: "spec.validations[0].expression".into(), warning: "no wrong".into() };
        Some(is_wrong.then(warning).into_iter().collect())
    }
}

/// One controller's decision.
pub(crate) fn decide(name: &str, simulation: &Simulation, key: &ObjectKey) -> Plan {
    decide_under(&settings(), name, simulation, key)
}

/// One controller's decision with other settings.
pub(crate) fn decide_under(settings: &Settings, name: &str, simulation: &Simulation, key: &ObjectKey) -> Plan {
    let controller = CONTROLLERS.iter().find(|c| c.name == name).expect("a controller of that name");
    let context = simulation.context(settings);
    (controller.reconcile)(&simulation.view, key, &context)
}

/// The keys of all controllers with inputs.
pub(crate) fn keys(simulation: &Simulation) -> BTreeMap<&'static str, BTreeSet<ObjectKey>> {
    let mut keys: BTreeMap<&'static str, BTreeSet<ObjectKey>> = BTreeMap::new();
    let changes: Vec<_> = simulation.view.as_changes().collect();
    for controller in CONTROLLERS {
        for change in &changes {
            let of_change = controller.inputs.iter().flat_map(|input| input.keys(&simulation.view, change));
            keys.entry(controller.name).or_default().extend(of_change);
        }
    }
    keys
}

/// Whether nothing but events is left. Events may recur: the recorder counts them.
pub(crate) fn is_done(plan: &Plan) -> bool {
    plan.actions.iter().all(|action| matches!(action, Action::Event(_)))
}

/// Reconciles all keys of all controllers until nothing is left to do.
pub(crate) fn settle(simulation: &mut Simulation) {
    for _ in 0..PASSES_MAX * 8 {
        let mut idle = true;
        for (name, keys) in keys(simulation) {
            for key in keys {
                let plan = decide(name, simulation, &key);
                idle &= is_done(&plan);
                assert_eq!(simulation.apply(plan), Vec::<String>::new(), "{name} {key}");
            }
        }
        if idle {
            return;
        }
    }
    panic!("the controllers never come to rest");
}

/// A cluster with something to do for every controller.
pub(crate) const CLUSTER: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: a}}
---
apiVersion: v1
kind: Node
metadata: {name: bare, creationTimestamp: "2025-12-31T00:00:00Z"}
spec: {taints: [{key: node.cloudprovider.kubernetes.io/uninitialized, value: "true", effect: NoSchedule}]}
---
{apiVersion: v1, kind: Node, metadata: {name: vanished, creationTimestamp: "2025-12-31T00:00:00Z"}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: gone, deletionTimestamp: "2025-12-31T23:00:00Z"}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: left, namespace: gone}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c, namespace: a}}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: v}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: kept}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  csi: {driver: local.coracle.dev, volumeHandle: kept}
  claimRef: {name: kept, namespace: a}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept, namespace: a}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: own, namespace: a}
spec: {nodeName: m1, containers: [], volumes: [{name: v, ephemeral: {volumeClaimTemplate: {spec: {storageClassName: none}}}}]}
---
{apiVersion: storage.k8s.io/v1, kind: VolumeAttributesClass, metadata: {name: c}, driverName: d}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: a}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, maxReplicas: 5}
---
{apiVersion: v1, kind: ResourceQuota, metadata: {name: q, namespace: a}, spec: {hard: {pods: "9"}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: left, namespace: gone}}
---
{apiVersion: v1, kind: Node, metadata: {name: m1, labels: {topology.kubernetes.io/zone: z}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: a}
spec:
  replicas: 3
  progressDeadlineSeconds: 600
  revisionHistoryLimit: 10
  selector: {matchLabels: {app: web}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: alone, namespace: a}
spec:
  replicas: 1
  selector: {matchLabels: {app: alone}}
  template: {metadata: {labels: {app: alone}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: former, namespace: a}
spec:
  replicas: 1
  selector: {app: former}
  template: {metadata: {labels: {app: former}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: hourly, namespace: a, creationTimestamp: "2025-12-31T22:30:00Z"}
spec:
  schedule: "0 * * * *"
  jobTemplate:
    spec:
      backoffLimit: 6
      selector: {matchLabels: {controller-uid: hourly}}
      template:
        metadata: {labels: {controller-uid: hourly}}
        spec: {restartPolicy: Never, containers: [{name: c, image: i}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere, namespace: a}
spec:
  revisionHistoryLimit: 10
  selector: {matchLabels: {app: everywhere}}
  updateStrategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 1, maxSurge: 0}}
  template:
    metadata: {labels: {app: everywhere}}
    spec: {tolerations: [{operator: Exists}], containers: [{name: c, image: i}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: a}
spec:
  replicas: 2
  serviceName: db
  revisionHistoryLimit: 10
  selector: {matchLabels: {app: db}}
  updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 0}}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce]}}]
  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete, whenDeleted: Delete}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: orphan, namespace: a, labels: {app: alone}}
spec: {nodeName: m1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: alone, namespace: a}
spec: {clusterIP: 10.96.0.9, ipFamilies: [IPv4], selector: {app: alone}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: sum, namespace: a}
spec:
  parallelism: 2
  completions: 2
  backoffLimit: 6
  selector: {matchLabels: {controller-uid: some}}
  template:
    metadata: {labels: {controller-uid: some}}
    spec: {restartPolicy: Never, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: left-behind
  namespace: a
  ownerReferences: [{apiVersion: v1, kind: Pod, name: gone, uid: gone}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: old, namespace: a}
spec:
  ttlSecondsAfterFinished: 0
  selector: {matchLabels: {controller-uid: other}}
  template:
    metadata: {labels: {controller-uid: other}}
    spec: {restartPolicy: Never, containers: [{name: c, image: i}]}
status:
  startTime: "2025-12-31T22:00:00Z"
  completionTime: "2025-12-31T23:00:00Z"
  conditions: [{type: Complete, status: "True", lastTransitionTime: "2025-12-31T23:00:00Z"}]
---
apiVersion: v1
kind: Secret
metadata: {name: token, namespace: a, annotations: {kubernetes.io/service-account.name: default}}
type: kubernetes.io/service-account-token
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: whole}
aggregationRule: {clusterRoleSelectors: [{matchLabels: {part-of: whole}}]}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: part, labels: {part-of: whole}}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
---
apiVersion: v1
kind: Pod
metadata: {name: lost, namespace: a, creationTimestamp: "2025-12-31T23:00:00Z"}
spec: {nodeName: nowhere, containers: [{name: c, image: i}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: few, namespace: a}
spec: {minAvailable: 1, selector: {matchLabels: {app: alone}}}
---
{apiVersion: v1, kind: Service, metadata: {name: balanced, namespace: a}, spec: {type: LoadBalancer, clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: outside, namespace: a}, spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}}
---
apiVersion: v1
kind: Endpoints
metadata: {name: outside, namespace: a}
subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 80, protocol: TCP}]}]
---
{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: [10.7.0.0/24]}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: p, generation: 1}
spec: {validations: [{expression: wrong}]}
---
{apiVersion: v1, kind: Service, metadata: {name: none, namespace: a}, spec: {clusterIP: None, selector: {app: none}}}
---
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
data: {expiration: MjAyNS0xMi0zMVQwMDowMDowMFo=}
---
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: n9, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  request: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIck1JR1NBZ0VBTURBeEZUQVRCZ05WQkFvTURITjVjM1JsYlRwdWIyUmxjekVYTUJVR0ExVUVBd3dPYzNsegpkR1Z0T201dlpHVTZiamt3V1RBVEJnY3Foa2pPUFFJQkJnZ3Foa2pPUFFNQkJ3TkNBQVF6enFmeDVXaXVzcW41CjYrRGUzbDV6TS9vclQzdS85RDA5ekRXL083bG5EV24xV01ESm5zendUMDFTSWhDd3NVQ3Z6bnc5R3N5a1lnTUcKekNuNStZTGJvQUF3Q2dZSUtvWkl6ajBFQXdJRFNBQXdSUUlnRTJqcHVkZmo4ejRYc1RueWF3TURmcjV2di9ydQp4Y0lqb3R4SmhPQ3VXaFVDSVFDdUc2cWZuZTNOeC95eVI3VW9IZk9HYmdDNFVLbkc4ZHdXTVNyUHNXOXI5dz09Ci0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVFU1QtLS0tLQo=
  signerName: kubernetes.io/kube-apiserver-client-kubelet
  usages: [client auth, digital signature]
  username: system:node:n9
  groups: [system:nodes]
"#;

#[test]
fn a_plan_once_performed_leaves_nothing_to_do() {
    let mut simulation = crate::simulation(start(), objects(CLUSTER.trim()));
    for controller in CONTROLLERS {
        let of_controller = keys(&simulation).remove(controller.name).unwrap_or_default();
        assert!(!of_controller.is_empty(), "the test's cluster has nothing for {}", controller.name);
        for key in of_controller {
            let mut before = None;
            for pass in 0.. {
                let plan = decide(controller.name, &simulation, &key);
                if is_done(&plan) {
                    break;
                }
                assert_ne!(before.as_ref(), Some(&plan.actions), "{} repeats itself on {key}", controller.name);
                assert!(pass < PASSES_MAX, "{} never comes to rest on {key}: {:?}", controller.name, plan.actions);
                before = Some(plan.actions.clone());
                assert_eq!(simulation.apply(plan), Vec::<String>::new(), "{} {key}", controller.name);
            }
        }
    }
    settle(&mut simulation);
}

/// Events and keys in any order: the same view and key give the same plan, and all end in the same state. Nothing is
/// remembered between two decisions.
#[test]
fn the_order_of_events_and_of_work_makes_no_difference_in_the_end() {
    let mut ends = BTreeSet::new();
    for seed in 0..24 {
        let env = Env::seeded(seed, start()).0;
        let below = |n: usize| usize::try_from(env.below(n as u64)).unwrap();
        // The server rejects creations in a terminating namespace: its objects exist at the start.
        let of_gone = |object: &Value| {
            [&object["metadata"]["name"], &object["metadata"]["namespace"]].contains(&&Value::from("gone"))
        };
        // A token's Secret that arrives before its account is deleted, as upstream: that end differs.
        let objects = objects(CLUSTER.trim()).into_iter().filter(|object| object["kind"] != "Secret");
        let (first, mut left): (Vec<_>, Vec<_>) = objects.partition(of_gone);
        let mut simulation = crate::simulation(start(), first);
        while !left.is_empty() || below(4) > 0 {
            if !left.is_empty() {
                let object = left.remove(below(left.len()));
                let kind = simulation.kind_of(&object);
                simulation.create(&kind, object);
            }
            let all: Vec<_> = keys(&simulation)
                .into_iter()
                .flat_map(|(name, keys)| keys.into_iter().map(move |key| (name, key)))
                .collect();
            for _ in 0..below(12) {
                let (name, key) = &all[below(all.len())];
                let plan = decide(name, &simulation, key);
                // Memory is opaque: two memories are equal only if they are the same one.
                let again = Plan { state: plan.state.clone(), ..decide(name, &simulation, key) };
                assert_eq!(again, plan, "{name} {key}: the same again");
                simulation.apply(plan);
            }
        }
        settle(&mut simulation);
        ends.insert(state(&simulation));
    }
    assert_eq!(ends.len(), 1, "{ends:#?}");
}

/// The number of objects by kind, and the workloads' statuses: names, uids and versions depend on the order.
fn state(simulation: &Simulation) -> String {
    let mut lines = BTreeMap::<String, usize>::new();
    let view = &simulation.view;
    for kind in view.kinds() {
        for metadata in view.metadata_of(kind, "") {
            let owner = metadata.owner_references.iter().flatten().map(|o| o.kind.clone()).collect::<Vec<_>>();
            let given = metadata.generate_name.is_none() && owner.is_empty();
            let name = if given { metadata.name.clone().unwrap_or_default() } else { String::new() };
            let namespace = metadata.namespace.clone().unwrap_or_default();
            *lines.entry(format!("{} {namespace}/{name} of {owner:?}", kind.resource())).or_default() += 1;
        }
    }
    for set in view.all::<ReplicaSet>() {
        let status = set.status.as_ref().map(|s| (s.replicas, s.ready_replicas, s.conditions.clone()));
        *lines.entry(format!("{status:?}")).or_default() += 1;
    }
    format!("{lines:#?}")
}

#[test]
fn names_are_unique_and_every_controller_has_inputs() {
    let names: BTreeSet<&str> = CONTROLLERS.iter().map(|c| c.name).collect();
    assert_eq!(names.len(), CONTROLLERS.len());
    assert!(CONTROLLERS.iter().all(|c| !c.inputs.is_empty() && c.workers > 0));
}
