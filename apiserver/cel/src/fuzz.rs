//! Property: any expression over any value gets an answer within the limits, without a panic.

use serde_json::json;

use crate::types::{Type, from_schema};
use crate::{Activation, Budget, Env, to_json};

fn try_it(text: &str) {
    let schema = json!({
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "l": {"type": "array", "items": {"type": "integer"}},
            "m": {"type": "object", "additionalProperties": {"type": "string"}},
            "o": {"type": "object", "properties": {"x": {"type": "number", "nullable": true}}},
        },
    });
    let declared = from_schema(&schema, true).expect("a type");
    let env = Env::new().schema("self", &declared).variable("d", Type::Dyn).mutation();
    let Ok(program) = env.compile(text) else { return };
    let _ = program.estimate();
    let object = json!({"s": "text", "l": [1, 2, 3], "m": {"a": "b"}, "o": {"x": null}});
    let free = json!({"a": [1, 2.5, "x", null, {"b": true}]});
    let activation = Activation::new().typed("self", &object, &declared).json("d", &free);
    if let Ok(value) = program.eval(&activation, &mut Budget::default().per_call(20_000)) {
        let _ = to_json(&value);
    }
}

#[test]
fn any_text_is_answered() {
    bolero::check!().with_type::<String>().for_each(|text| try_it(text));
}

/// Fragments of expressions, so that more inputs are valid.
const PIECES: &[&str] = &[
    "self",
    ".s",
    ".l",
    ".m",
    ".o",
    ".x",
    "d",
    ".a",
    "[0]",
    "[?9]",
    ".?b",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "?",
    "+",
    "-",
    "*",
    "/",
    "%",
    "==",
    "!=",
    "<",
    ">=",
    " in ",
    "&&",
    "||",
    "!",
    "1",
    "2u",
    "0.5",
    "'a'",
    "b'\\xff'",
    "null",
    "true",
    "int(",
    "string(",
    "size(",
    "type(",
    "dyn(",
    ".all(x,",
    ".map(x,",
    ".filter(x,",
    "x",
    ".exists(i, v,",
    ".transformMap(k, v,",
    "v",
    "k",
    ".optMap(y,",
    "y",
    "optional.of(",
    "optional.none()",
    ".orValue(",
    ".split('')",
    ".join('')",
    ".format([",
    "'%s%d'",
    ".matches('a+')",
    ".sortBy(z,",
    "z",
    ".flatten(3)",
    "lists.range(9)",
    "sets.contains(",
    "quantity('1')",
    ".add(",
    "ip('::1')",
    "cidr('::/0')",
    "url('/a')",
    "semver('1.0.0')",
    "timestamp(1)",
    "duration('1s')",
    "Object{",
    "a:",
    "JSONPatch{",
    "has(",
    ".slice(0, 2)",
    ".indexOf(",
    ".replace('', ",
    ".substring(",
    "9223372036854775807",
];

#[test]
fn pieces_of_expressions_are_answered() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let pieces = bytes.iter().take(60).map(|byte| PIECES[usize::from(*byte) % PIECES.len()]);
        try_it(&pieces.collect::<String>());
    });
}

#[test]
fn hostile_expressions_end() {
    for text in [
        "[1,2,3,4,5,6,7,8,9].map(a, [1,2,3,4,5,6,7,8,9].map(b, [1,2,3,4,5,6,7,8,9].map(c, [1,2,3,4,5,6,7,8,9].map(e, '%s%s'.format([a, b])))))",
        "lists.range(100000).map(x, lists.range(100000))",
        "lists.range(1000).map(x, 'a').join('').matches('(a*)*b')",
        "lists.range(10000).map(x, 'aaaaaaaaaaaaaaaaaaaaaaaa'.matches('(a{0,100}){0,100}' + string(x)))",
        "lists.range(5000).distinct()",
        "lists.range(30).map(x, 'ab').join('').replace('', lists.range(3000).map(x, 'abc').join(''))",
    ] {
        try_it(text);
        let env = Env::new();
        if let Ok(program) = env.compile(text) {
            let _ = program.eval(&Activation::new(), &mut Budget::default());
        }
    }
}
