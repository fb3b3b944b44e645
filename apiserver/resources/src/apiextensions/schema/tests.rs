//! Effects of schemas on objects, in addition to the recorded answers of upstream.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::apiextensions::correlate::Correlated;

fn made(properties: Value) -> Schema {
    compile(&json!({"type": "object", "properties": properties})).unwrap()
}

fn sentences(value: &Value, schema: &Schema) -> Vec<String> {
    let errors = check::check(value, schema, "", None).shown().to_vec();
    errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
}

#[test]
fn unknown_fields_are_pruned_and_reported() {
    let schema = made(json!({"spec": {"type": "object", "properties": {
        "kept": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "within": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}));
    let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"any": 1}, "other": 1, "spec": {
        "kept": {"x": {"y": 1}, "known": {"a": "1", "b": 2}}, "map": {"e": {"a": "1", "b": 2}},
        "list": [{"a": "1"}, {"b": 2}], "within": {"kind": "Pod", "metadata": {"name": "x"}, "spec": {}}}});
    let taken = prune(&mut object, &schema);
    assert_eq!(taken, ["other", "spec.kept.known.b", "spec.list[1].b", "spec.map.e.b"]);
    assert_eq!(object["spec"]["kept"], json!({"x": {"y": 1}, "known": {"a": "1"}}));
    assert_eq!(object["spec"]["within"]["metadata"]["name"], "x");
    assert!(prune(&mut object, &schema).is_empty(), "it settles");
}

#[test]
fn defaults_and_nulls() {
    let schema = made(json!({"spec": {"type": "object", "default": {}, "properties": {
        "a": {"type": "string", "default": "x"}, "n": {"type": "string", "nullable": true, "default": "y"},
        "gone": {"type": "string"}, "list": {"type": "array", "items": {"type": "object", "properties": {
            "port": {"type": "integer", "default": 80}}}}}}}));
    let mut object = json!({});
    fill(&mut object, &schema);
    assert_eq!(object, json!({"spec": {"a": "x", "n": "y"}}));
    let mut object = json!({"spec": {"a": null, "n": null, "gone": null, "list": [{}, {"port": 1}]}});
    drop_nulls(&mut object, Some(&schema));
    fill(&mut object, &schema);
    assert_eq!(object, json!({"spec": {"a": "x", "n": null, "list": [{"port": 80}, {"port": 1}]}}));
}

#[test]
fn sentences_are_upstreams() {
    let schema = made(json!({
        "s": {"type": "string", "maxLength": 3, "minLength": 2, "pattern": "^[a-z]+$"},
        "i": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 5, "exclusiveMaximum": true, "multipleOf": 2},
        "n": {"type": "number", "maximum": 1.5}, "e": {"type": "string", "enum": ["a", "b"]},
        "l": {"type": "array", "maxItems": 1, "items": {"type": "string"}}, "t": {"type": "string", "format": "date-time"},
        "any": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "one": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
            "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        "no": {"type": "string", "not": {"enum": ["x"]}}}));
    for (value, wanted) in [
        (json!({"s": "a"}), vec!["s: Invalid value: \"a\": s in body should be at least 2 chars long"]),
        (json!({"s": "abcd"}), vec!["s: Too long: may not be more than 3 bytes"]),
        (json!({"s": "AB"}), vec!["s: Invalid value: \"AB\": s in body should match '^[a-z]+$'"]),
        (
            json!({"i": 5}),
            vec![
                "i: Invalid value: 5: i in body should be a multiple of 2",
                "i: Invalid value: 5: i in body should be less than 5",
            ],
        ),
        (
            json!({"i": 4_000_000_000_i64}),
            vec![
                "<nil>: Invalid value: \"\": Checked value must be of type integer with format int32 in i",
                "i: Invalid value: 4000000000: i in body should be less than 5",
            ],
        ),
        (json!({"n": 2.5}), vec!["n: Invalid value: 2.5: n in body should be less than or equal to 1.5"]),
        (json!({"e": "c"}), vec!["e: Unsupported value: \"c\": supported values: \"a\", \"b\""]),
        (json!({"l": ["a", "b"]}), vec!["l: Too many: 2: must have at most 1 item"]),
        (
            json!({"t": "yesterday"}),
            vec!["t: Invalid value: \"yesterday\": t in body must be of type date-time: \"yesterday\""],
        ),
        (
            json!({"any": true}),
            vec![
                "any: Invalid value: \"boolean\": any in body must be of type integer,string: \"boolean\"",
                "<nil>: Invalid value: \"\": \"any\" must validate at least one schema (anyOf)",
                "any: Invalid value: \"boolean\": any in body must be of type integer: \"boolean\"",
            ],
        ),
        (
            json!({"one": {"a": "", "b": ""}}),
            vec![
                "<nil>: Invalid value: \"\": \"one\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ],
        ),
        (json!({"no": "x"}), vec!["<nil>: Invalid value: \"\": \"no\" must not validate the schema (not)"]),
        (
            json!({"s": "ab", "i": 2, "n": 1, "e": "a", "l": [], "t": "2026-01-01T00:00:00Z", "any": "5%", "one": {"a": ""}}),
            vec![],
        ),
    ] {
        assert_eq!(sentences(&value, &schema), wanted, "{value}");
    }
}

#[test]
fn unchanged_invalid_values_pass() {
    let schema = compile(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1},
        "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items":
            {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "minimum": 5}}}}}}}}))
    .unwrap();
    let old = json!({"spec": {"a": "long", "l": [{"k": "x", "v": 1}, {"k": "y", "v": 2}]}});
    let wrong = |new: &Value| {
        let errors = check::check(new, &schema, "", Some(&Correlated::new(new, &old, &schema))).shown().to_vec();
        errors.into_iter().map(|error| error.field).collect::<Vec<_>>()
    };
    assert_eq!(wrong(&old), Vec::<String>::new());
    let new = json!({"spec": {"a": "long", "b": "longer", "l": [{"k": "y", "v": 2}, {"k": "x", "v": 3}, {"k": "z", "v": 4}]}});
    assert_eq!(wrong(&new), ["spec.b", "spec.l[1].v", "spec.l[2].v"]);
}

