//! Reads a plugin's functions and types from its component's binary. The input is untrusted, so this runs where modules are
//! compiled: in a separate process.

use std::collections::HashMap;

use wit_component::WitPrinter;
use wit_parser::decoding::{DecodedWasm, decode};
use wit_parser::{self as wit, Resolve, TypeDefKind, TypeOwner, World, WorldItem};

use super::types::{Description, Function, Shape, TYPE_DEPTH_MAX, Type, TypeId};

/// Maximum bytes of a world's text, beyond any hand-written one.
const WIT_BYTES_MAX: usize = 4 << 20;
/// Maximum exported functions of a plugin.
const FUNCTIONS_MAX: usize = 10_000;

/// Describes a component.
///
/// # Errors
/// It exports no function, or one with unsupported types.
pub(crate) fn describe(component: &[u8]) -> Result<Description, String> {
    let decoded = decode(component).map_err(|error| format!("its interface can't be read: {error:#}"))?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err("it is a WIT package, which has types and no code".into());
    };
    let mut reader = Reader { resolve: &resolve, types: Vec::new(), known: HashMap::new(), plain: HashMap::new() };
    let functions = reader.functions(&resolve.worlds[world])?;
    let types = reader.types;
    Description::new(text(&resolve, &resolve.worlds[world])?, functions, types)
}

fn text(resolve: &Resolve, world: &World) -> Result<String, String> {
    let mut printer = WitPrinter::default();
    let main = world.package.ok_or("its world has no package")?;
    let exports = |package: &wit::PackageId| {
        let of = |item: &WorldItem| match item {
            WorldItem::Interface { id, .. } => resolve.interfaces[*id].package,
            _ => None,
        };
        world.exports.values().any(|item| of(item) == Some(*package))
    };
    let mut others: Vec<_> = resolve.packages.iter().map(|(id, _)| id).filter(|id| *id != main).collect();
    // The plugin's own interfaces before those of WASI.
    others.sort_by_key(|package| !exports(package));
    printer.print(resolve, main, &others).map_err(|error| format!("its interface can't be printed: {error:#}"))?;
    let text = String::from(printer.output);
    if text.len() > WIT_BYTES_MAX {
        return Err(format!("its WIT has {} bytes, at most {WIT_BYTES_MAX} are taken", text.len()));
    }
    Ok(text)
}

struct Reader<'a> {
    resolve: &'a Resolve,
    types: Vec<Type>,
    known: HashMap<wit::TypeId, TypeId>,
    /// Types without a definition of their own.
    plain: HashMap<String, TypeId>,
}

