//! Requests and responses recorded from upstream, and properties.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::normalise;

static MAP: LazyLock<Target<'static>> = LazyLock::new(|| Target::kind("", "v1", "ConfigMap").unwrap());
static DEPLOYMENT: LazyLock<Target<'static>> = LazyLock::new(|| Target::kind("apps", "v1", "Deployment").unwrap());

fn config_map() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"a": "1"}}, "data": {"k": "v", "l": "w"}})
}

fn with_pod(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"template": {"spec": spec}}});
    normalise(DEPLOYMENT.schema, &mut object).unwrap();
    object
}

fn patched(kind: PatchKind, patch: &Value, current: &Value, target: &Target<'_>) -> Result<Value, u16> {
    apply(kind, patch.to_string().as_bytes(), current, target, FieldValidation::Warn)
        .map(|d| d.object)
        .map_err(|e| e.status().code)
}

fn pod_after(current: Value, patch: Value) -> Result<Value, u16> {
    let patch = json!({"spec": {"template": {"spec": patch}}});
    patched(PatchKind::Strategic, &patch, &with_pod(current), &DEPLOYMENT)
        .map(|o| o["spec"]["template"]["spec"].clone())
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|c| c["name"].as_str().unwrap()).collect()
}

#[test]
fn json_patches() {
    let data = |patch: Value| patched(PatchKind::Json, &patch, &config_map(), &MAP).map(|o| o["data"].clone());
    for (patch, expected) in [
        (json!([{"op": "replace", "path": "/data/nope", "value": "w"}]), Ok(json!({"k": "v", "l": "w", "nope": "w"}))),
        (json!([{"op": "test", "path": "/data/nope", "value": null}]), Ok(json!({"k": "v", "l": "w"}))),
        (json!([{"op": "test", "path": "/data/nope", "value": "v"}]), Err(422)),
        (
            json!([{"op": "test", "path": "/data/k", "value": "v"}, {"op": "move", "from": "/data/k", "path": "/data/m"}]),
            Ok(json!({"l": "w", "m": "v"})),
        ),
        (
            json!([{"op": "copy", "from": "/data/k", "path": "/data/a.b~1c"}]),
            Ok(json!({"k": "v", "l": "w", "a.b/c": "v"})),
        ),
        (json!([{"op": "remove", "path": "/data/nope"}]), Err(422)),
        (json!([{"op": "add", "path": "/metadata/annotations/x", "value": "y"}]), Err(422)),
        (json!([{"op": "nope", "path": "/data/x", "value": "y"}]), Err(422)),
        (json!([{"op": "replace", "path": "/kind", "value": "Secret"}]), Err(422)),
        (json!([{"op": "add", "path": "/data/x", "value": 1}]), Err(422)),
        (json!({"op": "add", "path": "/data/x", "value": "y"}), Err(400)),
        (Value::Null, Ok(json!({"k": "v", "l": "w"}))),
        (Value::Array(vec![json!({"op": "test", "path": "/data/none"}); 10_001]), Err(413)),
    ] {
        assert_eq!(data(patch.clone()), expected, "{}", patch.to_string().chars().take(100).collect::<String>());
    }
    let text = "x".repeat(1024 * 1024);
    let copies = json!([{"op": "add", "path": "/data/a", "value": text}, {"op": "copy", "from": "/data", "path": "/data/b"}, {"op": "copy", "from": "/data", "path": "/data/c"}]);
    assert_eq!(data(copies), Err(422));
    let decoded = apply(PatchKind::Json, br#"[{"op": "add", "path": "/nope", "value": 1}, {"op": "add", "path": "/data/x", "value": "y", "extra": "z"}]"#, &config_map(), &MAP, FieldValidation::Warn);
    assert_eq!(decoded.unwrap().warnings, [r#"json patch unknown field "[1].extra""#, r#"unknown field "nope""#]);
}

/// Operations on [`refusing_document`], each with the message of gopkg.in/evanphx/json-patch.v4.
const REFUSED_OPERATIONS: &str = r#"{"op":"add","value":1} => add operation failed to decode path: missing value
{"op":"add","path":"","value":1} => add operation does not apply: doc is missing path: "": missing value
{"op":"add","path":"/x/y","value":1} => add operation does not apply: doc is missing path: "/x/y": missing value
{"op":"add","path":"/a/y","value":1} => add operation does not apply: doc is missing path: "/a/y": missing value
{"op":"add","path":"/l/x","value":1} => error in add for path: '/l/x': value was not a proper array index: 'x': strconv.Atoi: parsing "x": invalid syntax
{"op":"add","path":"/l/3","value":1} => error in add for path: '/l/3': Unable to access invalid index: 3: invalid index referenced
{"op":"add","path":"/l/-4","value":1} => error in add for path: '/l/-4': Unable to access invalid index: -4: invalid index referenced
{"op":"remove","path":"/x/y"} => remove operation does not apply: doc is missing path: "/x/y": missing value
{"op":"remove","path":"/x"} => error in remove for path: '/x': Unable to remove nonexistent key: x: missing value
{"op":"remove","path":"/l/-"} => error in remove for path: '/l/-': strconv.Atoi: parsing "-": invalid syntax
{"op":"remove","path":"/l/2"} => error in remove for path: '/l/2': Unable to access invalid index: 2: invalid index referenced
{"op":"remove","path":"/l/9999999999999999999"} => error in remove for path: '/l/9999999999999999999': strconv.Atoi: parsing "9999999999999999999": value out of range
{"op":"replace","value":1} => replace operation failed to decode path: operation missing path field: missing value
{"op":"replace","path":"","value":1} => replace operation value must be object or array: %!w(<nil>)
{"op":"replace","path":"/x/y","value":1} => replace operation does not apply: doc is missing path: /x/y: missing value
{"op":"replace","path":"/l/2","value":1} => replace operation does not apply: doc is missing key: /l/2: missing value
{"op":"move","path":"/x"} => move operation failed to decode from: operation, missing from field: missing value
{"op":"move","from":"/x/y","path":"/z"} => move operation does not apply: doc is missing from path: /x/y: missing value
{"op":"move","from":"/m/x","path":"/z"} => error in move for path: 'x': Unable to remove nonexistent key: x: missing value
{"op":"move","from":"/a","path":"/x/y"} => move operation does not apply: doc is missing destination path: /x/y: missing value
{"op":"copy","path":"/x"} => copy operation failed to decode from: operation, missing from field: missing value
{"op":"copy","from":"/x/y","path":"/z"} => copy operation does not apply: doc is missing from path: /x/y: missing value
{"op":"copy","from":"/l/5","path":"/z"} => error in copy for from: '/l/5': Unable to access invalid index: 5: invalid index referenced
{"op":"copy","from":"/a","path":"/x/y"} => copy operation does not apply: doc is missing destination path: /x/y: missing value
{"op":"copy","from":"/a","path":"/l/7"} => error while adding value during copy: Unable to access invalid index: 7: invalid index referenced
{"op":"test","path":"/x/y","value":1} => test operation does not apply: is missing path: /x/y: missing value
{"op":"test","path":"/l/2","value":1} => error in test for path: '/l/2': Unable to access invalid index: 2: invalid index referenced
{"op":"nope","path":"/a"} => Unexpected kind: nope"#;

fn refusing_document() -> Value {
    json!({"a": "b", "m": {"k": 1}, "l": [1, 2], "n": null})
}

#[test]
fn a_failed_json_patch_has_upstreams_message() {
    let document = refusing_document();
    for line in REFUSED_OPERATIONS.lines() {
        let (operation, why) = line.split_once(" => ").unwrap();
        let found = json_refusal(format!("[{operation}]").as_bytes(), &document);
        assert_eq!(found, Some(JsonPatchRefusal::Operation(why.to_owned())), "{operation}");
    }
    let test = |path: &str, value: Value| {
        json_refusal(json!([{"op": "test", "path": path, "value": value}]).to_string().as_bytes(), &document)
    };
    let failed = |path: &str| Some(JsonPatchRefusal::Test(format!("testing value {path} failed: test failed")));
    for (path, value, found) in [
        ("/a", json!("b"), None),
        ("/n", Value::Null, None),
        ("/none", Value::Null, None),
        ("/a", json!("c"), failed("/a")),
        ("/none", json!(1), failed("/none")),
        ("", json!({}), failed("")),
    ] {
        assert_eq!(test(path, value), found, "{path}");
    }
}

#[test]
fn merge_patches() {
    let after = |patch: Value| patched(PatchKind::Merge, &patch, &config_map(), &MAP);
    assert_eq!(
        after(json!({"data": {"k": null, "none": null}, "metadata": {"labels": {"a": null, "c": "3"}}})).unwrap(),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"c": "3"}}, "data": {"l": "w"}})
    );
    for (patch, code) in [
        (json!([]), 400),
        (json!("text"), 400),
        (Value::Null, 400),
        (json!({"data": {"k": 1}}), 422),
        (json!({"data": "text"}), 422),
        (json!({"kind": "Secret"}), 422),
        (json!({"apiVersion": "v2"}), 422),
    ] {
        assert_eq!(after(patch.clone()), Err(code), "{patch}");
    }
    for text in ["{", "", "data:\n  k: w\n"] {
        assert_eq!(
            apply(PatchKind::Merge, text.as_bytes(), &config_map(), &MAP, FieldValidation::Ignore)
                .unwrap_err()
                .status()
                .code,
            400
        );
    }
    let strict = apply(
        PatchKind::Merge,
        br#"{"nope": 1, "metadata": {"nope": 2}}"#,
        &config_map(),
        &MAP,
        FieldValidation::Strict,
    )
    .unwrap_err()
    .status();
    assert!(
        strict.message.ends_with(r#": strict decoding error: unknown field "metadata.nope", unknown field "nope""#),
        "{}",
        strict.message
    );
    assert!(strict.message.starts_with(r#" "" is invalid: patch: Invalid value: "{"#), "{}", strict.message);
}

#[test]
fn strategic_lists_keep_upstreams_order() {
    let current = json!({"containers": [{"name": "hello", "image": "i"}]});
    let one = pod_after(current, json!({"containers": [{"name": "first", "image": "i"}]})).unwrap();
    assert_eq!(names(&one["containers"]), ["first", "hello"]);
    let two = pod_after(one, json!({"$setElementOrder/containers": [{"name": "zero"}, {"name": "first"}, {"name": "hello"}], "containers": [{"name": "zero", "image": "i"}]})).unwrap();
    assert_eq!(names(&two["containers"]), ["zero", "first", "hello"]);
    let three =
        pod_after(two.clone(), json!({"$setElementOrder/containers": [{"name": "hello"}, {"name": "zero"}]})).unwrap();
    assert_eq!(names(&three["containers"]), ["first", "hello", "zero"]);
    let four = pod_after(two, json!({"containers": [{"name": "only", "image": "i"}, {"$patch": "replace"}]})).unwrap();
    assert_eq!(names(&four["containers"]), ["only"]);
}

#[test]
fn strategic_directives() {
    let env = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]);
    let current = json!({"containers": [{"name": "c", "env": env, "ports": [{"containerPort": 80, "protocol": "TCP"}], "args": ["a"]}],
        "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "a"}], "nodeSelector": {"a": "b"}});
    let container =
        |patch: Value| pod_after(current.clone(), json!({"containers": [patch]})).map(|s| s["containers"][0].clone());
    assert_eq!(
        container(json!({"name": "c", "env": [{"name": "B", "value": "two"}, {"name": "C", "value": "3"}]})).unwrap()["env"],
        json!([{"name": "A", "value": "1"}, {"name": "B", "value": "two"}, {"name": "C", "value": "3"}])
    );
    let moved = container(json!({"name": "c", "env": [{"name": "A", "value": null, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "B", "$patch": "delete"}]})).unwrap();
    assert_eq!(moved["env"], json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]));
    assert_eq!(
        container(json!({"name": "c", "ports": [{"containerPort": 80, "protocol": "UDP"}, {"containerPort": 81}]}))
            .unwrap()["ports"],
        json!([{"containerPort": 80, "protocol": "UDP"}, {"containerPort": 81}])
    );
    assert_eq!(container(json!({"name": "c", "args": ["b"]})).unwrap()["args"], json!(["b"]));
    let pod = |patch: Value| pod_after(current.clone(), patch);
    assert_eq!(pod(json!({"tolerations": [{"key": "b"}]})).unwrap()["tolerations"], json!([{"key": "b"}]));
    assert_eq!(
        pod(json!({"volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}}]}))
            .unwrap()["volumes"],
        json!([{"name": "v", "configMap": {"name": "c"}}])
    );
    assert_eq!(
        pod(json!({"nodeSelector": {"$patch": "replace", "b": "c"}})).unwrap()["nodeSelector"],
        json!({"b": "c"})
    );
    assert_eq!(pod(json!({"nodeSelector": null})).unwrap().get("nodeSelector"), None);
    for patch in [
        json!({"containers": [{"image": "no key"}]}),
        json!({"containers": [{"name": "c", "$patch": "nope"}]}),
        json!({"containers": [{"name": "c"}, 1]}),
        json!({"$patch": "merge"}),
        json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "c"}]}),
        json!({"$setElementOrder/containers": 1}),
        json!({"$setElementOrder/nope": []}),
        json!({"$retainKeys": 1}),
        json!({"$retainKeys": ["volumes"], "containers": [{"name": "c"}]}),
        json!({"$deleteFromPrimitiveList": ["x"]}),
    ] {
        assert_eq!(pod(patch.clone()), Err(400), "{patch}");
    }
    let finalizers =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "finalizers": ["a/b", "c/d"]}});
    let after = |patch: Value| {
        patched(PatchKind::Strategic, &patch, &finalizers, &MAP).unwrap()["metadata"]["finalizers"].clone()
    };
    assert_eq!(after(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"]}})), json!(["c/d"]));
    assert_eq!(after(json!({"metadata": {"finalizers": ["e/f", "a/b"]}})), json!(["e/f", "a/b", "c/d"]));
}

#[test]
fn rejections_have_upstreams_messages() {
    let cause = |kind, patch: &Value, current: &Value, target| {
        let error = apply(kind, patch.to_string().as_bytes(), current, target, FieldValidation::Warn).unwrap_err();
        error.status().details.unwrap().causes[0].message.rsplit(": ").next().unwrap().to_owned()
    };
    let deployment = with_pod(json!({"containers": [{"name": "a", "image": "i"}]}));
    for (patch, wanted) in [
        (json!({"spec": {"replicas": "x"}}), "unrecognized type: int32"),
        (json!({"spec": {"minReadySeconds": 1.5}}), "cannot convert float64 to int32"),
        (json!({"spec": {"paused": 1}}), "unrecognized type: bool"),
        (json!({"spec": "x"}), "cannot restore struct from: string"),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "ports": "x"}]}}}}),
            "cannot restore slice from string",
        ),
        (json!({"metadata": {"labels": {"a": 1}}}), "cannot convert int64 to string"),
        (json!({"metadata": {"labels": []}}), "cannot restore map from slice"),
        (json!({"kind": 3}), "cannot convert int64 to string"),
        (json!({"apiVersion": true}), "unrecognized type: string"),
    ] {
        let got = cause(PatchKind::Strategic, &patch, &deployment, &DEPLOYMENT);
        assert!(wanted.ends_with(&got), "{patch}: {got}");
    }
    for (patch, wanted) in [
        (json!({"apiVersion": "a/b/c"}), "a/b/c"),
        (json!({"kind": [], "apiVersion": ""}), "cannot unmarshal array into Go struct field .kind of type string"),
        (json!({"kind": "Secret"}), "illegal base64 data at input byte 0"),
        (json!({"kind": "Secret", "data": null}), "unknown conversion"),
    ] {
        assert_eq!(cause(PatchKind::Merge, &patch, &config_map(), &MAP), wanted, "{patch}");
    }
    // Without a version the object is empty, without even a name.
    let patch = json!({"apiVersion": null}).to_string();
    let nothing = apply(PatchKind::Merge, patch.as_bytes(), &config_map(), &MAP, FieldValidation::Warn).unwrap();
    assert_eq!(nothing.warnings, ["unknown field \"data\"", "unknown field \"metadata\""]);
    assert!(nothing.object["metadata"]["name"].is_null());
}

