//! The facts of every type (`types.txt`, explained by `make` beside it), parsed once into small interned structs.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use serde_json::Value;

/// What a field, an element or a map's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// true or false.
    Bool,
    /// Whole number of 32 bits.
    Int32,
    /// Whole number of 64 bits.
    Int64,
    /// Number.
    Double,
    /// Base64 text.
    Bytes,
    /// `100m`.
    Quantity,
    /// `metav1.Time`.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// A number or a text.
    IntOrString,
    /// Any JSON.
    Any,
    /// An object of that type ([`Table::get`]).
    Object(u16),
    /// A list.
    List(Box<Kind>),
    /// An object with any keys.
    Map(Box<Kind>),
}

/// How a list merges (`x-kubernetes-list-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    /// Not said.
    #[default]
    Unsaid,
    /// Replaced whole.
    Atomic,
    /// Of distinct scalars.
    Set,
    /// Of objects with keys.
    Map,
}

/// One field of a type.
#[derive(Debug)]
pub struct Field {
    /// In JSON.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// In protobuf; 0 if none.
    pub number: u32,
    /// The protobuf type where [`kind`](Self::kind) doesn't say it.
    pub wire: Option<Box<str>>,
    /// Left out of JSON when empty.
    pub omit_empty: bool,
    /// Left out of JSON when zero.
    pub omit_zero: bool,
    /// A pointer: unset and zero differ.
    pub pointer: bool,
    /// Listed as required.
    pub required: bool,
    /// Filled in where unset.
    pub default: Option<Value>,
    /// How a list merges in server-side apply.
    pub list: ListType,
    /// The keys of a map list.
    pub keys: Vec<&'static str>,
    /// An object that is replaced whole.
    pub atomic: bool,
    /// The key by which strategic merge joins list elements.
    pub merge_key: Option<&'static str>,
    /// Strategic merge: elements are merged, not replaced.
    pub merges: bool,
    /// Strategic merge: an object is replaced whole.
    pub replaces: bool,
    /// Strategic merge: `$retainKeys` is expected.
    pub retains_keys: bool,
    /// The allowed values.
    pub enumeration: Vec<&'static str>,
    /// The Go structs that it is embedded in, which Go's decoding errors name.
    pub embedded: Option<&'static str>,
    /// Go's name of its type where it can't be derived.
    pub(super) go: Option<&'static str>,
}

/// One type.
#[derive(Debug)]
pub struct Type {
    /// As OpenAPI names it: `io.k8s.api.core.v1.Pod`.
    pub name: Box<str>,
    /// Not an object in JSON: what it is instead.
    pub scalar: Option<Kind>,
    /// The protobuf message's full name; empty if none.
    pub message: Box<str>,
    /// Replaced whole wherever it stands.
    pub atomic: bool,
    /// By name.
    pub fields: Vec<Field>,
    /// Messages whose fields stand in this object's JSON: number and message.
    pub inline: Vec<(u32, Box<str>)>,
    by_number: Vec<(u32, u16)>,
}

