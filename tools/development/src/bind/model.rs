//! The functions and types that a client needs, from WIT text. Pure. Any text gives a model or an error: size, nesting and the number of
//! types are bounded.

use std::collections::HashMap;

use anyhow::anyhow;
use wit_parser::{self as wit, Resolve, SourceMap, TypeDefKind, TypeOwner, UnresolvedPackageGroup, WorldId, WorldItem};

use super::sources::{Package, Sources, WIT_BYTES_MAX};

/// Maximum nesting of types, as of the plugins themselves (docs/plugins.md, "Limits").
const TYPE_DEPTH_MAX: u32 = 64;
/// Maximum parts of types with aliases resolved: an alias of an alias could double them each time.
const TYPE_PARTS_MAX: usize = 100_000;

/// What a client offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) interfaces: Vec<Interface>,
    /// Each after the types that it consists of.
    pub(super) types: Vec<NamedType>,
}

/// An exported interface, or the functions of the world itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) docs: String,
    pub(super) functions: Vec<Function>,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Function {
    /// The name in the path of a call.
    pub(super) path: String,
    pub(super) name: String,
    pub(super) of: Owner,
    pub(super) docs: String,
    /// Without the resource of a method.
    pub(super) parameters: Vec<(String, Ty)>,
    pub(super) result: Option<Ty>,
}

/// What a function belongs to: a resource is an index of [`Model::types`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Interface,
    Constructor(usize),
    Static(usize),
    Method(usize),
}

/// A type with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedType {
    pub(super) name: String,
    /// The name of its interface or world.
    pub(super) interface: String,
    pub(super) docs: String,
    pub(super) definition: Definition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Definition {
    Record(Vec<Item<Ty>>),
    Variant(Vec<Item<Option<Ty>>>),
    Enum(Vec<Item<()>>),
    Flags(Vec<Item<()>>),
    Resource,
}

/// A field, case or flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item<T> {
    pub(super) name: String,
    pub(super) docs: String,
    pub(super) ty: T,
}

/// A type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ty {
    Bool,
    /// Bits, and whether it has a sign.
    Int(u8, bool),
    Float(u8),
    Char,
    String,
    Bytes,
    List(Box<Ty>),
    Map(Box<Ty>, Box<Ty>),
    Tuple(Vec<Ty>),
    Option(Box<Ty>),
    Result(Option<Box<Ty>>, Option<Box<Ty>>),
    /// An index of [`Model::types`].
    Named(usize),
}

/// Reads WIT.
///
/// # Errors
/// A sentence: a text is no WIT, has no such world or several, exports no function, or is too large or too deep.
pub(super) fn read(sources: &Sources, world: Option<&str>) -> Result<Model, String> {
    let bytes: usize = sources.files().map(|file| file.text.len()).sum();
    if bytes > WIT_BYTES_MAX {
        return Err(format!("the WIT has {bytes} bytes, at most {WIT_BYTES_MAX} are taken"));
    }
    for file in sources.files() {
        check_depth(&file.text)?;
    }
    let mut resolve = Resolve { all_features: true, ..Resolve::default() };
    let dependencies = sources.dependencies.iter().map(parse).collect::<Result<_, _>>()?;
    let package =
        resolve.push_groups(parse(&sources.main)?, dependencies).map_err(|error| format!("{:#}", anyhow!(error)))?;
    let world = choose(&resolve, package, world)?;
    let mut reader = Reader { resolve: &resolve, types: Vec::new(), known: HashMap::new(), parts: 0 };
    let interfaces = reader.interfaces(world)?;
    if interfaces.iter().all(|interface| interface.functions.is_empty()) {
        return Err(format!("the world {} exports no function", resolve.worlds[world].name));
    }
    Ok(Model { interfaces, types: reader.types })
}

fn parse(package: &Package) -> Result<UnresolvedPackageGroup, String> {
    let mut files = SourceMap::default();
    for file in package {
        files.push_str(&file.name, &file.text);
    }
    files.parse().map_err(|(files, error)| error.render(&files))
}

/// Rejects what the parser would have to follow too deep.
fn check_depth(text: &str) -> Result<(), String> {
    let (mut depth, mut before) = (0u32, ' ');
    for c in text.chars() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth = depth.saturating_sub(1),
            ';' | '{' | '}' => depth = 0,
            _ => {}
        }
        if depth > TYPE_DEPTH_MAX {
            return Err(format!("the WIT has types nested more than {TYPE_DEPTH_MAX} deep"));
        }
        before = c;
    }
    Ok(())
}