fn small() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(Value::Null), Just(json!("x")), Just(json!(1)), Just(json!("delete")), Just(json!("replace"))];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            Just("metadata"),
            Just("spec"),
            Just("template"),
            Just("containers"),
            Just("name"),
            Just("env"),
            Just("finalizers"),
            Just("labels"),
            Just("$patch"),
            Just("$retainKeys"),
            Just("$setElementOrder/containers"),
            Just("$deleteFromPrimitiveList/finalizers"),
            Just("op"),
            Just("path"),
            Just("value"),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::vec((key, inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_patch_is_applied_or_refused_with_a_4xx(patch in small(), path in "(/|metadata|spec|finalizers|-|0|-1|~1|name){0,6}", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let current = with_pod(json!({"containers": [{"name": "x", "env": [{"name": "x"}]}]}));
        let operations = json!([{"op": "add", "path": path, "value": patch}, {"op": "copy", "from": path, "path": "/metadata/x"}, {"op": "remove", "path": path}]);
        for kind in [PatchKind::Json, PatchKind::Merge, PatchKind::Strategic] {
            for body in [patch.to_string().into_bytes(), operations.to_string().into_bytes(), bytes.clone()] {
                if let Err(error) = apply(kind, &body, &current, &DEPLOYMENT, FieldValidation::Strict) {
                    prop_assert!((400..500).contains(&error.status().code));
                }
            }
        }
    }

    #[test]
    fn an_object_merged_into_itself_stays(labels in proptest::collection::btree_map("[a-c]", "[a-z]{0,3}", 1..3)) {
        let mut current = config_map();
        current["metadata"]["labels"] = json!(labels);
        for kind in [PatchKind::Merge, PatchKind::Strategic] {
            prop_assert_eq!(patched(kind, &current, &current, &MAP).unwrap(), current.clone());
        }
    }
}

#[test]
fn large_patches_end_soon() {
    let many = |n: usize| (0..n).map(|i| format!("f/{i}")).collect::<Vec<_>>();
    let mut current = config_map();
    current["metadata"]["finalizers"] = json!(many(10_000));
    let patch = json!({"metadata": {"finalizers": many(20_000), "$setElementOrder/finalizers": many(20_000)}});
    assert!(patched(PatchKind::Strategic, &patch, &current, &MAP).is_ok());
    let env = (0..2_000).map(|i| json!({"name": format!("e{i}")})).collect::<Vec<_>>();
    let same = vec![json!({"name": "c", "env": [{"name": "z"}]}); 1_000];
    assert_eq!(pod_after(json!({"containers": [{"name": "c", "env": env}]}), json!({"containers": same})), Err(400));
    let insertions = vec![json!({"op": "add", "path": "/metadata/finalizers/0", "value": "x"}); 9_999];
    assert_eq!(patched(PatchKind::Json, &json!(insertions), &current, &MAP), Err(422));
}
