//! Values of every type survive JSON and WAVE unchanged; invalid input is rejected with its path.

use proptest::prelude::*;
use wasmtime::component::Val;

use super::budget::{Budget, VALUE_BYTES};
use super::describe::describe;
use super::types::{Description, Function, Labels, Shape, Type, TypeId};
use super::{json, schema, wave};

const PLENTY: usize = 64 << 20;

/// Every plain type, then types composed of them: each of `shapes` may refer to any before it.
fn description(shapes: Vec<Shape>) -> Description {
    let plain = [
        Shape::Bool,
        Shape::S8,
        Shape::U8,
        Shape::S16,
        Shape::U16,
        Shape::S32,
        Shape::U32,
        Shape::S64,
        Shape::U64,
        Shape::F32,
        Shape::F64,
        Shape::Char,
        Shape::String,
    ];
    let types = plain.into_iter().chain(shapes);
    let types: Vec<Type> = types.map(|shape| Type { name: None, interface: String::new(), shape }).collect();
    let last = TypeId(types.len() as u32 - 1);
    let function = Function {
        interface: Some("acme:toolbox/shapes@1.2.0".into()),
        name: "echo".into(),
        parameters: vec!["value".to_owned()].into(),
        parameter_types: vec![last],
        result: Some(last),
    };
    Description::new(String::new(), vec![function], types).unwrap()
}

const U8: TypeId = TypeId(2);
const U32: TypeId = TypeId(6);
const U64: TypeId = TypeId(8);
const F64: TypeId = TypeId(10);
const STRING: TypeId = TypeId(12);
const FIRST: u32 = 13;
/// Key types of maps.
const KEYS: [TypeId; 5] = [TypeId(0), TypeId(3), U64, TypeId(11), STRING];

fn labels(count: usize) -> Labels {
    (0..count)
        .map(|at| ["some", "ok", "a", "b-c", "none", "nan", "x1", "true"][at].to_owned())
        .collect::<Vec<_>>()
        .into()
}

/// Types that refer to earlier ones; the last one refers to its predecessor, so that depth is tested.
fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let seeds =
        proptest::collection::vec((0u8..10, proptest::collection::vec(any::<u32>(), 1..5), any::<bool>()), 1..9);
    seeds.prop_map(|seeds| {
        let mut shapes = Vec::new();
        for (kind, picks, bare) in seeds {
            let known = FIRST + shapes.len() as u32;
            let of: Vec<TypeId> = picks
                .iter()
                .enumerate()
                .map(|(at, pick)| TypeId(if at == 0 && known > FIRST { known - 1 } else { pick % known }))
                .collect();
            let maybe = |id: &TypeId| if bare { None } else { Some(*id) };
            shapes.push(match kind {
                0 => Shape::List(of[0]),
                1 => Shape::Record(labels(of.len()), of),
                2 => Shape::Tuple(of),
                3 => Shape::Variant(labels(of.len() + 1), of.iter().map(|id| Some(*id)).chain([None]).collect()),
                4 => Shape::Enum(labels(of.len())),
                5 | 6 => Shape::Option(of[0]),
                7 => Shape::Result(Some(of[0]), of.get(1).and_then(maybe)),
                // Keys are plain.
                8 => Shape::Map(KEYS[picks[0] as usize % KEYS.len()], of[0]),
                _ => Shape::Flags(labels(of.len())),
            });
        }
        shapes
    })
}

