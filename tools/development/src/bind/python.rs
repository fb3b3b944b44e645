//! The client in Python: dataclasses and urllib. Pure.

use std::fmt::Write as _;

use super::idents::{Scope, pascal, snake, upper};
use super::model::{Definition, Function, Interface, Item, Model, NamedType, Owner, Ty};

const RUNTIME: &str = include_str!("runtime/client.py");
const HEAD: &str = "from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from enum import Enum, Flag
from typing import Any, Dict, Generic, List, Optional, Tuple, TypeVar, Union


";
/// Keywords, `self`, and names that methods' bodies use.
const RESERVED: &[&str] = &[
    "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del", "elif", "else", "except",
    "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal", "not", "or", "pass", "raise",
    "return", "self", "try", "while", "with", "yield",
];
/// Names of the module itself.
const TAKEN: &[&str] = &[
    "Any",
    "Dict",
    "E",
    "Enum",
    "Err",
    "False",
    "Flag",
    "Generic",
    "List",
    "None",
    "Ok",
    "Optional",
    "PluginError",
    "Some",
    "T",
    "Transport",
    "True",
    "Tuple",
    "TypeVar",
    "Union",
];

struct Names {
    /// By type: its class.
    types: Vec<String>,
    /// By type: the classes of a variant's cases.
    cases: Vec<Vec<String>>,
    /// By interface.
    clients: Vec<String>,
}

/// The client's text.
pub(super) fn generate(model: &Model, source: &str) -> String {
    let names = Names::new(model);
    let mut out =
        format!("\"\"\"A client of a plugin, written by `coracle bind` from {source}.\"\"\"\n{HEAD}{RUNTIME}");
    for (at, ty) in model.types.iter().enumerate() {
        names.ty(&mut out, at, ty, model);
    }
    for (at, interface) in model.interfaces.iter().enumerate() {
        let _ = write!(out, "\n\nclass {}(_Client):\n{}", names.clients[at], doc(&interface.docs, "    "));
        let mut scope = Scope::new(RESERVED);
        for function in interface.functions.iter().filter(|function| !matches!(function.of, Owner::Method(_))) {
            let wanted = match function.of {
                Owner::Constructor(of) => snake(&model.types[of].name),
                Owner::Static(of) => format!("{}_{}", snake(&model.types[of].name), snake(&function.name)),
                _ => snake(&function.name),
            };
            names.function(&mut out, &scope.add(&[wanted]), function);
        }
        if interface.functions.iter().all(|function| matches!(function.of, Owner::Method(_))) {
            out.push_str("    pass\n");
        }
    }
    out
}

impl Names {
    fn new(model: &Model) -> Self {
        let mut scope = Scope::new(TAKEN);
        let (mut types, mut cases) = (Vec::new(), Vec::new());
        for ty in &model.types {
            let name = scope.add(&[pascal(&ty.name), format!("{}{}", pascal(&ty.interface), pascal(&ty.name))]);
            let of = match &ty.definition {
                Definition::Variant(items) => {
                    items.iter().map(|item| scope.add(&[format!("{name}{}", pascal(&item.name))])).collect()
                }
                _ => Vec::new(),
            };
            types.push(name);
            cases.push(of);
        }
        let client = |interface: &Interface| scope.add(&[format!("{}Client", pascal(&interface.name))]);
        let clients = model.interfaces.iter().map(client).collect();
        Self { types, cases, clients }
    }

