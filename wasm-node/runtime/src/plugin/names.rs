//! Resolves function names: the full name, without the version if only one is exported, without the brackets of a
//! resource's functions if the rest is unambiguous.

use std::collections::HashMap;

use super::types::Function;

/// Function names and their short forms.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<String, Option<usize>>);

impl Names {
    /// Index of these functions; an ambiguous short name resolves to none.
    pub(crate) fn new(functions: &[Function]) -> Self {
        let mut names: HashMap<String, Option<usize>> = HashMap::new();
        let full: HashMap<String, usize> =
            functions.iter().enumerate().map(|(at, function)| (function.full_name(), at)).collect();
        for (at, function) in functions.iter().enumerate() {
            for short in short(function) {
                names.entry(short).and_modify(|known| *known = None).or_insert(Some(at));
            }
        }
        names.extend(full.into_iter().map(|(name, at)| (name, Some(at))));
        Self(names)
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.0.get(name).copied().flatten()
    }
}

/// Short forms of a function's name.
fn short(function: &Function) -> Vec<String> {
    let plain = function.name.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(_, name)| name);
    let names: Vec<&str> = [Some(function.name.as_str()), plain].into_iter().flatten().collect();
    let Some(interface) = &function.interface else {
        return names[1..].iter().map(|name| (*name).to_owned()).collect();
    };
    let unversioned = interface.split_once('@').map(|(interface, _)| interface);
    let interfaces = [Some(interface.as_str()), unversioned].into_iter().flatten();
    interfaces.flat_map(|interface| names.iter().map(move |name| format!("{interface}/{name}"))).skip(1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(interface: &str, name: &str) -> Function {
        Function {
            interface: (!interface.is_empty()).then(|| interface.to_owned()),
            name: name.to_owned(),
            parameters: Vec::new().into(),
            parameter_types: Vec::new(),
            result: None,
        }
    }

    #[test]
    fn names_mean_one_function_or_none() {
        let functions = [
            function("acme:toolbox/shapes@1.2.0", "area"),
            function("acme:toolbox/shapes@2.0.0", "area"),
            function("acme:toolbox/shapes@2.0.0", "[constructor]cart"),
            function("acme:toolbox/shapes@2.0.0", "[method]cart.add"),
            function("acme:toolbox/plain", "cart"),
            function("acme:toolbox/plain", "[constructor]cart"),
            function("", "greet"),
            function("", "[static]tool.make"),
        ];
        let names = Names::new(&functions);
        for (name, found) in [
            ("acme:toolbox/shapes@1.2.0/area", Some(0)),
            ("acme:toolbox/shapes@2.0.0/area", Some(1)),
            ("acme:toolbox/shapes/area", None),
            ("acme:toolbox/shapes@2.0.0/[constructor]cart", Some(2)),
            ("acme:toolbox/shapes/cart", Some(2)),
            ("acme:toolbox/shapes/[method]cart.add", Some(3)),
            ("acme:toolbox/shapes/cart.add", Some(3)),
            ("acme:toolbox/shapes@2.0.0/cart.add", Some(3)),
            ("acme:toolbox/plain/cart", Some(4)),
            ("acme:toolbox/plain/[constructor]cart", Some(5)),
            ("greet", Some(6)),
            ("tool.make", Some(7)),
            ("[static]tool.make", Some(7)),
            ("area", None),
            ("", None),
            ("acme:toolbox/shapes@3.0.0/area", None),
        ] {
            assert_eq!(names.find(name), found, "{name}");
        }
    }
}