/// A value of the type, from a stream of numbers.
fn value(description: &Description, ty: TypeId, next: &mut dyn FnMut() -> u64) -> Val {
    let pick = next();
    let float = |bits: u64| match bits % 7 {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => f64::NEG_INFINITY,
        3 => (bits >> 8) as f64,
        4 => -0.0,
        5 => 1e-310,
        _ => Some(f64::from_bits(bits)).filter(|value| value.is_finite()).unwrap_or(0.1),
    };
    let text = |bits: u64| -> String {
        let chars = ['a', '"', '\\', '\n', '\u{0}', '\u{7f}', 'é', '☃', '\u{10ffff}', '\'', '{', '\u{2028}', '/'];
        (0..bits % 7).map(|at| chars[((bits >> (4 * at)) % chars.len() as u64) as usize]).collect()
    };
    let of = |id: &TypeId, next: &mut dyn FnMut() -> u64| value(description, *id, next);
    match description.shape(ty) {
        Shape::Bool => Val::Bool(pick.is_multiple_of(2)),
        Shape::S8 => Val::S8(pick as i8),
        Shape::U8 => Val::U8(pick as u8),
        Shape::S16 => Val::S16(pick as i16),
        Shape::U16 => Val::U16(pick as u16),
        Shape::S32 => Val::S32(pick as i32),
        Shape::U32 => Val::U32(pick as u32),
        Shape::S64 => Val::S64((pick as i64) >> (pick % 64)),
        Shape::U64 => Val::U64(pick >> (pick % 64)),
        Shape::F32 => Val::Float32(float(pick) as f32),
        Shape::F64 => Val::Float64(float(pick)),
        Shape::Char => Val::Char(char::from_u32((pick % 0x11_0000) as u32).unwrap_or('\'')),
        Shape::String | Shape::Own(_) | Shape::Borrow(_) => Val::String(text(pick)),
        Shape::List(id) => Val::List((0..pick % 4).map(|_| of(id, next)).collect()),
        Shape::Record(labels, types) => {
            Val::Record(labels.names().iter().zip(types).map(|(name, id)| (name.clone(), of(id, next))).collect())
        }
        Shape::Map(key, id) => {
            let pairs = (0..pick % 4).map(|_| (of(key, next), of(id, next))).collect::<Vec<_>>();
            let mut known = std::collections::BTreeSet::new();
            Val::Map(pairs.into_iter().filter(|(key, _)| known.insert(super::maps::display_key(key))).collect())
        }
        Shape::Tuple(types) => Val::Tuple(types.iter().map(|id| of(id, next)).collect()),
        Shape::Variant(labels, types) => {
            let at = (pick % types.len() as u64) as usize;
            Val::Variant(labels.names()[at].clone(), types[at].map(|id| Box::new(of(&id, next))))
        }
        Shape::Enum(labels) => Val::Enum(labels.names()[(pick % labels.names().len() as u64) as usize].clone()),
        Shape::Option(id) => Val::Option((!pick.is_multiple_of(3)).then(|| Box::new(of(id, next)))),
        Shape::Result(ok, _) if pick.is_multiple_of(2) => Val::Result(Ok(ok.map(|id| Box::new(of(&id, next))))),
        Shape::Result(_, err) => Val::Result(Err(err.map(|id| Box::new(of(&id, next))))),
        Shape::Flags(labels) => {
            let names = labels.names().iter().enumerate().filter(|(at, _)| pick >> at & 1 == 1);
            Val::Flags(names.map(|(_, name)| name.clone()).collect())
        }
    }
}

/// Parses the written value as the only argument.
fn through_json(description: &Description, value: &Val) -> Result<Val, String> {
    let ty = description.functions[0].result;
    let text = json::result(description, ty, Some(value), PLENTY).expect("short enough");
    let body = [b"{\"value\":", &text[..], b"}"].concat();
    let mut read = json::arguments(description, &description.functions[0], &body, &Budget::new(PLENTY))?;
    Ok(read.remove(0))
}

fn through_wave(description: &Description, value: &Val) -> Result<Val, String> {
    let text = wave::result(Some(value), PLENTY).expect("short enough");
    let body = [b"(", &text[..], b")"].concat();
    let mut read = wave::arguments(description, &description.functions[0], &body, &Budget::new(PLENTY))
        .map_err(|why| format!("{why} in {}", String::from_utf8_lossy(&body)))?;
    Ok(read.remove(0))
}

/// As `==`, including the signs of zeros, which JSON and WAVE preserve.
fn same(a: &Val, b: &Val) -> bool {
    a == b && format!("{a:?}") == format!("{b:?}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_value_of_any_type_comes_back_from_json_and_from_wave(shapes in shapes(), seed in any::<u64>()) {
        let description = description(shapes);
        let ty = description.functions[0].result.unwrap();
        let mut state = seed | 1;
        let mut next = || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        let value = value(&description, ty, &mut next);
        let read = through_json(&description, &value).unwrap();
        prop_assert!(same(&read, &value), "{read:?} is not {value:?}");
        let read = through_wave(&description, &value).unwrap();
        prop_assert!(same(&read, &value), "{read:?} is not {value:?}");
        // A serialized and parsed description is the same plugin.
        prop_assert_eq!(&Description::read(&serde_json::to_vec(&description).unwrap()).unwrap(), &description);
        schema::texts(&description, "p").unwrap_or_else(|why| panic!("{why}"));
    }

    #[test]
    fn no_text_makes_a_reader_panic(shapes in shapes(), body in "[\\[\\]{}(),:\"'\\\\a-z0-9.eE+\\-% \u{0}\u{e9}\n]{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let description = description(shapes);
        let function = &description.functions[0];
        for text in [body.as_bytes(), &bytes[..], format!("{{\"value\":{body}").as_bytes(), format!("{{\"value\":{body}}}").as_bytes(), format!("({body})").as_bytes()] {
            let (first, second) = (Budget::new(PLENTY), Budget::new(PLENTY));
            let _ = json::arguments(&description, function, text, &first);
            let _ = wave::arguments(&description, function, text, &second);
            // Memory is proportional to the input: labels of a record are the type's, once per object.
            prop_assert!(first.used() <= (text.len() + 1) * 1200 && second.used() <= (text.len() + 1) * 1200);
        }
    }
}

