//! The client in Rust: structs over `serde_json`, and a transport over the standard library's sockets. Pure.

use std::fmt::Write as _;

use super::idents::{Scope, pascal, snake};
use super::model::{Definition, Function, Interface, Item, Model, NamedType, Owner, Ty};
use crate::rust_keywords::RUST_KEYWORDS;

const RUNTIME: &str = include_str!("runtime/client_rs.txt");
/// The longest tuple of the runtime.
const TUPLE_MAX: usize = 8;
/// Methods of each client.
const METHODS: &[&str] = &["call", "new", "with_session"];
const TAKEN: &[&str] = &[
    "A",
    "Arc",
    "B",
    "BTreeMap",
    "C",
    "Call",
    "CallError",
    "D",
    "Debug",
    "Duration",
    "E",
    "Err",
    "F",
    "G",
    "H",
    "Http",
    "Json",
    "K",
    "None",
    "Ok",
    "Option",
    "Remote",
    "Response",
    "Result",
    "Self",
    "Some",
    "String",
    "T",
    "TcpStream",
    "Transport",
    "V",
    "Value",
    "Vec",
];
const DERIVE: &str = "#[derive(Debug, Clone, PartialEq)]\n";

struct Names {
    types: Vec<String>,
    clients: Vec<String>,
}

/// The client's text.
///
/// # Errors
/// If a tuple has too many values.
pub(super) fn generate(model: &Model, source: &str) -> Result<String, String> {
    let mut scope = Scope::new(TAKEN);
    let named =
        |ty: &NamedType| scope.add(&[pascal(&ty.name), format!("{}{}", pascal(&ty.interface), pascal(&ty.name))]);
    let types = model.types.iter().map(named).collect();
    let client = |interface: &Interface| scope.add(&[format!("{}Client", pascal(&interface.name))]);
    let names = Names { types, clients: model.interfaces.iter().map(client).collect() };
    let head = "It needs the crate serde_json.\n#![allow(dead_code, reason = \"the client has every function\")]";
    let mut out = format!("//! A client of a plugin, written by `coracle bind` from {source}. {head}\n\n{RUNTIME}");
    for (at, ty) in model.types.iter().enumerate() {
        names.ty(&mut out, at, ty, model)?;
    }
    for (at, interface) in model.interfaces.iter().enumerate() {
        let name = &names.clients[at];
        let _ = write!(
            out,
            "\n{}{DERIVE}pub struct {name}(Remote);\n\nimpl {name} {{\n    /// A client without a session.\n    pub fn new(transport: impl Transport + 'static) -> Self {{\n        Self(Remote {{ transport: Arc::new(transport), session: None, handle: String::new() }})\n    }}\n\n    /// A client whose calls are in a session.\n    #[must_use]\n    pub fn with_session(mut self, session: &str) -> Self {{\n        self.0.session = Some(session.to_owned());\n        self\n    }}\n",
            doc(&interface.docs, "")
        );
        let mut scope = member_scope();
        for function in interface.functions.iter().filter(|function| !matches!(function.of, Owner::Method(_))) {
            let wanted = match function.of {
                Owner::Constructor(of) => snake(&model.types[of].name),
                Owner::Static(of) => format!("{}_{}", snake(&model.types[of].name), snake(&function.name)),
                _ => snake(&function.name),
            };
            names.function(&mut out, &scope.add(&[wanted]), function)?;
        }
        out.push_str("}\n");
    }
    Ok(out)
}

impl Names {
    fn ty(&self, out: &mut String, at: usize, ty: &NamedType, model: &Model) -> Result<(), String> {
        let (name, docs) = (&self.types[at], doc(&ty.docs, ""));
        let (encode, decode) = match &ty.definition {
            Definition::Record(fields) => self.record(out, (name, &docs), fields)?,
            Definition::Variant(cases) => self.variant(out, (name, &docs), cases)?,
            Definition::Enum(labels) => {
                let members = labels_of(out, (name, &docs, "Copy, Eq, PartialOrd, Ord, "), labels);
                let arms = |form: &dyn Fn(&str, &str) -> String| {
                    labels.iter().zip(&members).map(|(label, member)| form(member, &label.name)).collect::<String>()
                };
                let encode = arms(&|member, label| format!("            Self::{member} => \"{label}\",\n"));
                let decode = arms(&|member, label| format!("            Some(\"{label}\") => Ok(Self::{member}),\n"));
                (
                    format!("        Value::from(match self {{\n{encode}        }})\n"),
                    format!(
                        "        match value.as_str() {{\n{decode}            _ => wrong(\"{}\", &value),\n        }}\n",
                        ty.name
                    ),
                )
            }
            Definition::Flags(labels) => flags(out, (name, &docs), labels),
            Definition::Resource => {
                let _ = write!(out, "\n{docs}{DERIVE}pub struct {name}(Remote);\n\nimpl {name} {{");
                let mut scope = member_scope();
                let all = model.interfaces.iter().flat_map(|interface| &interface.functions);
                for method in all.filter(|function| function.of == Owner::Method(at)) {
                    self.function(out, &scope.add(&[snake(&method.name)]), method)?;
                }
                out.push_str("}\n");
                (
                    "        call.conflict |= call.session.is_some() && call.session != self.0.session;\n        call.session.clone_from(&self.0.session);\n        Value::from(self.0.handle.as_str())\n".to_owned(),
                    "        let handle = String::decode(value, call)?;\n        Ok(Self(Remote { transport: call.transport.clone(), session: call.session.clone(), handle }))\n".to_owned(),
                )
            }
        };
        let argument = |text: &str| if text.contains("call") { "call" } else { "_" };
        let _ = write!(
            out,
            "\nimpl Json for {name} {{\n    fn encode(&self, {}: &mut Call) -> Value {{\n{encode}    }}\n\n    fn decode({}: Value, {}: &Call) -> Result<Self, String> {{\n{decode}    }}\n}}\n",
            argument(&encode),
            if decode.contains("value") { "value" } else { "_" },
            argument(&decode)
        );
        Ok(())
    }

