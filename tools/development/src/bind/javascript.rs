//! The client in JavaScript: an ES module over `fetch`, with types in JSDoc. Pure.

use std::fmt::Write as _;

use super::idents::{Scope, camel, pascal};
use super::model::{Definition, Function, Interface, Item, Model, NamedType, Owner, Ty};

const RUNTIME: &str = include_str!("runtime/client.js");
/// Words that can't be names of parameters in a module.
const RESERVED: &[&str] = &[
    "arguments",
    "await",
    "break",
    "case",
    "catch",
    "class",
    "const",
    "continue",
    "debugger",
    "default",
    "delete",
    "do",
    "else",
    "enum",
    "eval",
    "export",
    "extends",
    "false",
    "finally",
    "for",
    "function",
    "if",
    "implements",
    "import",
    "in",
    "instanceof",
    "interface",
    "let",
    "new",
    "null",
    "package",
    "private",
    "protected",
    "public",
    "return",
    "static",
    "super",
    "switch",
    "this",
    "throw",
    "true",
    "try",
    "typeof",
    "var",
    "void",
    "while",
    "with",
    "yield",
];
/// Names of the module and of the language.
const TAKEN: &[&str] = &[
    "AbortSignal",
    "Array",
    "BigInt",
    "Client",
    "Error",
    "Map",
    "Number",
    "Object",
    "PluginError",
    "Promise",
    "Remote",
    "String",
    "Transport",
    "TypeError",
    "Uint8Array",
];
/// Members of a class that a method would hide.
const MEMBERS: &[&str] = &["constructor", "then", "_call"];

struct Names {
    types: Vec<String>,
    clients: Vec<String>,
}

/// The client's text.
pub(super) fn generate(model: &Model, source: &str) -> String {
    let mut scope = Scope::new(TAKEN);
    let named =
        |ty: &NamedType| scope.add(&[pascal(&ty.name), format!("{}{}", pascal(&ty.interface), pascal(&ty.name))]);
    let types = model.types.iter().map(named).collect();
    let client = |interface: &Interface| scope.add(&[format!("{}Client", pascal(&interface.name))]);
    let names = Names { types, clients: model.interfaces.iter().map(client).collect() };
    let mut out = format!("// A client of a plugin, written by `coracle bind` from {source}.\n\n{RUNTIME}");
    for (at, ty) in model.types.iter().enumerate() {
        names.ty(&mut out, at, ty, model);
    }
    for (at, interface) in model.interfaces.iter().enumerate() {
        let lines: Vec<String> = interface.docs.lines().map(str::to_owned).collect();
        let _ = writeln!(out, "\n{}export class {} extends Client {{", comment(&lines, ""), names.clients[at]);
        let mut scope = Scope::new(MEMBERS);
        let own = interface.functions.iter().filter(|function| !matches!(function.of, Owner::Method(_)));
        let own: Vec<&Function> = own.collect();
        for (at, function) in own.iter().enumerate() {
            let wanted = match function.of {
                Owner::Constructor(of) => camel(&model.types[of].name),
                Owner::Static(of) => format!("{}{}", camel(&model.types[of].name), pascal(&function.name)),
                _ => camel(&function.name),
            };
            names.function(&mut out, &scope.add(&[wanted]), function, at > 0);
        }
        out.push_str("}\n");
    }
    out
}

impl Names {
    fn ty(&self, out: &mut String, at: usize, ty: &NamedType, model: &Model) {
        let name = &self.types[at];
        let mut lines: Vec<String> = ty.docs.lines().map(str::to_owned).collect();
        let codec = match &ty.definition {
            Definition::Record(fields) => {
                let mut scope = Scope::new(&["__proto__"]);
                let keys: Vec<String> = fields.iter().map(|field| scope.add(&[camel(&field.name)])).collect();
                lines.push(format!("@typedef {{object}} {name}"));
                lines.extend(fields.iter().zip(&keys).map(|(field, key)| self.property(field, key)));
                let fields = fields.iter().zip(&keys);
                let fields =
                    fields.map(|(field, key)| format!("\n  ['{key}', '{}', {}],", field.name, self.codec(&field.ty)));
                let fields: String = fields.collect();
                format!("$record({fields}\n)").replace("(\n)", "()")
            }
            Definition::Variant(cases) => {
                let hint = |case: &Item<Option<Ty>>| match &case.ty {
                    Some(ty) => format!("{{ tag: '{}', val: {} }}", case.name, self.hint(ty)),
                    None => format!("{{ tag: '{}' }}", case.name),
                };
                lines.push(format!("@typedef {{{}}} {name}", cases.iter().map(hint).collect::<Vec<_>>().join(" | ")));
                let case = |case: &Item<Option<Ty>>| {
                    let codec = case.ty.as_ref().map_or_else(|| "null".to_owned(), |ty| self.codec(ty));
                    format!("\n  '{}': {codec},", case.name)
                };
                format!("$variant({{{}\n}})", cases.iter().map(case).collect::<String>())
            }
            Definition::Enum(labels) => {
                lines.push(format!("@typedef {{{}}} {name}", union(labels)));
                "$plain".to_owned()
            }
            Definition::Flags(labels) => {
                lines.push(format!("@typedef {{({})[]}} {name}", union(labels)));
                "$plain".to_owned()
            }
            Definition::Resource => {
                let _ = writeln!(out, "\n{}export class {name} extends Remote {{", comment(&lines, ""));
                self.methods(out, at, model);
                let _ = writeln!(out, "}}\n\nconst $t{at} = $resource(() => {name});");
                return;
            }
        };
        let _ = writeln!(out, "\n{}const $t{at} = {codec};", comment(&lines, ""));
    }

