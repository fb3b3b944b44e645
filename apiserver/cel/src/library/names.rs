//! The `format` library: named formats such as `dns1123Label`, and their validation messages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Implementation;
use crate::error::EvalError;
use crate::value::{Opaque, Url, Value, parse_timestamp};

/// The names of the formats.
pub(super) const NAMES: &[&str] = &[
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                         '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used \
                         for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                          alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or \
                          'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                         with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                           '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                           'my_value',  or '12345', regex used for validation is \
                           '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

pub(super) fn find(function: &str) -> Option<Implementation> {
    Some(match function {
        "format.named" => |call| {
            let name = NAMES.iter().find(|name| call.text(0).is_ok_and(|text| text == **name));
            call.text(0)?;
            Ok(Value::Optional(name.map(|name| Value::opaque(Opaque::Format(name)).into())))
        },
        "validate" => |call| {
            let Value::Opaque(opaque) = call.arg(0)? else { return Err(EvalError::no_such_overload()) };
            let Opaque::Format(name) = &**opaque else { return Err(EvalError::no_such_overload()) };
            let problems = problems(name, call.text(1)?);
            let list = Value::list(problems.into_iter().map(Value::text).collect());
            let empty = matches!(&list, Value::List(list) if list.len() == 0);
            Ok(Value::Optional((!empty).then(|| list.into())))
        },
        name if name.starts_with("format.") => |call| {
            let wanted = call.function.trim_start_matches("format.");
            let name = NAMES.iter().find(|name| **name == wanted);
            name.map(|name| Value::opaque(Opaque::Format(name))).ok_or_else(EvalError::no_such_overload)
        },
        _ => return None,
    })
}

/// The pattern length that upstream uses for a format's cost.
pub(crate) fn regex_size(name: &str) -> u64 {
    match name {
        "dns1123Label" | "dns1035Label" | "dns1123LabelPrefix" | "dns1035LabelPrefix" => 30,
        "dns1123Subdomain" | "qualifiedName" | "dns1123SubdomainPrefix" => 60,
        "labelValue" => 40,
        "uuid" => 70,
        "uri" => 1103,
        "byte" => 84,
        _ => 71,
    }
}

fn inside(text: &str, extra: &str, upper: bool) -> bool {
    text.bytes().all(|c| {
        c.is_ascii_lowercase()
            || c.is_ascii_digit()
            || (upper && c.is_ascii_uppercase())
            || extra.as_bytes().contains(&c)
    })
}

fn is_label(text: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    inside(text, "-", false) && edge(text.bytes().next()) && edge(text.bytes().last())
}

fn too_long(text: &str, most: usize, problems: &mut Vec<String>) {
    if text.len() > most {
        problems.push(format!("must be no more than {most} bytes"));
    }
}

fn problems(format: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    // The prefix of a generated name may end with a dash.
    let (format, text) = match format.strip_suffix("Prefix") {
        Some(format) => (
            format,
            text.strip_suffix('-')
                .filter(|rest| rest.len() + 1 > 1)
                .map_or_else(|| text.to_owned(), |rest| format!("{rest}a")),
        ),
        None => (format, text.to_owned()),
    };
    let text = text.as_str();
    let mut hold = |ok: bool, complaint: &str| {
        if !ok {
            problems.push(complaint.to_owned());
        }
    };
    match format {
        "dns1123Label" => {
            too_long(text, 63, &mut problems);
            if !is_label(text) {
                problems.push(LABEL.to_owned());
            }
        }
        "dns1123Subdomain" => {
            too_long(text, 253, &mut problems);
            if !text.split('.').all(is_label) {
                problems.push(SUBDOMAIN.to_owned());
            }
        }
        "dns1035Label" => {
            too_long(text, 63, &mut problems);
            if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
                problems.push(LABEL_1035.to_owned());
            }
        }
        "labelValue" => {
            too_long(text, 63, &mut problems);
            if !text.is_empty() && !is_name(text) {
                problems.push(LABEL_VALUE.to_owned());
            }
        }
        "qualifiedName" => problems = qualified(text),
        "uri" => {
            if let Err(error) = Url::parse(text) {
                problems.push(error);
            }
        }
        "uuid" => hold(is_uuid(text), "does not match the UUID format"),
        "byte" => hold(!text.is_empty() && STANDARD.decode(text).is_ok(), "invalid base64"),
        "date" => hold(text.len() == 10 && parse_timestamp(&format!("{text}T00:00:00Z")).is_some(), "invalid date"),
        _ => hold(parse_timestamp(text).is_some(), "invalid datetime"),
    }
    problems
}

fn is_name(text: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    inside(text, "-_.", true) && edge(text.bytes().next()) && edge(text.bytes().last())
}

fn qualified(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut parts = text.split('/');
    let first = parts.next().unwrap_or_default();
    let name = match (parts.next(), parts.next()) {
        (None, _) => first,
        (Some(name), None) => {
            if first.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else if !first.split('.').all(is_label) {
                problems.push(format!("prefix part {SUBDOMAIN}"));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED.trim_start_matches("name part ")
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 bytes".to_owned());
    }
    if !is_name(name) {
        problems.push(QUALIFIED.to_owned());
    }
    problems
}

fn is_uuid(text: &str) -> bool {
    let hex = text.bytes().filter(|c| *c != b'-').count() == 32;
    let plain = text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
    let places: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
    hex && plain && (places.is_empty() || places == [8, 13, 18, 23])
}