    fn record(&self, out: &mut String, head: (&str, &str), fields: &[Item<Ty>]) -> Result<(String, String), String> {
        let mut scope = member_scope();
        let (mut encode, mut decode) = (String::new(), String::new());
        let _ = write!(out, "\n{}{DERIVE}pub struct {} {{\n", head.1, head.0);
        for field in fields {
            let attribute = scope.add(&[snake(&field.name)]);
            let _ = writeln!(out, "{}    pub {attribute}: {},", doc(&field.docs, "    "), self.hint(&field.ty)?);
            let _ = writeln!(encode, "            \"{}\": self.{attribute}.encode(call),", field.name);
            let _ = writeln!(decode, "            {attribute}: Json::decode(value[\"{}\"].take(), call)?,", field.name);
        }
        out.push_str("}\n");
        let encode = format!("        serde_json::json!({{\n{encode}        }})\n");
        Ok((
            encode,
            format!(
                "        let mut value = value;\n        if !value.is_object() {{\n            return wrong(\"an object\", &value);\n        }}\n        Ok(Self {{\n{decode}        }})\n"
            ),
        ))
    }

    fn variant(
        &self,
        out: &mut String,
        head: (&str, &str),
        cases: &[Item<Option<Ty>>],
    ) -> Result<(String, String), String> {
        let mut scope = Scope::new(&["Self"]);
        let (mut encode, mut decode) = (String::new(), String::new());
        let _ = write!(out, "\n{}{DERIVE}pub enum {} {{\n", head.1, head.0);
        for case in cases {
            let member = scope.add(&[pascal(&case.name)]);
            out.push_str(&doc(&case.docs, "    "));
            match &case.ty {
                Some(ty) => {
                    let _ = writeln!(out, "    {member}({}),", self.hint(ty)?);
                    let _ = writeln!(
                        encode,
                        "            Self::{member}(value) => serde_json::json!({{ \"{}\": value.encode(call) }}),",
                        case.name
                    );
                    let _ = writeln!(
                        decode,
                        "            \"{}\" => Json::decode(value, call).map(Self::{member}),",
                        case.name
                    );
                }
                None => {
                    let _ = writeln!(out, "    {member},");
                    let _ = writeln!(
                        encode,
                        "            Self::{member} => serde_json::json!({{ \"{}\": null }}),",
                        case.name
                    );
                    let _ = writeln!(
                        decode,
                        "            \"{}\" => <()>::decode(value, call).map(|()| Self::{member}),",
                        case.name
                    );
                }
            }
        }
        out.push_str("}\n");
        let encode = format!("        match self {{\n{encode}        }}\n");
        Ok((
            encode,
            format!(
                "        let (name, value) = member(value)?;\n        match name.as_str() {{\n{decode}            _ => wrong(\"another case\", &Value::from(name)),\n        }}\n"
            ),
        ))
    }