    fn ty(&self, out: &mut String, at: usize, ty: &NamedType, model: &Model) {
        let (name, docs) = (&self.types[at], doc(&ty.docs, "    "));
        let codec = match &ty.definition {
            Definition::Record(fields) => {
                let mut scope = Scope::new(RESERVED);
                let attributes: Vec<String> = fields.iter().map(|field| scope.add(&[snake(&field.name)])).collect();
                let _ = write!(out, "\n\n@dataclass(kw_only=True)\nclass {name}:\n{}", spaced(&docs));
                for (field, attribute) in fields.iter().zip(&attributes) {
                    let default = if matches!(field.ty, Ty::Option(_)) { " = None" } else { "" };
                    let comment = comment(&field.docs);
                    let _ = writeln!(out, "{comment}    {attribute}: {}{default}", self.hint(&field.ty));
                }
                let fields = fields.iter().zip(attributes);
                let fields = fields.map(|(field, attribute)| {
                    format!("    (\"{attribute}\", \"{}\", {}),\n", field.name, self.codec(&field.ty))
                });
                format!("_Record({name}, [\n{}])", fields.collect::<String>())
            }
            Definition::Variant(cases) => self.variant(out, at, cases, &ty.docs),
            Definition::Enum(labels) => {
                let _ = write!(out, "\n\nclass {name}(Enum):\n{}", spaced(&docs));
                self.labels(out, labels, |_, label| format!("\"{label}\""));
                format!("_Enum({name})")
            }
            Definition::Flags(labels) => {
                let _ = write!(out, "\n\nclass {name}(Flag):\n{}", spaced(&docs));
                self.labels(out, labels, |bit, _| format!("1 << {bit}"));
                let labels: Vec<String> = labels.iter().map(|label| format!("\"{}\"", label.name)).collect();
                format!("_Flags({name}, [{}])", labels.join(", "))
            }
            Definition::Resource => {
                let _ = write!(out, "\n\nclass {name}(_Remote):\n{docs}");
                self.methods(out, at, model);
                format!("_Resource({name})")
            }
        };
        let _ = write!(out, "\n\n_t{at} = {codec}\n");
    }

    fn labels(&self, out: &mut String, labels: &[Item<()>], value: impl Fn(usize, &str) -> String) {
        // The names of an Enum's own members.
        let mut scope = Scope::new(&["None", "True", "False"]);
        for (at, label) in labels.iter().enumerate() {
            let member = scope.add(&[upper(&label.name)]);
            let _ = writeln!(out, "{}    {member} = {}", comment(&label.docs), value(at, &label.name));
        }
        if labels.is_empty() {
            out.push_str("    pass\n");
        }
    }

    fn variant(&self, out: &mut String, at: usize, cases: &[Item<Option<Ty>>], docs: &str) -> String {
        let mut codecs = String::new();
        for (case, class) in cases.iter().zip(&self.cases[at]) {
            let _ = write!(out, "\n\n@dataclass\nclass {class}:\n{}", spaced(&doc(&case.docs, "    ")));
            match &case.ty {
                Some(ty) => drop(writeln!(out, "    value: {}", self.hint(ty))),
                None => out.push_str("    pass\n"),
            }
            let codec = case.ty.as_ref().map_or_else(|| "None".to_owned(), |ty| self.codec(ty));
            let _ = writeln!(codecs, "    ({class}, \"{}\", {codec}),", case.name);
        }
        let _ = write!(
            out,
            "\n\n{}{} = Union[{}]\n",
            comment(docs).replace("    ", ""),
            self.types[at],
            self.cases[at].join(", ")
        );
        format!("_Variant([\n{codecs}])")
    }

    fn methods(&self, out: &mut String, at: usize, model: &Model) {
        let mut scope = Scope::new(RESERVED);
        let all = model.interfaces.iter().flat_map(|interface| &interface.functions);
        let methods: Vec<&Function> = all.filter(|function| function.of == Owner::Method(at)).collect();
        for method in &methods {
            self.function(out, &scope.add(&[snake(&method.name)]), method);
        }
        if methods.is_empty() {
            out.push_str("    pass\n");
        }
    }