/// The named world, or the only one with exports.
fn choose(resolve: &Resolve, package: wit::PackageId, wanted: Option<&str>) -> Result<WorldId, String> {
    let worlds = &resolve.packages[package].worlds;
    if let Some(name) = wanted {
        return worlds.get(name).copied().ok_or_else(|| {
            let names: Vec<&str> = worlds.keys().map(String::as_str).collect();
            format!("the WIT has no world {name:?}; it has {}", names.join(", "))
        });
    }
    let mut exporting = worlds.iter().filter(|(_, id)| !resolve.worlds[**id].exports.is_empty());
    match (exporting.next(), exporting.next()) {
        (Some((_, id)), None) => Ok(*id),
        (Some((one, _)), Some((two, _))) => {
            Err(format!("the WIT has several worlds, as {one} and {two}: name one with --world"))
        }
        (None, _) => Err("the WIT has no world that exports functions".to_owned()),
    }
}

struct Reader<'a> {
    resolve: &'a Resolve,
    types: Vec<NamedType>,
    known: HashMap<wit::TypeId, usize>,
    parts: usize,
}

impl Reader<'_> {
    fn interfaces(&mut self, world: WorldId) -> Result<Vec<Interface>, String> {
        let world = &self.resolve.worlds[world];
        let own = Interface { name: world.name.clone(), docs: docs(&world.docs), functions: Vec::new() };
        let mut all = vec![own];
        for (key, item) in &world.exports {
            match item {
                WorldItem::Function(function) => {
                    let function = self.function(None, function)?;
                    all[0].functions.push(function);
                }
                WorldItem::Interface { id, .. } => {
                    let path = self.resolve.name_world_key(key);
                    let interface = &self.resolve.interfaces[*id];
                    let short = path.rsplit('/').next().and_then(|name| name.split('@').next()).unwrap_or(&path);
                    let functions = interface.functions.values().map(|function| self.function(Some(&path), function));
                    let functions = functions.collect::<Result<_, _>>()?;
                    all.push(Interface { name: short.to_owned(), docs: docs(&interface.docs), functions });
                }
                WorldItem::Type { .. } => {}
            }
        }
        all.retain(|interface| !interface.functions.is_empty());
        Ok(all)
    }

    fn function(&mut self, interface: Option<&str>, function: &wit::Function) -> Result<Function, String> {
        use wit::FunctionKind as Kind;
        let of = match function.kind {
            Kind::Freestanding => Owner::Interface,
            Kind::Constructor(id) => Owner::Constructor(self.named(id, 0)?),
            Kind::Static(id) => Owner::Static(self.named(id, 0)?),
            Kind::Method(id) => Owner::Method(self.named(id, 0)?),
            _ => return Err(format!("the function {} is async, which plugins don't have", function.name)),
        };
        let skipped = usize::from(matches!(of, Owner::Method(_)));
        let of_parameter = |reader: &mut Self, parameter: &wit::Param| {
            Ok::<_, String>((parameter.name.clone(), reader.ty(parameter.ty, 0)?))
        };
        let parameters = function.params.iter().skip(skipped).map(|parameter| of_parameter(self, parameter));
        let parameters = parameters.collect::<Result<_, _>>()?;
        let result = function.result.map(|ty| self.ty(ty, 0)).transpose()?;
        let path = interface.map_or_else(|| function.name.clone(), |path| format!("{path}/{}", function.name));
        let name = function.item_name().to_owned();
        Ok(Function { path, name, of, docs: docs(&function.docs), parameters, result })
    }

    fn ty(&mut self, ty: wit::Type, depth: u32) -> Result<Ty, String> {
        self.parts += 1;
        if self.parts > TYPE_PARTS_MAX {
            return Err(format!("the types have more than {TYPE_PARTS_MAX} parts"));
        }
        if depth > TYPE_DEPTH_MAX {
            return Err(format!("the types are nested more than {TYPE_DEPTH_MAX} deep"));
        }
        Ok(match ty {
            wit::Type::Bool => Ty::Bool,
            wit::Type::U8 => Ty::Int(8, false),
            wit::Type::U16 => Ty::Int(16, false),
            wit::Type::U32 => Ty::Int(32, false),
            wit::Type::U64 => Ty::Int(64, false),
            wit::Type::S8 => Ty::Int(8, true),
            wit::Type::S16 => Ty::Int(16, true),
            wit::Type::S32 => Ty::Int(32, true),
            wit::Type::S64 => Ty::Int(64, true),
            wit::Type::F32 => Ty::Float(32),
            wit::Type::F64 => Ty::Float(64),
            wit::Type::Char => Ty::Char,
            wit::Type::String => Ty::String,
            wit::Type::ErrorContext => return Err("a type is an error-context, which plugins don't have".to_owned()),
            wit::Type::Id(id) => return self.defined(id, depth + 1),
        })
    }

    fn defined(&mut self, id: wit::TypeId, depth: u32) -> Result<Ty, String> {
        let boxed = |reader: &mut Self, ty: &wit::Type| reader.ty(*ty, depth).map(Box::new);
        Ok(match &self.resolve.types[id].kind {
            TypeDefKind::Type(of) => self.ty(*of, depth)?,
            TypeDefKind::List(wit::Type::U8) => Ty::Bytes,
            TypeDefKind::List(of) => match self.ty(*of, depth)? {
                Ty::Int(8, false) => Ty::Bytes,
                of => Ty::List(Box::new(of)),
            },
            TypeDefKind::Map(key, value) => Ty::Map(boxed(self, key)?, boxed(self, value)?),
            TypeDefKind::Tuple(tuple) => {
                Ty::Tuple(tuple.types.iter().map(|ty| self.ty(*ty, depth)).collect::<Result<_, _>>()?)
            }
            TypeDefKind::Option(of) => Ty::Option(boxed(self, of)?),
            TypeDefKind::Result(result) => Ty::Result(
                result.ok.as_ref().map(|ty| boxed(self, ty)).transpose()?,
                result.err.as_ref().map(|ty| boxed(self, ty)).transpose()?,
            ),
            TypeDefKind::Handle(wit::Handle::Own(id) | wit::Handle::Borrow(id)) => Ty::Named(self.named(*id, depth)?),
            _ => Ty::Named(self.named(id, depth)?),
        })
    }

    /// The index of a type with a name.
    fn named(&mut self, mut id: wit::TypeId, depth: u32) -> Result<usize, String> {
        for _ in 0..=TYPE_DEPTH_MAX {
            let TypeDefKind::Type(wit::Type::Id(of)) = self.resolve.types[id].kind else { break };
            id = of;
        }
        if let Some(known) = self.known.get(&id) {
            return Ok(*known);
        }
        let definition = &self.resolve.types[id];
        let of = self.definition(&definition.kind, depth)?;
        let interface = match definition.owner {
            TypeOwner::Interface(id) => self.resolve.interfaces[id].name.clone().unwrap_or_default(),
            TypeOwner::World(id) => self.resolve.worlds[id].name.clone(),
            TypeOwner::None => String::new(),
        };
        let name = definition.name.clone().ok_or("a type has no name")?;
        self.types.push(NamedType { name, interface, docs: docs(&definition.docs), definition: of });
        self.known.insert(id, self.types.len() - 1);
        Ok(self.types.len() - 1)
    }

    fn definition(&mut self, kind: &TypeDefKind, depth: u32) -> Result<Definition, String> {
        Ok(match kind {
            TypeDefKind::Record(record) => Definition::Record(items(
                record.fields.iter().map(|field| (&field.name, &field.docs, self.ty(field.ty, depth))),
            )?),
            TypeDefKind::Variant(variant) => Definition::Variant(items(
                variant
                    .cases
                    .iter()
                    .map(|case| (&case.name, &case.docs, case.ty.map(|ty| self.ty(ty, depth)).transpose())),
            )?),
            TypeDefKind::Enum(of) => {
                Definition::Enum(items(of.cases.iter().map(|case| (&case.name, &case.docs, Ok(()))))?)
            }
            TypeDefKind::Flags(of) => {
                Definition::Flags(items(of.flags.iter().map(|flag| (&flag.name, &flag.docs, Ok(()))))?)
            }
            TypeDefKind::Resource => Definition::Resource,
            other => return Err(format!("a type is a {}, which plugins don't have", other.as_str())),
        })
    }
}

fn items<'a, T>(
    items: impl Iterator<Item = (&'a String, &'a wit::Docs, Result<T, String>)>,
) -> Result<Vec<Item<T>>, String> {
    items.map(|(name, text, ty)| Ok(Item { name: name.clone(), docs: docs(text), ty: ty? })).collect()
}

/// The text of a doc comment, without control characters other than newlines.
fn docs(docs: &wit::Docs) -> String {
    let text = docs.contents.as_deref().unwrap_or_default().trim();
    text.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
}
