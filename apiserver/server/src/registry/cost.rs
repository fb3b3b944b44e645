//! Tests that adversarial bodies cost work in proportion to their size, whatever they contain.

use std::collections::BTreeSet;

use machinery_api::ApiError;
use machinery_api::error::GroupResource;
use serde_json::{Map, Value, json};

use super::body::{self, Body};
use crate::test_catalog::built_in;
use apiserver_resources::field::{ERRORS_MAX, ErrorList};
use apiserver_resources::{Context, RESOURCES, ResourceInfo, metadata};
use apiserver_schema::{FieldValidation, Kind, Media, TypeRef, Types};

/// The result of a body: status and message, and the number of warnings.
#[derive(Debug)]
struct Outcome {
    code: u16,
    message: String,
    warnings: usize,
}

fn row(kind: &str) -> &'static ResourceInfo {
    let mut stored = built_in().all_stored();
    stored.find(|row| &*row.kind == kind).unwrap()
}

/// A create without IO: decode, default, normalise, validate, build the response.
fn create(row: &ResourceInfo, bytes: &[u8], media: Media) -> Outcome {
    let mut warnings = Vec::new();
    let done = (|| {
        let mut object = body::object(row, Body { bytes, media }, FieldValidation::Warn, &mut warnings)?;
        let map = super::object::metadata_mut(&mut object);
        if row.namespaced {
            map.insert("namespace".into(), json!("default"));
        }
        super::object::dedup_owners(&mut object, &mut warnings, false);
        let context = Context::of_server(jiff::Timestamp::UNIX_EPOCH);
        row.strategy.prepare_create(&context, &mut object);
        let explicit_empties = body::explicit_empties(row, &object);
        body::normalise(row, &mut object);
        let mut errors = ErrorList::new();
        row.strategy.validate_first(&context, &object, None, &mut errors);
        super::invalid(GroupResource::default(), "", &mut errors)?;
        metadata::validate_create(&mut errors, metadata::KindTraits::resource(row), &object);
        let checked = body::with_empties(&object, explicit_empties);
        row.strategy.validate(&context, &checked, None, &mut errors);
        super::invalid(GroupResource::new("", &*row.kind), "x", &mut errors)?;
        warnings.extend(row.strategy.warnings(&object, None));
        Ok(())
    })();
    let (code, message) = match done {
        Ok(()) => (201, String::new()),
        Err(error) => {
            let error: ApiError = error;
            (error.status().code, error.status().message)
        }
    };
    Outcome { code, message, warnings: warnings.len() }
}

/// The CPU time of this thread, in nanoseconds; wall-clock time would include other programs.
fn running_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts threads' time");
    text.split(' ').next().unwrap().parse().unwrap()
}

/// The average cost of a create, over as many as the clock's resolution requires.
fn cost_ns(row: &ResourceInfo, bytes: &[u8], media: Media) -> u64 {
    const MEASURED_NS: u64 = 60_000_000;
    let (before, mut runs) = (running_ns(), 0);
    loop {
        create(row, bytes, media);
        runs += 1;
        let spent = running_ns() - before;
        if spent > MEASURED_NS {
            return spent / runs;
        }
    }
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn list(n: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..n).map(item).collect()
}

fn map(n: usize, item: impl Fn(usize) -> (String, Value)) -> Value {
    Value::Object((0..n).map(item).collect::<Map<_, _>>())
}

type Make = fn(usize) -> Value;