#[test]
fn lists_that_hold_an_item_twice() {
    let schema = made(json!({"spec": {"type": "object", "properties": {
        "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "p"], "items": {"type": "object"}}}}}));
    let object = json!({"spec": {"s": ["a", "b", "a", "a"], "m": [{"k": 1}, {"k": 1, "p": 2}, {"k": 1, "x": 1}]}});
    let found = lists::duplicates(&object, &schema).shown().to_vec();
    let found: Vec<_> = found.iter().map(|error| (error.field.as_str(), error.message.as_str())).collect();
    assert_eq!(found, [("spec.m[2]", "Duplicate value: {\"k\":1}"), ("spec.s[2]", "Duplicate value: \"a\"")]);
}

#[test]
fn paths_find_their_schemas() {
    let object =
        json!({"spec": {"items": [{"name": "a", "n": 1}, {"name": "b", "n": 5}], "a.b": 1, "m": {"x": 1, "y": 2}}});
    let find = |text: &str| {
        path::JsonPath::parse(text).map(|path| path.find(&object).into_iter().cloned().collect::<Vec<_>>())
    };
    for (text, wanted) in [
        (".spec.items[*].name", vec![json!("a"), json!("b")]),
        (".spec.items[1].name", vec![json!("b")]),
        (".spec.items[-1:].n", vec![json!(5)]),
        (".spec.items[?(@.name==\"b\")].n", vec![json!(5)]),
        (".spec.items[?(@.n>2)].name", vec![json!("b")]),
        (".spec['a.b']", vec![json!(1)]),
        (".spec.a\\.b", vec![json!(1)]),
        (".spec.m.*", vec![json!(1), json!(2)]),
        ("..name", vec![json!("a"), json!("b")]),
        (".none", vec![]),
    ] {
        assert_eq!(find(text).unwrap(), wanted, "{text}");
    }
    for text in [".a[", ".a['b", "a", ".a{b}", ".a[?(x"] {
        assert_eq!(find(text), None, "{text}");
    }
}

#[test]
fn formats_and_patterns() {
    for (format, good, bad) in [
        ("email", "a@b.c", "a"),
        ("ipv4", "1.2.3.4", "::1"),
        ("ipv6", "::1", "1.2.3.4"),
        ("cidr", "10.0.0.0/8", "10.0.0.0"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "x"),
        ("uri", "http://a/b", "a b"),
        ("hostname", "a.example", "a_b"),
        ("mac", "00:11:22:33:44:55", "00:11"),
        ("isbn13", "978-0321751041", "978-0321751042"),
        ("creditcard", "4111 1111 1111 1111", "1"),
        ("duration", "3 days", "x"),
        ("date", "2026-02-28", "2026-02-30"),
        ("byte", "YWI=", "YWI"),
        ("hexcolor", "#fff", "fg"),
        ("k8s-short-name", "a-b", "a.b"),
        ("ssn", "111-11-1111", "1"),
        ("rgbcolor", "rgb(1, 2, 255)", "rgb(1)"),
    ] {
        let schema = made(json!({"v": {"type": "string", "format": format}}));
        assert!(sentences(&json!({"v": good}), &schema).is_empty(), "{format} {good}");
        assert!(!sentences(&json!({"v": bad}), &schema).is_empty(), "{format} {bad}");
    }
    for (pattern, text, fits) in [
        (r"^\d+$", "१", false),
        (r"^[\w-]+$", "a-b", true),
        ("^[[]$", "[", true),
        (r"^a\.b$", "axb", false),
        ("[a&&b]", "&", true),
    ] {
        assert_eq!(compile_pattern(pattern).unwrap().is_match(text), fits, "{pattern}");
    }
    assert!(compile_pattern("(").unwrap_err().contains("missing closing )"));
    assert!(compile_pattern("((a{1000}){1000}){1000}").unwrap_err().contains("expression too large"));
}

#[test]
fn schemas_are_bounded() {
    let mut deep = json!({"type": "string"});
    for _ in 0..DEPTH_MAX + 1 {
        deep = json!({"type": "array", "items": deep});
    }
    assert_eq!(compile(&deep).err(), Some(compile::SchemaCompileError::TooDeep));
    let many: Value =
        (0..=NODES_MAX).map(|i| (format!("f{i}"), json!({"type": "string"}))).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(
        compile(&json!({"type": "object", "properties": many})).err(),
        Some(compile::SchemaCompileError::TooLarge)
    );
    // Alternatives over many items end at the bound.
    let alternatives: Vec<Value> = (0..5_000).map(|i| json!({"enum": [i]})).collect();
    let schema = made(json!({"l": {"type": "array", "items": {"type": "integer", "anyOf": alternatives}}}));
    let object = json!({"l": vec![-1; 50_000]});
    assert!(sentences(&object, &schema)[0].contains("too many alternatives"));
}

fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["string", "integer", "number", "boolean", "object", "array", "x"])
            .prop_map(|kind| json!({"type": kind, "default": 1, "format": "date", "pattern": "a+", "minimum": 1, "enum": [1, "a"]})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"x-kubernetes-int-or-string": true, "nullable": true})),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::btree_map("[ab]", inner.clone(), 0..3)
                .prop_map(|map| json!({"type": "object", "properties": map, "required": ["a"]})),
            inner.clone().prop_map(|items| json!({"type": "array", "items": items, "x-kubernetes-list-type": "set"})),
            inner.clone().prop_map(|value| json!({"type": "object", "additionalProperties": value})),
            prop::collection::vec(inner, 0..3)
                .prop_map(|all| json!({"anyOf": all.clone(), "allOf": all.clone(), "oneOf": all})),
        ]
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        "[a-c]{0,3}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::btree_map("[abc]", inner.clone(), 0..3).prop_map(|map| json!(map)),
            prop::collection::vec(inner, 0..3).prop_map(Value::from),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn any_schema_over_any_value(schema in any_schema(), value in any_value(), old in any_value()) {
        let Ok(schema) = compile(&schema) else { return Ok(()) };
        let mut settled = value;
        prune(&mut settled, &schema);
        drop_nulls(&mut settled, Some(&schema));
        fill(&mut settled, &schema);
        let mut again = settled.clone();
        prop_assert!(prune(&mut again, &schema).is_empty() || again != settled, "reported fields are dropped");
        let _ = check::check(&settled, &schema, "", None);
        let unchanged = Correlated::new(&settled, &settled, &schema);
        prop_assert!(check::check(&settled, &schema, "", Some(&unchanged)).is_empty(), "unchanged values are exempt");
        let _ = check::check(&settled, &schema, "", Some(&Correlated::new(&settled, &old, &schema)));
        let _ = lists::duplicates(&settled, &schema);
    }

    #[test]
    fn any_path(text in "[.\\[\\]'\"a-c*?()@=0-9:\\\\]{0,20}", value in any_value()) {
        if let Some(path) = path::JsonPath::parse(&text) {
            let _ = path.find(&value);
        }
        let _ = compile_pattern(&text);
    }
}