    fn function(&self, out: &mut String, name: &str, function: &Function) -> Result<(), String> {
        let mut scope = member_scope();
        let (mut parameters, mut arguments) = (vec!["&self".to_owned()], Vec::new());
        if matches!(function.of, Owner::Method(_)) {
            arguments.push("(\"self\", self.encode(&mut call))".to_owned());
        }
        for (wire, ty) in &function.parameters {
            let parameter = scope.add(&[snake(wire)]);
            let (hint, value) = match ty {
                Ty::String => ("&str".to_owned(), format!("Value::from({parameter})")),
                Ty::Bool | Ty::Int(..) | Ty::Float(_) | Ty::Char => {
                    (self.hint(ty)?, format!("{parameter}.encode(&mut call)"))
                }
                _ => (format!("&{}", self.hint(ty)?), format!("{parameter}.encode(&mut call)")),
            };
            parameters.push(format!("{parameter}: {hint}"));
            arguments.push(format!("(\"{wire}\", {value})"));
        }
        let result = function.result.as_ref().map_or_else(|| Ok("()".to_owned()), |ty| self.hint(ty))?;
        let mutable = if arguments.iter().any(|argument| argument.contains("&mut call")) { "mut " } else { "" };
        let path = function.path.replace('[', "%5B").replace(']', "%5D");
        let _ = write!(
            out,
            "\n{}    ///\n    /// # Errors\n    /// If the call fails.\n    pub fn {name}({}) -> Result<{result}, CallError> {{\n        let {mutable}call = self.0.call();\n        let arguments = [{}];\n        call.send(\"{path}\", arguments)\n    }}\n",
            doc(if function.docs.is_empty() { "Calls the function." } else { &function.docs }, "    "),
            parameters.join(", "),
            arguments.join(", ")
        );
        Ok(())
    }

    fn hint(&self, ty: &Ty) -> Result<String, String> {
        let maybe = |ty: &Option<Box<Ty>>| ty.as_ref().map_or_else(|| Ok("()".to_owned()), |ty| self.hint(ty));
        Ok(match ty {
            Ty::Bool => "bool".to_owned(),
            Ty::Int(bits, true) => format!("i{bits}"),
            Ty::Int(bits, false) => format!("u{bits}"),
            Ty::Float(bits) => format!("f{bits}"),
            Ty::Char => "char".to_owned(),
            Ty::String => "String".to_owned(),
            Ty::Bytes => "Vec<u8>".to_owned(),
            Ty::List(of) => format!("Vec<{}>", self.hint(of)?),
            Ty::Map(key, of) => format!("BTreeMap<{}, {}>", self.hint(key)?, self.hint(of)?),
            Ty::Tuple(of) if of.len() > TUPLE_MAX => {
                return Err(format!(
                    "a tuple has {} values; a client in Rust has tuples of at most {TUPLE_MAX}",
                    of.len()
                ));
            }
            Ty::Tuple(of) => {
                let parts =
                    of.iter().map(|ty| self.hint(ty).map(|hint| format!("{hint},"))).collect::<Result<Vec<_>, _>>()?;
                format!("({})", parts.join(" "))
            }
            Ty::Option(of) => format!("Option<{}>", self.hint(of)?),
            Ty::Result(ok, err) => format!("Result<{}, {}>", maybe(ok)?, maybe(err)?),
            Ty::Named(at) => self.types[*at].clone(),
        })
    }
}

/// The scope of a type's members: its fields, variables and methods.
fn member_scope() -> Scope {
    Scope::new(&[RUST_KEYWORDS, METHODS].concat())
}

/// Declares an enum without values, and returns its members.
fn labels_of(out: &mut String, (name, docs, derives): (&str, &str, &str), labels: &[Item<()>]) -> Vec<String> {
    let mut scope = Scope::new(&["Self"]);
    let _ = write!(out, "\n{docs}{}pub enum {name} {{\n", DERIVE.replace("Clone, ", &format!("Clone, {derives}")));
    let members: Vec<String> = labels.iter().map(|label| scope.add(&[pascal(&label.name)])).collect();
    for (label, member) in labels.iter().zip(&members) {
        let _ = writeln!(out, "{}    {member},", doc(&label.docs, "    "));
    }
    out.push_str("}\n");
    members
}

/// Declares flags as a struct of booleans.
fn flags(out: &mut String, (name, docs): (&str, &str), labels: &[Item<()>]) -> (String, String) {
    let mut scope = member_scope();
    let (mut encode, mut decode) = (String::new(), String::new());
    let _ = write!(out, "\n{docs}{}pub struct {name} {{\n", DERIVE.replace("Clone, ", "Clone, Copy, Default, Eq, "));
    for label in labels {
        let field = scope.add(&[snake(&label.name)]);
        let _ = writeln!(out, "{}    pub {field}: bool,", doc(&label.docs, "    "));
        let _ = writeln!(encode, "            self.{field}.then_some(\"{}\"),", label.name);
        let _ = writeln!(decode, "                Some(\"{}\") => flags.{field} = true,", label.name);
    }
    out.push_str("}\n");
    let count = labels.len();
    (
        format!(
            "        let names: [Option<&str>; {count}] = [\n{encode}        ];\n        names.into_iter().flatten().collect()\n"
        ),
        format!(
            "        let mut flags = Self::default();\n        for name in array(value)? {{\n            match name.as_str() {{\n{decode}                _ => return wrong(\"a flag\", &name),\n            }}\n        }}\n        Ok(flags)\n"
        ),
    )
}

/// Lines of a doc comment, or nothing.
fn doc(text: &str, indent: &str) -> String {
    text.lines().map(|line| format!("{indent}/// {}\n", line.trim()).replace("/// \n", "///\n")).collect()
}