/// Kinds with bodies of n parts; each was superlinear once.
static CORPUS: &[(&str, &str, Make)] = &[
    (
        "bad finalizers",
        "ConfigMap",
        |n| json!({"metadata": {"name": "c", "finalizers": list(n, |i| json!(format!("Bad Finalizer {i}")))}}),
    ),
    (
        "bad keys",
        "ConfigMap",
        |n| json!({"metadata": {"name": "c"}, "data": map(n, |i| (format!("bad key {i}"), json!("")))}),
    ),
    (
        "bad labels",
        "ConfigMap",
        |n| json!({"metadata": {"name": "c", "labels": map(n, |i| (format!("bad key {i}"), json!("")))}}),
    ),
    ("unknown fields", "ConfigMap", |n| map(n, |i| (format!("unknown{i}"), json!(i)))),
    ("owners that control", "ConfigMap", |n| {
        let owner =
            |i| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": format!("u{i}"), "controller": true});
        json!({"metadata": {"name": "c", "ownerReferences": list(n, owner)}})
    }),
    ("bad tolerations", "Pod", |n| {
        pod(json!({"tolerations": list(n, |i| json!({"key": "bad key", "operator": format!("no{i}"), "effect": "x"}))}))
    }),
    (
        "bad rules",
        "Role",
        |n| json!({"metadata": {"name": "r"}, "rules": list(n, |i| json!({"verbs": [], "nonResourceURLs": [format!("/{i}")]}))}),
    ),
    ("empty containers", "Pod", |n| pod(json!({"containers": list(n, |_| json!({}))}))),
    ("equal ports", "Pod", |n| {
        pod(json!({"containers": [{"name": "c", "image": "x", "ports": list(n, |_| json!({"containerPort": 80}))}]}))
    }),
    ("ports on many addresses", "Pod", |n| {
        let port = |i| json!({"containerPort": 80, "hostPort": 80, "hostIP": format!("10.{}.{}.1", i / 250, i % 250)});
        pod(json!({"containers": [{"name": "c", "image": "x", "ports": list(n, port)}]}))
    }),
    ("paths in a volume", "Pod", |n| {
        let files = list(n, |i| json!({"key": "k", "path": format!("a/{}", i / 2)}));
        pod(json!({"volumes": [{"name": "v", "configMap": {"name": "m", "items": files}}]}))
    }),
    ("mounts and devices", "Pod", |n| {
        let (mounts, devices) = (
            list(n, |i| json!({"name": format!("m{i}"), "mountPath": format!("/m{i}")})),
            list(n, |i| json!({"name": format!("d{i}"), "devicePath": format!("/d{i}")})),
        );
        pod(json!({"containers": [{"name": "c", "image": "x", "volumeMounts": mounts, "volumeDevices": devices}]}))
    }),
    ("claims that do not exist", "Pod", |n| {
        let claims = list(n, |i| json!({"name": format!("c{i}")}));
        pod(json!({"resourceClaims": list(n, |i| json!({"name": format!("d{i}"), "resourceClaimName": "x"})),
            "containers": [{"name": "c", "image": "x", "resources": {"claims": claims}}]}))
    }),
    ("spread constraints", "Pod", |n| {
        let one = |i| json!({"maxSkew": 1, "topologyKey": format!("k{i}"), "whenUnsatisfiable": "ScheduleAnyway"});
        pod(json!({"topologySpreadConstraints": list(n, one)}))
    }),
    ("families", "Service", |n| {
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 1}],
            "ipFamilies": list(n, |i| json!(format!("f{i}")))}})
    }),
];

#[test]
fn work_is_in_proportion_to_the_body() {
    const N: usize = 1000;
    for (name, kind, make) in CORPUS {
        let row = row(kind);
        let body = |n| serde_json::to_vec(&make(n)).unwrap();
        let (small, large) = (body(N), body(4 * N));
        create(row, &small, Media::Json); // initialize lazy statics
        let (before, after) = (cost_ns(row, &small, Media::Json), cost_ns(row, &large, Media::Json));
        // For four times the size, the ratio is 4 if linear, and 16 if quadratic.
        assert!(after < 9 * before, "{name}: {} and {} us", before / 1000, after / 1000);
    }
}

#[test]
fn errors_and_warnings_are_cut() {
    for (name, kind, make) in CORPUS {
        let outcome = create(row(kind), &serde_json::to_vec(&make(3000)).unwrap(), Media::Json);
        assert!(outcome.message.len() < 1 << 20, "{name}: {}", outcome.message.len());
        assert!(outcome.warnings <= 3100, "{name}: {}", outcome.warnings);
        if outcome.code == 422 && outcome.message.matches("Invalid value").count() >= ERRORS_MAX {
            assert!(outcome.message.ends_with(" more errors are not shown]"), "{name}");
        }
    }
}

