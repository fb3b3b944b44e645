//! The built-in types: the table `types.txt` (format explained by `make` beside it), parsed at first use.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::types::{Field, Kind, KindFact, ListType, Message, Text, Type, TypeId, Types};

/// The table's source.
pub const SOURCE: &str = include_str!("types.txt");

/// Upstream's types.
pub fn built_in() -> &'static Arc<Types> {
    static BUILT_IN: LazyLock<Arc<Types>> = LazyLock::new(|| Arc::new(read(SOURCE)));
    &BUILT_IN
}

/// Expands a shortened name.
fn long(name: &str, message: bool) -> String {
    let root = if message { "k8s.io" } else { "io.k8s" };
    name.replace('~', &format!("{root}.api.")).replace('^', &format!("{root}.apimachinery.pkg.apis.meta.v1."))
}

fn kind(code: &str, ids: &HashMap<Box<str>, TypeId>) -> Kind {
    let rest = &code[1..];
    match code.as_bytes()[0] {
        b's' => Kind::String,
        b'b' => Kind::Bool,
        b'i' => Kind::Int32,
        b'l' => Kind::Int64,
        b'd' => Kind::Double,
        b'y' => Kind::Bytes,
        b'q' => Kind::Quantity,
        b'a' => Kind::Amount,
        b't' => Kind::Time,
        b'm' => Kind::MicroTime,
        b'x' => Kind::IntOrString,
        b'[' => Kind::List(Box::new(kind(rest, ids))),
        b'{' => Kind::Map(Box::new(kind(rest, ids))),
        b'@' => ids.get(long(rest, false).as_str()).map_or(Kind::Any, |id| Kind::Object(*id)),
        _ => Kind::Any,
    }
}

fn read(text: &'static str) -> Types {
    let rows = || text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split('\t').collect::<Vec<_>>());
    // Ids first: types refer to each other.
    let mut ids: HashMap<Box<str>, TypeId> = HashMap::new();
    for row in rows().filter(|r| r[0] == "T") {
        ids.insert(long(row[1], false).into(), TypeId(ids.len() as u32));
    }
    let mut table = Types::default();
    for row in rows() {
        match (row[0], &row[1..]) {
            ("K", [group, version, kind, type_name]) => {
                let group = if *group == "-" { "" } else { group };
                let texts = [group, version, kind].map(Text::Borrowed);
                if let Some(id) = ids.get(long(type_name, false).as_str()).copied() {
                    let [group, version, kind] = texts;
                    table.kinds.push(KindFact { group, version, kind, id });
                }
            }
            ("M", [name, fields @ ..]) => {
                let fields = fields
                    .iter()
                    .filter_map(|f| {
                        let mut parts = f.splitn(3, ' ');
                        Some((parts.next()?, parts.next()?.parse().ok()?, long(parts.next()?, true).into()))
                    })
                    .collect();
                table.messages.insert(long(name, true).into(), Message { fields });
            }
            ("T", [name, form, message, rest @ ..]) => {
                let name = long(name, false);
                let message: Box<str> = match *message {
                    "-" => "".into(),
                    "" => name.replacen("io.k8s.", "k8s.io.", 1).into(),
                    given => long(given, true).into(),
                };
                if !message.is_empty() {
                    table.by_message.insert(message.clone(), TypeId(table.own.len() as u32));
                }
                table.own.push(Type {
                    scalar: (*form != "-").then(|| kind(form, &ids)),
                    message,
                    atomic: rest.contains(&"Satomic"),
                    ..Type::object(&name, Vec::new())
                });
            }
            ("I", [number, message]) => {
                if let (Some(last), Ok(number)) = (table.own.last_mut(), number.parse()) {
                    last.inline.push((number, long(message, true).into()));
                }
            }
            ("F", [name, code, number, facts @ ..]) => {
                let field = field(name, kind(code, &ids), number.parse().unwrap_or(0), facts);
                if let Some(last) = table.own.last_mut() {
                    if field.number > 0 {
                        last.by_number.push((field.number, last.fields.len() as u16));
                    }
                    last.fields.push(field);
                }
            }
            _ => {}
        }
    }
    for found in &mut table.own {
        found.by_number.sort_unstable();
    }
    table.by_name = ids;
    table
}

fn field(name: &'static str, kind: Kind, number: u32, facts: &[&'static str]) -> Field {
    let mut field = Field { number, ..Field::new(Cow::Borrowed(name), kind) };
    let texts = |list: &'static str| list.split('|').map(Text::Borrowed);
    for fact in facts {
        let rest = &fact[1..];
        match fact.as_bytes()[0] {
            b'o' => field.omit_empty = true,
            b'z' => field.omit_zero = true,
            b'p' => field.pointer = true,
            b'r' => field.required = true,
            b'=' => field.default = serde_json::from_str(rest).ok(),
            b'L' => {
                field.list = match rest {
                    "atomic" => ListType::Atomic,
                    "set" => ListType::Set,
                    "map" => ListType::Map(Box::default()),
                    _ => ListType::Unsaid,
                }
            }
            b'K' => field.list = ListType::Map(texts(rest).collect()),
            b'S' => (field.atomic, field.granular) = (rest == "atomic", rest == "granular"),
            b'M' => field.merge_key = Some(rest.into()),
            b'P' => {
                field.merges = rest.split(',').any(|s| s == "merge");
                field.replaces = rest.split(',').any(|s| s == "replace");
                field.retains_keys = rest.split(',').any(|s| s == "retainKeys");
            }
            b'E' => field.enumeration = texts(rest).map(Into::into).collect(),
            b'B' => field.embedded = Some(rest),
            b'G' => field.go = Some(rest),
            b'W' => field.wire = Some(long(rest, true).into()),
            _ => {}
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads() {
        let types = built_in();
        let pod = types.by_name("io.k8s.api.core.v1.PodSpec").unwrap().of;
        let containers = pod.field("containers").unwrap();
        assert_eq!(containers.merge_key.as_deref(), Some("name"));
        assert_eq!(containers.list, ListType::Map(Box::new(["name".into()])));
        assert_eq!(types.go_name(&containers.kind), "[]v1.Container");
        let Kind::List(inner) = &containers.kind else { panic!("{:?}", containers.kind) };
        let Kind::Object(id) = &**inner else { panic!("{inner:?}") };
        assert_eq!(types.get(*id).short(), "Container");
        assert_eq!(types.by_message("k8s.io.api.core.v1.Pod").unwrap().short(), "Pod");
        assert!(types.message("k8s.io.api.core.v1.VolumeSource").is_some());
        let deployment = types.of_kind("apps", "v1", "Deployment").unwrap();
        assert_eq!(&*deployment.of.name, "io.k8s.api.apps.v1.Deployment");
        assert_eq!(types.kinds().count(), SOURCE.lines().filter(|line| line.starts_with("K\t")).count());
        for found in types.own() {
            assert!(found.fields.is_sorted_by_key(|f| &*f.name), "{}", found.name);
            for field in &found.fields {
                assert!(!matches!(&field.wire, Some(w) if w.contains(['~', '^'])));
                assert!(
                    !matches!(&field.list, ListType::Map(keys) if keys.is_empty()),
                    "{} {}",
                    found.name,
                    field.name
                );
            }
        }
        let secret = types.by_name("io.k8s.api.core.v1.Secret").unwrap().of;
        assert_eq!(secret.field("data").unwrap().kind, Kind::Map(Box::new(Kind::Bytes)));
    }
}