    fn function(&self, out: &mut String, name: &str, function: &Function) {
        let mut scope = Scope::new(RESERVED);
        let (mut parameters, mut arguments) = (vec!["self".to_owned()], Vec::new());
        if let Owner::Method(of) = function.of {
            arguments.push(format!("(\"self\", _t{of}, self)"));
        }
        for (wire, ty) in &function.parameters {
            let parameter = scope.add(&[snake(wire)]);
            parameters.push(format!("{parameter}: {}", self.hint(ty)));
            arguments.push(format!("(\"{wire}\", {}, {parameter})", self.codec(ty)));
        }
        let hint = function.result.as_ref().map_or_else(|| "None".to_owned(), |ty| self.hint(ty));
        let codec = function.result.as_ref().map_or_else(|| "None".to_owned(), |ty| self.codec(ty));
        let _ = write!(
            out,
            "\n    def {name}({}) -> {hint}:\n{}        return self._call(\"{}\", [{}], {codec})\n",
            parameters.join(", "),
            doc(&function.docs, "        "),
            function.path,
            arguments.join(", ")
        );
    }

    /// A type's hint.
    fn hint(&self, ty: &Ty) -> String {
        let maybe = |ty: &Option<Box<Ty>>| ty.as_ref().map_or_else(|| "None".to_owned(), |ty| self.hint(ty));
        match ty {
            Ty::Bool => "bool".to_owned(),
            Ty::Int(..) => "int".to_owned(),
            Ty::Float(_) => "float".to_owned(),
            Ty::Char | Ty::String => "str".to_owned(),
            Ty::Bytes => "bytes".to_owned(),
            Ty::List(of) => format!("List[{}]", self.hint(of)),
            Ty::Map(key, of) => format!("Dict[{}, {}]", self.hint(key), self.hint(of)),
            Ty::Tuple(of) => format!("Tuple[{}]", of.iter().map(|ty| self.hint(ty)).collect::<Vec<_>>().join(", ")),
            Ty::Option(of) if matches!(**of, Ty::Option(_)) => format!("Optional[Some[{}]]", self.hint(of)),
            Ty::Option(of) => format!("Optional[{}]", self.hint(of)),
            Ty::Result(ok, err) => format!("Union[Ok[{}], Err[{}]]", maybe(ok), maybe(err)),
            Ty::Named(at) => self.types[*at].clone(),
        }
    }

    /// A type's codec.
    fn codec(&self, ty: &Ty) -> String {
        let maybe = |ty: &Option<Box<Ty>>| ty.as_ref().map_or_else(|| "None".to_owned(), |ty| self.codec(ty));
        match ty {
            Ty::Bool | Ty::Char | Ty::String => "_plain".to_owned(),
            Ty::Int(..) => "_int".to_owned(),
            Ty::Float(_) => "_float".to_owned(),
            Ty::Bytes => "_bytes".to_owned(),
            Ty::List(of) => format!("_List({})", self.codec(of)),
            Ty::Map(key, of) => {
                let is_object = if **key == Ty::String { "True" } else { "False" };
                format!("_Map({}, {}, {is_object})", self.codec(key), self.codec(of))
            }
            Ty::Tuple(of) => format!("_Tuple([{}])", of.iter().map(|ty| self.codec(ty)).collect::<Vec<_>>().join(", ")),
            Ty::Option(of) => {
                let is_nested = if matches!(**of, Ty::Option(_)) { "True" } else { "False" };
                format!("_Option({}, {is_nested})", self.codec(of))
            }
            Ty::Result(ok, err) => format!("_Result({}, {})", maybe(ok), maybe(err)),
            Ty::Named(at) => format!("_t{at}"),
        }
    }
}

/// A docstring, or nothing.
fn doc(text: &str, indent: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    let lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    let end = if lines.len() > 1 { format!("\n{indent}") } else { String::new() };
    let lines = lines.join(&format!("\n{indent}")).replace(&format!("{indent}\n"), "\n");
    format!("{indent}\"\"\"{lines}{end}\"\"\"\n")
}

/// A docstring with an empty line after it.
fn spaced(docs: &str) -> String {
    if docs.is_empty() { String::new() } else { format!("{docs}\n") }
}

/// Comment lines, or nothing.
fn comment(text: &str) -> String {
    text.lines().map(|line| format!("    # {}\n", line.trim()).replace("# \n", "#\n")).collect()
}