fn varint(mut n: usize, out: &mut Vec<u8>) {
    while n > 127 {
        out.push((n & 127) as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

fn message(number: u8, inner: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(inner.len(), &mut out);
    out.extend_from_slice(inner);
    out
}

/// A Pod of this many empty containers, two bytes each.
fn protobuf(containers: usize) -> Vec<u8> {
    let meta = [message(1, b"v1"), message(2, b"Pod")].concat();
    let pod = [message(1, &message(1, b"p")), message(2, &[0x12, 0].repeat(containers))].concat();
    [b"k8s\0".to_vec(), message(1, &meta), message(2, &pod)].concat()
}

#[test]
fn disproportionate_expansions_are_rejected_in_advance() {
    let pods = row("Pod");
    let outcome = create(pods, &protobuf(700_000), Media::Protobuf);
    assert_eq!(
        (outcome.code, &*outcome.message),
        (
            413,
            "Request entity too large: its lists and objects would take more than 34 MiB of memory; split it into several objects"
        )
    );
    let text = format!("{{\"spec\":{{\"containers\":[{}{{}}]}}}}", "{},".repeat(900_000));
    assert_eq!(create(pods, text.as_bytes(), Media::Json).code, 413);
    let text = format!("spec:\n  containers:\n{}", "  - {}\n".repeat(200_000));
    assert_eq!(create(pods, text.as_bytes(), Media::Yaml).code, 413);
    // Small ones are accepted, and rejecting a large one is cheaper.
    assert_eq!(create(pods, &protobuf(5000), Media::Protobuf).code, 422);
    let (small, refused) =
        (cost_ns(pods, &protobuf(5000), Media::Protobuf), cost_ns(pods, &protobuf(700_000), Media::Protobuf));
    assert!(refused < 9 * small, "{} and {} us", small / 1000, refused / 1000);
    // The limit doesn't affect the densest objects that can be stored.
    let rule = json!({"apiGroups": ["x"], "resources": ["y"], "verbs": ["get"]});
    let role = json!({"metadata": {"name": "r"}, "rules": list(25_000, |_| rule.clone())});
    assert_eq!(create(row("Role"), &serde_json::to_vec(&role).unwrap(), Media::Json).code, 201);
}

/// A path: the field names, and whether each is a list (then its first item is meant).
type Way<'a> = Vec<(&'a str, bool)>;

/// The list and map fields of a type, with their element types.
fn many<'a>(found: TypeRef<'a>, way: &mut Way<'a>, seen: &mut BTreeSet<String>, out: &mut Vec<(Way<'a>, &'a Kind)>) {
    for field in &found.of.fields {
        if !seen.insert(format!("{}.{}", found.of.name, field.name)) {
            continue;
        }
        way.push((&field.name, matches!(field.kind, Kind::List(_))));
        let mut kind = &field.kind;
        if let Kind::List(inner) | Kind::Map(inner) = kind {
            out.push((way.clone(), kind));
            kind = inner;
        }
        if let Kind::Object(id) = kind {
            many(found.types.refer(*id), way, seen, out);
        }
        way.pop();
    }
}

fn item(types: &Types, kind: &Kind, i: usize) -> Value {
    match kind {
        Kind::String => json!(format!("x{i}")),
        Kind::Bool => json!(i.is_multiple_of(2)),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => json!(i),
        Kind::Object(id) if types.get(*id).scalar.is_none() => {
            let scalars = types
                .get(*id)
                .fields
                .iter()
                .filter(|f| matches!(f.kind, Kind::String | Kind::Int32 | Kind::Int64) || f.name == "controller");
            Value::Object(scalars.map(|f| (f.name.clone().into_owned(), item(types, &f.kind, i))).collect())
        }
        Kind::Quantity | Kind::Amount => json!(format!("{i}")),
        Kind::Bytes => json!("AA=="),
        _ => Value::Null,
    }
}

fn put(object: &mut Value, way: &[(&str, bool)], value: Value) {
    match way {
        [] => *object = value,
        [(name, _)] => object[*name] = value,
        [(name, false), rest @ ..] => put(&mut object[*name], rest, value),
        [(name, true), rest @ ..] => {
            let list = &mut object[*name];
            if list.as_array().is_none_or(Vec::is_empty) {
                *list = json!([{}]);
            }
            put(&mut list[0], rest, value);
        }
    }
}

/// Tests bodies with thousands of parts in each list and map of every kind.
#[test]
fn every_list_and_map_is_in_proportion() {
    const N: usize = 5000;
    /// Below this, even a quadratic cost is harmless.
    const MEASURED_NS: u64 = 80_000_000;
    let mut seen = BTreeSet::new();
    for (row, declared) in built_in().resources().iter().zip(RESOURCES).filter(|(row, _)| row.prefix.is_some()) {
        let (mut fields, types) = (Vec::new(), row.schema.made().unwrap().get().types);
        many(row.schema.made().unwrap().get(), &mut Vec::new(), &mut seen, &mut fields);
        let example: Value = machinery_api::yaml::read(declared.example).unwrap();
        for ((path, kind), how) in
            fields.iter().flat_map(|field| ["equal", "distinct", "empty"].map(|how| (field, how)))
        {
            let part = |inner: &Kind, i: usize| match (how, inner) {
                ("equal", inner) => item(types, inner, 0),
                ("distinct", inner) => item(types, inner, i),
                (_, Kind::Object(_)) => json!({}),
                _ => json!(""),
            };
            let body = |n: usize| {
                let value = match kind {
                    Kind::List(inner) => list(n, |i| part(inner, i)),
                    Kind::Map(inner) => map(n, |i| (format!("k{i}"), part(inner, i))),
                    other => panic!("{other:?} holds one"),
                };
                let mut object = example.clone();
                put(&mut object, path, value);
                serde_json::to_vec(&object).unwrap()
            };
            let large = body(N);
            let before = running_ns();
            create(row, &large, Media::Json);
            if running_ns() - before > MEASURED_NS {
                let (part, whole) = (cost_ns(row, &body(N / 4), Media::Json), cost_ns(row, &large, Media::Json));
                let place = path.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(".");
                assert!(whole < 9 * part, "{} {place} {how}: {} and {} us", row.kind, part / 1000, whole / 1000);
            }
        }
    }
}