    fn property(&self, field: &Item<Ty>, key: &str) -> String {
        let docs = field.docs.split_whitespace().collect::<Vec<_>>().join(" ");
        let key = if matches!(field.ty, Ty::Option(_)) { format!("[{key}]") } else { key.to_owned() };
        format!("@property {{{}}} {key} {docs}", self.hint(&field.ty)).trim_end().to_owned()
    }

    fn methods(&self, out: &mut String, at: usize, model: &Model) {
        let mut scope = Scope::new(MEMBERS);
        let all = model.interfaces.iter().flat_map(|interface| &interface.functions);
        for (number, method) in all.filter(|function| function.of == Owner::Method(at)).enumerate() {
            self.function(out, &scope.add(&[camel(&method.name)]), method, number > 0);
        }
    }

    fn function(&self, out: &mut String, name: &str, function: &Function, is_next: bool) {
        let mut scope = Scope::new(RESERVED);
        let mut lines: Vec<String> = function.docs.lines().map(str::to_owned).collect();
        let (mut parameters, mut arguments) = (Vec::new(), Vec::new());
        if let Owner::Method(of) = function.of {
            arguments.push(format!("['self', $t{of}, this]"));
        }
        for (wire, ty) in &function.parameters {
            let parameter = scope.add(&[camel(wire)]);
            lines.push(format!("@param {{{}}} {parameter}", self.hint(ty)));
            arguments.push(format!("['{wire}', {}, {parameter}]", self.codec(ty)));
            parameters.push(parameter);
        }
        let hint = function.result.as_ref().map_or_else(|| "void".to_owned(), |ty| self.hint(ty));
        lines.push(format!("@returns {{Promise<{hint}>}}"));
        let codec = function.result.as_ref().map_or_else(|| "null".to_owned(), |ty| self.codec(ty));
        let _ = write!(
            out,
            "{}{}  async {name}({}) {{\n    return this._call('{}', [{}], {codec});\n  }}\n",
            if is_next { "\n" } else { "" },
            comment(&lines, "  "),
            parameters.join(", "),
            function.path,
            arguments.join(", ")
        );
    }

    /// A type in JSDoc.
    fn hint(&self, ty: &Ty) -> String {
        let maybe = |ty: &Option<Box<Ty>>| ty.as_ref().map_or_else(|| "undefined".to_owned(), |ty| self.hint(ty));
        match ty {
            Ty::Bool => "boolean".to_owned(),
            Ty::Int(64, _) => "bigint".to_owned(),
            Ty::Int(..) | Ty::Float(_) => "number".to_owned(),
            Ty::Char | Ty::String => "string".to_owned(),
            Ty::Bytes => "Uint8Array".to_owned(),
            Ty::List(of) => format!("Array<{}>", self.hint(of)),
            Ty::Map(key, of) => format!("Map<{}, {}>", self.hint(key), self.hint(of)),
            Ty::Tuple(of) => format!("[{}]", of.iter().map(|ty| self.hint(ty)).collect::<Vec<_>>().join(", ")),
            Ty::Option(of) if matches!(**of, Ty::Option(_)) => format!("{{ some: {} }} | undefined", self.hint(of)),
            Ty::Option(of) => format!("{} | undefined", self.hint(of)),
            Ty::Result(ok, err) => format!("{{ ok: {} }} | {{ err: {} }}", maybe(ok), maybe(err)),
            Ty::Named(at) => self.types[*at].clone(),
        }
    }

    fn codec(&self, ty: &Ty) -> String {
        let maybe = |ty: &Option<Box<Ty>>| ty.as_ref().map_or_else(|| "null".to_owned(), |ty| self.codec(ty));
        match ty {
            Ty::Bool | Ty::Char | Ty::String => "$plain".to_owned(),
            Ty::Int(64, _) => "$big".to_owned(),
            Ty::Int(..) => "$plain".to_owned(),
            Ty::Float(_) => "$float".to_owned(),
            Ty::Bytes => "$bytes".to_owned(),
            Ty::List(of) => format!("$list({})", self.codec(of)),
            Ty::Map(key, of) => format!("$map({}, {}, {})", self.codec(key), self.codec(of), **key == Ty::String),
            Ty::Tuple(of) => format!("$tuple({})", of.iter().map(|ty| self.codec(ty)).collect::<Vec<_>>().join(", ")),
            Ty::Option(of) if matches!(**of, Ty::Option(_)) => format!("$option($some({}))", self.codec(of)),
            Ty::Option(of) => format!("$option({})", self.codec(of)),
            Ty::Result(ok, err) => format!("$result({}, {})", maybe(ok), maybe(err)),
            Ty::Named(at) => format!("$t{at}"),
        }
    }
}

fn union(labels: &[Item<()>]) -> String {
    labels.iter().map(|label| format!("'{}'", label.name)).collect::<Vec<_>>().join(" | ")
}

/// A doc comment, or nothing.
fn comment(lines: &[String], indent: &str) -> String {
    let lines: Vec<String> = lines.iter().map(|line| line.trim().replace("*/", "*\\/")).collect();
    match &lines[..] {
        [] => String::new(),
        [line] => format!("{indent}/** {line} */\n"),
        lines => {
            let lines: String =
                lines.iter().map(|line| format!("{indent} * {line}\n").replace("* \n", "*\n")).collect();
            format!("{indent}/**\n{lines}{indent} */\n")
        }
    }
}