impl Type {
    /// The field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.cmp(name)).ok().map(|at| &self.fields[at])
    }

    /// The field of that protobuf number.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Option<&Field> {
        self.by_number
            .binary_search_by_key(&number, |(n, _)| *n)
            .ok()
            .map(|at| &self.fields[usize::from(self.by_number[at].1)])
    }

    /// The last part of the name: `Pod`.
    #[must_use]
    pub fn short(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// A protobuf message with no type of its own in JSON.
#[derive(Debug)]
pub struct Message {
    /// Name, number, protobuf type.
    pub fields: Vec<(&'static str, u32, Box<str>)>,
}

/// A kind that upstream serves.
#[derive(Debug)]
pub struct KindFact {
    /// Empty for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// The type's name.
    pub type_name: Box<str>,
}

/// Everything.
#[derive(Debug)]
pub struct Table {
    types: Vec<Type>,
    by_name: HashMap<Box<str>, u16>,
    by_message: HashMap<Box<str>, u16>,
    messages: BTreeMap<Box<str>, Message>,
    /// The kinds of stable groups.
    pub kinds: Vec<KindFact>,
}

impl Table {
    /// The type of that id.
    #[must_use]
    pub fn get(&self, id: u16) -> &Type {
        &self.types[usize::from(id)]
    }

    /// The type of that name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Type> {
        self.id(name).map(|id| self.get(id))
    }

    /// The id of the type of that name.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).copied()
    }

    /// The type that a protobuf message is.
    #[must_use]
    pub fn by_message(&self, message: &str) -> Option<&Type> {
        self.by_message.get(message).map(|id| self.get(*id))
    }

    /// A message with no type of its own.
    #[must_use]
    pub fn message(&self, name: &str) -> Option<&Message> {
        self.messages.get(name)
    }

    /// The type of a kind.
    #[must_use]
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&str> {
        self.kinds.iter().find(|k| k.group == group && k.version == version && k.kind == kind).map(|k| &*k.type_name)
    }

    /// Whether any kind of the group is known.
    #[must_use]
    pub fn knows_group(&self, group: &str) -> bool {
        self.kinds.iter().any(|k| k.group == group)
    }

    /// All types.
    #[must_use]
    pub fn types(&self) -> &[Type] {
        &self.types
    }

    /// Go's name of a kind, as its decoding errors print it.
    #[must_use]
    pub fn go_name(&self, kind: &Kind) -> String {
        match kind {
            Kind::String => "string".into(),
            Kind::Bool => "bool".into(),
            Kind::Int32 => "int32".into(),
            Kind::Int64 => "int64".into(),
            Kind::Double => "float64".into(),
            Kind::Bytes => "[]uint8".into(),
            Kind::Quantity => "resource.Quantity".into(),
            Kind::Time => "v1.Time".into(),
            Kind::MicroTime => "v1.MicroTime".into(),
            Kind::IntOrString => "intstr.IntOrString".into(),
            Kind::Any => "interface {}".into(),
            Kind::Object(id) => {
                let mut parts = self.get(*id).name.rsplit('.');
                let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                format!("{version}.{name}")
            }
            Kind::List(inner) => format!("[]{}", self.go_name(inner)),
            Kind::Map(inner) => format!("map[string]{}", self.go_name(inner)),
        }
    }
}

/// What the table is made of.
pub const SOURCE: &str = include_str!("types.txt");

/// The table, read at first use.
pub fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| read(SOURCE))
}

/// Names are shortened in the file.
fn long(name: &str, message: bool) -> String {
    let root = if message { "k8s.io" } else { "io.k8s" };
    name.replace('~', &format!("{root}.api.")).replace('^', &format!("{root}.apimachinery.pkg.apis.meta.v1."))
}

fn kind(code: &str, ids: &HashMap<Box<str>, u16>) -> Kind {
    let rest = &code[1..];
    match code.as_bytes()[0] {
        b's' => Kind::String,
        b'b' => Kind::Bool,
        b'i' => Kind::Int32,
        b'l' => Kind::Int64,
        b'd' => Kind::Double,
        b'y' => Kind::Bytes,
        b'q' => Kind::Quantity,
        b't' => Kind::Time,
        b'm' => Kind::MicroTime,
        b'x' => Kind::IntOrString,
        b'[' => Kind::List(Box::new(kind(rest, ids))),
        b'{' => Kind::Map(Box::new(kind(rest, ids))),
        b'@' => ids.get(long(rest, false).as_str()).map_or(Kind::Any, |id| Kind::Object(*id)),
        _ => Kind::Any,
    }
}

