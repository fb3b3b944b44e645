//! Fuzz targets of callers' input: any bytes as JSON or WAVE for a function with parameters of all kinds.

use bolero::check;

use super::budget::{Budget, VALUE_BYTES};
use super::types::{Description, Function, Shape, Type, TypeId};
use super::{json, wave};

const MAX: usize = 64 << 10;

/// `f: func(value: record { list, option, variant, flags, tuple, text, bytes, maps })`.
fn description() -> Description {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>().into();
    let shapes = [
        Shape::U8,
        Shape::S64,
        Shape::F64,
        Shape::Char,
        Shape::String,
        Shape::List(TypeId(0)),
        Shape::List(TypeId(1)),
        Shape::Option(TypeId(2)),
        Shape::Option(TypeId(7)),
        Shape::Variant(names(&["a", "b"]), vec![Some(TypeId(4)), None]),
        Shape::Flags(names(&["x", "y"])),
        Shape::Tuple(vec![TypeId(3), TypeId(8)]),
        Shape::Result(Some(TypeId(5)), Some(TypeId(9))),
        Shape::Map(TypeId(4), TypeId(8)),
        Shape::Map(TypeId(1), TypeId(4)),
        Shape::Record(
            names(&["bytes", "list", "maybe", "case", "flags", "pair", "outcome", "map", "pairs"]),
            [5, 6, 8, 9, 10, 11, 12, 13, 14].map(TypeId).to_vec(),
        ),
    ];
    let types: Vec<Type> =
        shapes.into_iter().map(|shape| Type { name: None, interface: String::new(), shape }).collect();
    let function = Function {
        interface: None,
        name: "f".into(),
        parameters: vec!["value".to_owned()].into(),
        parameter_types: vec![TypeId(types.len() as u32 - 1)],
        result: None,
    };
    Description::new(String::new(), vec![function], types).unwrap()
}

/// Tokens of a call, so that random input passes the first character.
const PIECES: [&str; 44] = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ":",
    "\"value\"",
    "value",
    "\"bytes\"",
    "bytes",
    "\"list\"",
    "list",
    "\"maybe\"",
    "maybe",
    "\"case\"",
    "case",
    "\"flags\"",
    "flags",
    "\"pair\"",
    "pair",
    "\"outcome\"",
    "outcome",
    "\"map\"",
    "map",
    "\"pairs\"",
    "pairs",
    "null",
    "none",
    "some(",
    "ok(",
    "\"ok\"",
    "\"some\"",
    "\"a\"",
    "a(",
    "b",
    "1",
    "-9223372036854775808",
    "1e400",
    "nan",
    "\"AAE=\"",
    "\"\\ud800\"",
    "'\u{e9}'",
];

fn text(bytes: &[u8]) -> Vec<u8> {
    let piece =
        |byte: &u8| PIECES.get(usize::from(*byte)).map_or_else(|| vec![*byte], |piece| piece.as_bytes().to_vec());
    bytes.iter().flat_map(piece).collect()
}

#[test]
fn no_call_makes_a_reader_panic_or_keep_more_than_it_may() {
    let description = description();
    let function = &description.functions[0];
    check!().for_each(|bytes| {
        let body = text(bytes);
        for read in [json::arguments, wave::arguments] {
            let budget = Budget::new(MAX);
            if let Ok(values) = read(&description, function, &body, &budget) {
                assert_eq!(values.len(), 1);
                assert!(budget.used() <= MAX && budget.used() >= VALUE_BYTES);
            }
        }
    });
}