impl Reader<'_> {
    fn functions(&mut self, world: &World) -> Result<Vec<Function>, String> {
        let mut found = Vec::new();
        for (key, item) in &world.exports {
            match item {
                WorldItem::Function(function) => found.push(self.function(None, function)?),
                WorldItem::Interface { id, .. } => {
                    let name = self.resolve.name_world_key(key);
                    for function in self.resolve.interfaces[*id].functions.values() {
                        found.push(self.function(Some(name.clone()), function)?);
                        if found.len() > FUNCTIONS_MAX {
                            return Err(format!("it exports more than {FUNCTIONS_MAX} functions"));
                        }
                    }
                }
                WorldItem::Type { .. } => {}
            }
        }
        if found.is_empty() {
            return Err("it exports no function".into());
        }
        Ok(found)
    }

    fn function(&mut self, interface: Option<String>, function: &wit::Function) -> Result<Function, String> {
        let parameters: Vec<String> = function.params.iter().map(|parameter| parameter.name.clone()).collect();
        let types = function.params.iter().map(|parameter| self.ty(parameter.ty, 0)).collect::<Result<_, _>>();
        let result = function.result.map(|ty| self.ty(ty, 0)).transpose();
        let of = |why: String| format!("its function {} {why}", function.name);
        Ok(Function {
            interface,
            name: function.name.clone(),
            parameters: parameters.into(),
            parameter_types: types.map_err(of)?,
            result: result.map_err(of)?,
        })
    }

    fn ty(&mut self, ty: wit::Type, depth: u32) -> Result<TypeId, String> {
        let shape = match ty {
            wit::Type::Bool => Shape::Bool,
            wit::Type::U8 => Shape::U8,
            wit::Type::U16 => Shape::U16,
            wit::Type::U32 => Shape::U32,
            wit::Type::U64 => Shape::U64,
            wit::Type::S8 => Shape::S8,
            wit::Type::S16 => Shape::S16,
            wit::Type::S32 => Shape::S32,
            wit::Type::S64 => Shape::S64,
            wit::Type::F32 => Shape::F32,
            wit::Type::F64 => Shape::F64,
            wit::Type::Char => Shape::Char,
            wit::Type::String => Shape::String,
            wit::Type::ErrorContext => return Err("has an error-context, which is of WASI 0.3".into()),
            wit::Type::Id(id) => return self.defined(id, depth),
        };
        let word = shape.word().to_owned();
        if let Some(id) = self.plain.get(&word) {
            return Ok(*id);
        }
        let id = self.add(Type { name: None, interface: String::new(), shape });
        self.plain.insert(word, id);
        Ok(id)
    }

    fn defined(&mut self, id: wit::TypeId, depth: u32) -> Result<TypeId, String> {
        if let Some(known) = self.known.get(&id) {
            return Ok(*known);
        }
        // Aliases count too here: the way to a type is walked by recursion.
        if depth > 2 * TYPE_DEPTH_MAX {
            return Err(format!("has types nested more than {TYPE_DEPTH_MAX} deep"));
        }
        let definition = &self.resolve.types[id];
        let shape = match &definition.kind {
            TypeDefKind::Type(of) => {
                let found = self.ty(*of, depth + 1)?;
                self.known.insert(id, found);
                return Ok(found);
            }
            kind => self.shape(kind, depth + 1)?,
        };
        let interface = match definition.owner {
            TypeOwner::Interface(interface) => self.resolve.id_of(interface).unwrap_or_default(),
            TypeOwner::World(_) | TypeOwner::None => String::new(),
        };
        let found = self.add(Type { name: definition.name.clone(), interface, shape });
        self.known.insert(id, found);
        Ok(found)
    }

    fn shape(&mut self, kind: &TypeDefKind, depth: u32) -> Result<Shape, String> {
        Ok(match kind {
            TypeDefKind::List(of) => Shape::List(self.ty(*of, depth)?),
            TypeDefKind::Map(key, value) => Shape::Map(self.ty(*key, depth)?, self.ty(*value, depth)?),
            TypeDefKind::Option(of) => Shape::Option(self.ty(*of, depth)?),
            TypeDefKind::Tuple(tuple) => {
                Shape::Tuple(tuple.types.iter().map(|ty| self.ty(*ty, depth)).collect::<Result<_, _>>()?)
            }
            TypeDefKind::Record(record) => {
                let names: Vec<String> = record.fields.iter().map(|field| field.name.clone()).collect();
                let types = record.fields.iter().map(|field| self.ty(field.ty, depth)).collect::<Result<_, _>>()?;
                Shape::Record(names.into(), types)
            }
            TypeDefKind::Variant(variant) => {
                let names: Vec<String> = variant.cases.iter().map(|case| case.name.clone()).collect();
                let types = variant.cases.iter().map(|case| self.maybe(case.ty, depth)).collect::<Result<_, _>>()?;
                Shape::Variant(names.into(), types)
            }
            TypeDefKind::Enum(of) => {
                Shape::Enum(of.cases.iter().map(|case| case.name.clone()).collect::<Vec<_>>().into())
            }
            TypeDefKind::Flags(of) => {
                Shape::Flags(of.flags.iter().map(|flag| flag.name.clone()).collect::<Vec<_>>().into())
            }
            TypeDefKind::Result(result) => Shape::Result(self.maybe(result.ok, depth)?, self.maybe(result.err, depth)?),
            TypeDefKind::Handle(wit::Handle::Own(id)) => Shape::Own(self.resource(*id)),
            TypeDefKind::Handle(wit::Handle::Borrow(id)) => Shape::Borrow(self.resource(*id)),
            other => return Err(format!("has a {}, which this version does not offer", other.as_str())),
        })
    }

    fn maybe(&mut self, ty: Option<wit::Type>, depth: u32) -> Result<Option<TypeId>, String> {
        ty.map(|ty| self.ty(ty, depth)).transpose()
    }

    /// A resource's full name, with aliases resolved.
    fn resource(&self, mut id: wit::TypeId) -> String {
        while let TypeDefKind::Type(wit::Type::Id(of)) = &self.resolve.types[id].kind {
            id = *of;
        }
        let definition = &self.resolve.types[id];
        let interface = match definition.owner {
            TypeOwner::Interface(interface) => self.resolve.id_of(interface).unwrap_or_default(),
            TypeOwner::World(_) | TypeOwner::None => String::new(),
        };
        format!("{interface}#{}", definition.name.as_deref().unwrap_or("resource"))
    }

    fn add(&mut self, ty: Type) -> TypeId {
        self.types.push(ty);
        TypeId(self.types.len() as u32 - 1)
    }
}