fn read(text: &'static str) -> Table {
    let rows = || text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split('\t').collect::<Vec<_>>());
    // Ids first: types refer to each other.
    let mut ids: HashMap<Box<str>, u16> = HashMap::new();
    for row in rows().filter(|r| r[0] == "T") {
        ids.insert(long(row[1], false).into(), ids.len() as u16);
    }
    let mut table = Table {
        types: Vec::with_capacity(ids.len()),
        by_name: HashMap::new(),
        by_message: HashMap::new(),
        messages: BTreeMap::new(),
        kinds: Vec::new(),
    };
    for row in rows() {
        match (row[0], &row[1..]) {
            ("K", [group, version, kind, type_name]) => table.kinds.push(KindFact {
                group: if *group == "-" { "" } else { group },
                version,
                kind,
                type_name: long(type_name, false).into(),
            }),
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
                let name: Box<str> = long(name, false).into();
                let message: Box<str> = match *message {
                    "-" => "".into(),
                    "" => name.replacen("io.k8s.", "k8s.io.", 1).into(),
                    given => long(given, true).into(),
                };
                if !message.is_empty() {
                    table.by_message.insert(message.clone(), table.types.len() as u16);
                }
                table.types.push(Type {
                    name,
                    scalar: (*form != "-").then(|| kind(form, &ids)),
                    message,
                    atomic: rest.contains(&"Satomic"),
                    fields: Vec::new(),
                    inline: Vec::new(),
                    by_number: Vec::new(),
                });
            }
            ("I", [number, message]) => {
                if let (Some(last), Ok(number)) = (table.types.last_mut(), number.parse()) {
                    last.inline.push((number, long(message, true).into()));
                }
            }
            ("F", [name, code, number, facts @ ..]) => {
                let field = field(name, kind(code, &ids), number.parse().unwrap_or(0), facts);
                if let Some(last) = table.types.last_mut() {
                    if field.number > 0 {
                        last.by_number.push((field.number, last.fields.len() as u16));
                    }
                    last.fields.push(field);
                }
            }
            _ => {}
        }
    }
    for found in &mut table.types {
        found.by_number.sort_unstable();
    }
    table.by_name = ids;
    table
}

fn field(name: &'static str, kind: Kind, number: u32, facts: &[&'static str]) -> Field {
    let mut field = Field {
        name,
        kind,
        number,
        wire: None,
        omit_empty: false,
        omit_zero: false,
        pointer: false,
        required: false,
        default: None,
        list: ListType::Unsaid,
        keys: Vec::new(),
        atomic: false,
        merge_key: None,
        merges: false,
        replaces: false,
        retains_keys: false,
        enumeration: Vec::new(),
        embedded: None,
        go: None,
    };
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
                    "map" => ListType::Map,
                    _ => ListType::Unsaid,
                }
            }
            b'K' => field.keys = rest.split('|').collect(),
            b'S' => field.atomic = rest == "atomic",
            b'M' => field.merge_key = Some(rest),
            b'P' => {
                field.merges = rest.split(',').any(|s| s == "merge");
                field.replaces = rest.split(',').any(|s| s == "replace");
                field.retains_keys = rest.split(',').any(|s| s == "retainKeys");
            }
            b'E' => field.enumeration = rest.split('|').collect(),
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
        let table = table();
        let pod = table.by_name("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = pod.field("containers").unwrap();
        assert_eq!(containers.merge_key, Some("name"));
        assert_eq!(table.go_name(&containers.kind), "[]v1.Container");
        assert_eq!(
            table
                .get(match &containers.kind {
                    Kind::List(k) => match **k {
                        Kind::Object(id) => id,
                        _ => panic!(),
                    },
                    _ => panic!(),
                })
                .short(),
            "Container"
        );
        assert_eq!(table.by_message("k8s.io.api.core.v1.Pod").unwrap().short(), "Pod");
        assert!(table.message("k8s.io.api.core.v1.VolumeSource").is_some());
        assert_eq!(table.of_kind("apps", "v1", "Deployment"), Some("io.k8s.api.apps.v1.Deployment"));
        for found in table.types() {
            assert!(found.fields.is_sorted_by_key(|f| f.name), "{}", found.name);
            for field in &found.fields {
                assert!(!matches!(&field.wire, Some(w) if w.contains(['~', '^'])));
            }
        }
        let secret = table.by_name("io.k8s.api.core.v1.Secret").unwrap();
        assert_eq!(secret.field("data").unwrap().kind, Kind::Map(Box::new(Kind::Bytes)));
    }
}