fn error_of(shapes: Vec<Shape>, body: &str) -> String {
    let description = description(shapes);
    json::arguments(&description, &description.functions[0], body.as_bytes(), &Budget::new(PLENTY)).unwrap_err()
}

fn point() -> Vec<Shape> {
    vec![Shape::Record(vec!["x".to_owned(), "y".to_owned()].into(), vec![U8, F64]), Shape::List(TypeId(FIRST))]
}

#[test]
fn errors_name_the_argument_and_the_type_wanted() {
    for (shapes, body, expected) in [
        (
            point(),
            r#"{"value":[{"x":1,"y":2},{"x":300,"y":2}]}"#,
            r#"argument "value"[1].x: 300 is out of the range of u8"#,
        ),
        (point(), r#"{"value":[{"x":"1","y":2}]}"#, r#"argument "value"[0].x: wanted u8, found the string "1""#),
        (point(), r#"{"value":[{"x":1}]}"#, r#"argument "value"[0].y: it is missing, wanted f64"#),
        (point(), r#"{"value":[{"x":1,"x":1,"y":1}]}"#, r#"argument "value"[0].x: it is given twice"#),
        (point(), r#"{"value":[{"z":1}]}"#, r#"argument "value"[0]: record has no field "z"; it has x, y"#),
        (point(), r#"{"value":[{"x":1.5,"y":1}]}"#, r#"argument "value"[0].x: wanted u8, found a fraction"#),
        (point(), r#"{"value":[{"x":1,"y":1e999}]}"#, r#"argument "value"[0].y: 1e999 is out of the range of f64"#),
        (point(), r#"{"value":[{"x":1,"y":"nan"}]}"#, r#"argument "value"[0].y: wanted f64, found the string "nan""#),
        (point(), r#"{"value":{}}"#, r#"argument "value": wanted list<record>, found an object"#),
        (point(), r#"{"value":null}"#, r#"argument "value": wanted list<record>, found null"#),
        (point(), "{}", r#"argument "value": it is missing, wanted list<record>"#),
        (point(), "", r#"argument "value": it is missing, wanted list<record>"#),
        (point(), r#"{"value":[],"value":[]}"#, r#"argument "value": it is given twice"#),
        (point(), r#"{"other":1}"#, r#"echo has no argument "other"; it has value"#),
        (point(), "[]", "invalid type: sequence, expected an object of arguments by name"),
        (
            point(),
            "{\"value\":[",
            "argument \"value\"[0]: the body is not JSON: EOF while parsing a list at line 1 column 10",
        ),
        (point(), "{\"value\":[]} x", "the body is not JSON: trailing characters at line 1 column 14"),
    ] {
        assert_eq!(error_of(shapes, body), expected, "{body}");
    }
}

#[test]
fn errors_name_the_expected_type_without_fields() {
    for (shapes, body, expected) in [
        (
            vec![Shape::List(U8)],
            r#"{"value":"%%"}"#,
            r#"argument "value": wanted bytes as base64: Invalid symbol 37, offset 0."#,
        ),
        (
            vec![Shape::Enum(labels(2))],
            r#"{"value":"zz"}"#,
            r#"argument "value": wanted enum (one of some, ok), found "zz""#,
        ),
        (vec![Shape::Flags(labels(2))], r#"{"value":["ok","ok"]}"#, r#"argument "value": the flag ok is given twice"#),
        (
            vec![Shape::Tuple(vec![U8, U8])],
            r#"{"value":[1]}"#,
            r#"argument "value": wanted tuple<u8, u8>, found an array of 1, not 2"#,
        ),
        (
            vec![Shape::Tuple(vec![U8])],
            r#"{"value":[1,2]}"#,
            r#"argument "value": wanted tuple<u8>, found an array of more than 1"#,
        ),
        (
            vec![Shape::Variant(labels(2), vec![Some(U8), None])],
            r#"{"value":"some"}"#,
            r#"argument "value": the case some has a payload: wanted {"some": …}"#,
        ),
        (
            vec![Shape::Variant(labels(2), vec![Some(U8), None])],
            r#"{"value":{"ok":1}}"#,
            r#"argument "value".ok: invalid type: integer `1`, expected null: it has no payload"#,
        ),
        (
            vec![Shape::Variant(labels(2), vec![Some(U8), None])],
            r#"{"value":{"ok":null,"some":1}}"#,
            r#"argument "value": wanted variant, found an object of several members"#,
        ),
        (
            vec![Shape::Result(Some(U8), None)],
            r#"{"value":{}}"#,
            r#"argument "value": wanted result<u8, _>, found an empty object"#,
        ),
        (
            vec![Shape::Option(U32), Shape::Option(TypeId(FIRST))],
            r#"{"value":1}"#,
            "argument \"value\": invalid type: integer `1`, expected null or an object with the one member \"some\"",
        ),
        (
            vec![Shape::Option(U64)],
            r#"{"value":"18446744073709551616"}"#,
            r#"argument "value": 18446744073709551616 is out of the range of u64"#,
        ),
        (
            vec![Shape::Option(U64)],
            r#"{"value":18446744073709551616}"#,
            r#"argument "value": 18446744073709552000 is out of the range of u64"#,
        ),
        (vec![Shape::Option(U64)], r#"{"value":"+1"}"#, r#"argument "value": wanted u64, found the string "+1""#),
    ] {
        assert_eq!(error_of(shapes, body), expected, "{body}");
    }
}

#[test]
fn errors_name_the_key_of_a_map() {
    for (shapes, body, expected) in [
        (
            vec![Shape::Map(STRING, U8)],
            r#"{"value":{"a":300}}"#,
            r#"argument "value"["a"]: 300 is out of the range of u8"#,
        ),
        (vec![Shape::Map(STRING, U8)], r#"{"value":{"a":1,"a":2}}"#, r#"argument "value": the key "a" is given twice"#),
        (
            vec![Shape::Map(STRING, U8)],
            r#"{"value":[]}"#,
            r#"argument "value": wanted map<string, u8>, found an array"#,
        ),
        (vec![Shape::Map(U8, U8)], r#"{"value":{}}"#, r#"argument "value": wanted map<u8, u8>, found an object"#),
        (
            vec![Shape::Map(U8, U8)],
            r#"{"value":[[1,2],[1]]}"#,
            r#"argument "value"[1]: wanted an array of a key and its value"#,
        ),
        (vec![Shape::Map(U8, U8)], r#"{"value":[[1,2],[1,3]]}"#, r#"argument "value": the key "1" is given twice"#),
    ] {
        assert_eq!(error_of(shapes, body), expected, "{body}");
    }
}

#[test]
fn errors_in_wave_name_the_same() {
    let wrong_wave = |shapes: Vec<Shape>, body: &str| {
        let description = description(shapes);
        wave::arguments(&description, &description.functions[0], body.as_bytes(), &Budget::new(PLENTY)).unwrap_err()
    };
    for (body, expected) in [
        ("([{x: 1, y: 2}, {x: 300, y: 2}])", r#"argument "value"[1].x: wanted u8, found 300"#),
        ("([{x: 1}])", r#"argument "value"[0].y: it is missing, wanted f64"#),
        ("([{x: 1, y: 1e999}])", r#"argument "value"[0].y: 1e999 is out of the range of f64"#),
        ("([{z: 1}])", r#"argument "value"[0]: record has no "z"; it has x, y"#),
        ("()", r#"argument "value": it is missing, wanted list<record>"#),
        ("([], [])", "echo has 1 argument, not 2"),
        ("[]", "the body is not WAVE: wanted the arguments in parentheses, such as (\"a\", 1)"),
    ] {
        assert_eq!(wrong_wave(point(), body), expected, "{body}");
    }
    let map = || vec![Shape::Map(STRING, U8)];
    assert_eq!(wrong_wave(map(), "([(\"a\", 300)])"), r#"argument "value"["a"]: wanted u8, found 300"#);
    assert_eq!(wrong_wave(map(), "([(\"a\", 1), (\"a\", 2)])"), r#"argument "value": the key "a" is given twice"#);
    assert_eq!(
        wrong_wave(map(), "([(\"a\", 1, 2)])"),
        r#"argument "value": wanted map<string, u8>, found ("a", 1, 2)"#
    );
    assert!(wrong_wave(point(), "([{x: 1, x: 1, y: 1}])").contains("duplicate field"));
}

#[test]
fn both_forms_are_taken_where_the_contract_has_two() {
    let read = |shapes: Vec<Shape>, body: &str| {
        let description = description(shapes);
        let body = format!("{{\"value\":{body}}}");
        json::arguments(&description, &description.functions[0], body.as_bytes(), &Budget::new(PLENTY))
            .unwrap()
            .remove(0)
    };
    let bytes = Val::List(vec![Val::U8(1), Val::U8(255)]);
    for form in ["[1, 255]", "\"Af8=\"", "\"Af8\""] {
        assert_eq!(read(vec![Shape::List(U8)], form), bytes, "{form}");
    }
    for form in ["9007199254740993", "\"9007199254740993\""] {
        let list = read(vec![Shape::List(U64)], &format!("[{form}]"));
        assert_eq!(list, Val::List(vec![Val::U64((1 << 53) + 1)]));
    }
    assert_eq!(read(vec![Shape::List(U64)], "[1.0, 1e3]"), Val::List(vec![Val::U64(1), Val::U64(1000)]));
    let shape = || Shape::Variant(labels(2), vec![Some(U8), None]);
    assert_eq!(read(vec![shape()], "\"ok\""), read(vec![shape()], "{\"ok\": null}"));
    // Optional fields may be left out of a record.
    let record = Shape::Record(labels(1), vec![TypeId(FIRST)]);
    assert_eq!(
        read(vec![Shape::Option(U8), record.clone()], "{}"),
        read(vec![Shape::Option(U8), record], "{\"some\": null}")
    );
}

#[test]
fn the_forms_are_the_contracts() {
    let written = |shapes: Vec<Shape>, value: Val| {
        let description = description(shapes);
        let text = json::result(&description, description.functions[0].result, Some(&value), PLENTY).unwrap();
        String::from_utf8(text).unwrap()
    };
    let some = |value| Val::Option(Some(Box::new(value)));
    let nested = || vec![Shape::Option(U32), Shape::Option(TypeId(FIRST))];
    assert_eq!(written(nested(), Val::Option(None)), "null");
    assert_eq!(written(nested(), some(Val::Option(None))), r#"{"some":null}"#);
    assert_eq!(written(nested(), some(some(Val::U32(1)))), r#"{"some":1}"#);
    assert_eq!(written(vec![Shape::List(U8)], Val::List(vec![Val::U8(0), Val::U8(255)])), "\"AP8=\"");
    assert_eq!(written(vec![Shape::Result(None, Some(STRING))], Val::Result(Ok(None))), r#"{"ok":null}"#);
    let max = Val::List(vec![Val::U64(1 << 53), Val::U64((1 << 53) + 1)]);
    assert_eq!(written(vec![Shape::List(U64)], max), r#"[9007199254740992,"9007199254740993"]"#);
    let floats = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.5].map(Val::Float64);
    assert_eq!(written(vec![Shape::List(F64)], Val::List(floats.to_vec())), r#"["NaN","inf","-inf",1.5]"#);
    let map = |keys: Vec<Val>| Val::Map(keys.into_iter().map(|key| (key, Val::Bool(true))).collect());
    let texts = map(vec![Val::String("b c".into()), Val::String("a".into())]);
    assert_eq!(written(vec![Shape::Map(STRING, TypeId(0))], texts.clone()), r#"{"b c":true,"a":true}"#);
    assert_eq!(written(vec![Shape::Map(U64, TypeId(0))], map(vec![Val::U64(7)])), "[[7,true]]");
    assert_eq!(wave::result(Some(&texts), PLENTY).unwrap(), br#"[("b c", true), ("a", true)]"#);
    let description = description(vec![Shape::List(U8)]);
    assert_eq!(json::result(&description, None, None, 4).unwrap(), b"null");
    assert_eq!(wave::result(None, 2).unwrap(), b"()");
    assert_eq!(json::result(&description, None, None, 3), None, "too long");
    assert_eq!(wave::result(Some(&Val::String("12345678".into())), 9), None, "too long");
}

#[test]
fn values_are_bounded_before_allocation() {
    let description = description(vec![Shape::List(U8), Shape::List(TypeId(FIRST))]);
    let function = &description.functions[0];
    let max = 1000 * VALUE_BYTES;
    let million = format!("{{\"value\":[{}[]]}}", "[],".repeat(1_000_000));
    for body in [million, format!("{{\"value\":[\"{}\"]}}", "A".repeat(1_000_000))] {
        let budget = Budget::new(max);
        let why = json::arguments(&description, function, body.as_bytes(), &budget).unwrap_err();
        assert!(why.starts_with("argument \"value\"") && why.contains("take more than"), "{why}");
        assert!(budget.used() <= max);
    }
    let many = format!("([{}])", "[], ".repeat(100_000));
    let why = wave::arguments(&description, function, many.as_bytes(), &Budget::new(max)).unwrap_err();
    assert!(why.contains("take more than"), "{why}");
    for deep in ["[".repeat(1_000_000), format!("{{\"value\":{}", "[".repeat(1_000_000)), "{\"value\":".repeat(300_000)]
    {
        json::arguments(&description, function, deep.as_bytes(), &Budget::new(max)).unwrap_err();
        wave::arguments(&description, function, format!("({deep}").as_bytes(), &Budget::new(max)).unwrap_err();
    }
    for broken in [&b"{\"value\":[\"\xff\xfe\"]}"[..], b"\xff", b"{\"value\":[\"\\ud800\"]}"] {
        json::arguments(&description, function, broken, &Budget::new(max)).unwrap_err();
        wave::arguments(&description, function, broken, &Budget::new(max)).unwrap_err();
    }
}

/// Two plain types for each, all used twice by the next: written out it would exceed any machine's memory.
#[test]
fn schemas_of_types_that_are_used_often_stay_small() {
    let mut shapes = Vec::new();
    for level in 0..60 {
        let below = if level == 0 { U8 } else { TypeId(FIRST + level - 1) };
        shapes.push(Shape::Tuple(vec![below, below]));
    }
    let texts = schema::texts(&description(shapes), "p").unwrap();
    assert!(texts.functions.len() + texts.openapi.len() < 60_000, "{}", texts.openapi.len());
    let deep = |levels: u32| {
        let of = |level: u32| if level == 0 { U8 } else { TypeId(FIRST + level - 1) };
        let types =
            (0..levels).map(|level| Type { name: None, interface: String::new(), shape: Shape::Option(of(level)) });
        let plain = (0..FIRST).map(|_| Type { name: None, interface: String::new(), shape: Shape::U8 });
        Description::new(String::new(), Vec::new(), plain.chain(types).collect())
    };
    assert!(deep(64).is_ok());
    assert_eq!(deep(65).unwrap_err(), "its types are nested more than 64 deep");
}

#[test]
fn a_component_is_described() {
    let text = r#"(component
      (type $point (record (field "x" u32) (field "y" (option string))))
      (core module $m
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
        (func (export "move") (param i32 i32 i32 i32) (result i32) unreachable)
        (func (export "greet") unreachable))
      (core instance $i (instantiate $m))
      (alias core export $i "memory" (core memory $memory))
      (alias core export $i "realloc" (core func $realloc))
      (component $shapes
        (import "point-type" (type $p0 (eq $point)))
        (import "move" (func $move (param "from" $p0) (result $p0)))
        (export $p "point" (type $p0))
        (export "move" (func $move) (func (param "from" $p) (result $p))))
      (func $greet (canon lift (core func $i "greet")))
      (export "greet" (func $greet)))"#;
    let text = text.replace("(component $shapes", "(component $unused");
    let found = describe(&wat::parse_str(text).unwrap()).unwrap();
    assert_eq!(found.functions.iter().map(Function::full_name).collect::<Vec<_>>(), ["greet"]);
    assert!(found.wit.contains("export greet: func();"), "{}", found.wit);
    let none = describe(&wat::parse_str("(component)").unwrap()).unwrap_err();
    assert_eq!(none, "it exports no function");
    assert!(describe(b"\0asm\x0d\0\x01\0\xff").unwrap_err().starts_with("its interface can't be read"));
}
