//! Functions and types of a plugin as data. A component's types refer to each other without cycles, so they form one list, each
//! after its parts: parsing, checking and describing them costs as much as their text, however often one of them is used.

use serde::{Deserialize, Serialize};

/// Types nested deeper than this are rejected: values of them are read and written by recursion.
pub(crate) const TYPE_DEPTH_MAX: u32 = 64;

/// A type's index in [`Description::types`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct TypeId(pub(crate) u32);

/// Labels of a type in their order, with an index by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub(crate) struct Labels {
    names: Vec<String>,
    sorted: Vec<u32>,
}

impl From<Vec<String>> for Labels {
    fn from(names: Vec<String>) -> Self {
        let mut sorted: Vec<u32> = (0..names.len() as u32).collect();
        sorted.sort_by_key(|at| &names[*at as usize]);
        Self { names, sorted }
    }
}

impl From<Labels> for Vec<String> {
    fn from(labels: Labels) -> Self {
        labels.names
    }
}

impl Labels {
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        let at = self.sorted.binary_search_by_key(&name, |at| &self.names[*at as usize]).ok()?;
        Some(self.sorted[at] as usize)
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Some of them, for a message.
    pub(crate) fn listed(&self) -> String {
        const SHOWN: usize = 8;
        let shown: Vec<&str> = self.names.iter().take(SHOWN).map(String::as_str).collect();
        let more = if self.names.len() > SHOWN { ", …" } else { "" };
        format!("{}{more}", shown.join(", "))
    }
}

/// Structure of a type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Shape {
    Bool,
    S8,
    U8,
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
    F32,
    F64,
    Char,
    String,
    List(TypeId),
    /// By a key, which is an integer, a character, a string or a boolean.
    Map(TypeId, TypeId),
    Record(Labels, Vec<TypeId>),
    Tuple(Vec<TypeId>),
    Variant(Labels, Vec<Option<TypeId>>),
    Enum(Labels),
    Option(TypeId),
    Result(Option<TypeId>, Option<TypeId>),
    Flags(Labels),
    /// A resource whose ownership passes to the receiver: `acme:toolbox/shapes@1.2.0#cart`.
    Own(String),
    /// A resource that is borrowed for the call.
    Borrow(String),
}

/// A type, with its name if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Type {
    /// `point`.
    pub(crate) name: Option<String>,
    /// The defining interface: `acme:toolbox/shapes@1.2.0`; empty at the world's root.
    pub(crate) interface: String,
    pub(crate) shape: Shape,
}

/// An exported function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Function {
    /// The exported interface; `None` for a function of the world itself.
    pub(crate) interface: Option<String>,
    /// Its name there: `area`, `[method]cart.add`.
    pub(crate) name: String,
    pub(crate) parameters: Labels,
    pub(crate) parameter_types: Vec<TypeId>,
    pub(crate) result: Option<TypeId>,
}

impl Function {
    /// The name for calls: `acme:toolbox/shapes@1.2.0/area`.
    pub(crate) fn full_name(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{interface}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// A plugin's functions and types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// Its world as WIT text.
    pub(crate) wit: String,
    pub(crate) functions: Vec<Function>,
    types: Vec<Type>,
    /// By type: whether a value of it may contain flags, or a resource.
    #[serde(skip)]
    facts: Vec<TypeProperties>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct TypeProperties {
    depth: u32,
    flags: bool,
    resources: bool,
}

impl Description {
    /// Creates a description.
    ///
    /// # Errors
    /// A type refers to one that doesn't precede it, or types are nested too deeply.
    pub(crate) fn new(wit: String, functions: Vec<Function>, types: Vec<Type>) -> Result<Self, String> {
        let facts = facts(&types)?;
        let known = |id: &TypeId| (id.0 as usize) < types.len();
        let whole = functions.iter().all(|function| {
            function.parameters.names().len() == function.parameter_types.len()
                && function.parameter_types.iter().chain(&function.result).all(known)
        });
        if whole { Ok(Self { wit, functions, types, facts }) } else { Err("a function's types are missing".into()) }
    }

    /// Parses a stored description.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Self::new(read.wit, read.functions, read.types)
    }

    pub(crate) fn ty(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    pub(crate) fn shape(&self, id: TypeId) -> &Shape {
        &self.ty(id).shape
    }

    pub(crate) fn has_flags(&self, id: TypeId) -> bool {
        self.facts[id.0 as usize].flags
    }

    pub(crate) fn has_resources(&self, id: TypeId) -> bool {
        self.facts[id.0 as usize].resources
    }

    /// The type's name in a message: its own name, else its shape in WIT within a line's length.
    pub(crate) fn name(&self, id: TypeId) -> String {
        let ty = self.ty(id);
        if let Some(name) = &ty.name {
            return match &ty.shape {
                Shape::Enum(labels) => format!("{name} (one of {})", labels.listed()),
                _ => name.clone(),
            };
        }
        let of = |id: &Option<TypeId>| id.map_or_else(|| "_".to_owned(), |id| self.short(id));
        match &ty.shape {
            Shape::List(of) => format!("list<{}>", self.short(*of)),
            Shape::Map(key, value) => format!("map<{}, {}>", self.short(*key), self.short(*value)),
            Shape::Option(of) => format!("option<{}>", self.short(*of)),
            Shape::Tuple(of) => {
                let parts: Vec<String> = of.iter().take(4).map(|id| self.short(*id)).collect();
                format!("tuple<{}{}>", parts.join(", "), if of.len() > 4 { ", …" } else { "" })
            }
            Shape::Result(None, None) => "result".to_owned(),
            Shape::Result(ok, err) => format!("result<{}, {}>", of(ok), of(err)),
            shape => shape.word().to_owned(),
        }
    }

    fn short(&self, id: TypeId) -> String {
        let ty = self.ty(id);
        ty.name.clone().unwrap_or_else(|| match &ty.shape {
            Shape::List(of) | Shape::Option(of) => {
                let within = self.ty(*of);
                let within = within.name.as_deref().unwrap_or(within.shape.word());
                format!("{}<{within}>", ty.shape.word())
            }
            shape => shape.word().to_owned(),
        })
    }
}

/// The short name of a resource.
pub(crate) fn resource_word(resource: &str) -> &str {
    resource.rsplit_once('#').map_or(resource, |(_, name)| name)
}

impl Shape {
    /// Its keyword in WIT.
    pub(crate) fn word(&self) -> &str {
        match self {
            Self::Bool => "bool",
            Self::S8 => "s8",
            Self::U8 => "u8",
            Self::S16 => "s16",
            Self::U16 => "u16",
            Self::S32 => "s32",
            Self::U32 => "u32",
            Self::S64 => "s64",
            Self::U64 => "u64",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Char => "char",
            Self::String => "string",
            Self::List(_) => "list",
            Self::Map(..) => "map",
            Self::Record(..) => "record",
            Self::Tuple(_) => "tuple",
            Self::Variant(..) => "variant",
            Self::Enum(_) => "enum",
            Self::Option(_) => "option",
            Self::Result(..) => "result",
            Self::Flags(_) => "flags",
            Self::Own(resource) | Self::Borrow(resource) => resource_word(resource),
        }
    }

    /// Its component types.
    pub(crate) fn parts(&self) -> Vec<TypeId> {
        match self {
            Self::List(of) | Self::Option(of) => vec![*of],
            Self::Map(key, value) => vec![*key, *value],
            Self::Record(_, fields) => fields.clone(),
            Self::Tuple(of) => of.clone(),
            Self::Variant(_, cases) => cases.iter().flatten().copied().collect(),
            Self::Result(ok, err) => ok.iter().chain(err).copied().collect(),
            _ => Vec::new(),
        }
    }
}

fn facts(types: &[Type]) -> Result<Vec<TypeProperties>, String> {
    let mut all: Vec<TypeProperties> = Vec::with_capacity(types.len());
    for (at, ty) in types.iter().enumerate() {
        let mut own = match &ty.shape {
            Shape::Flags(_) => TypeProperties { flags: true, ..TypeProperties::default() },
            Shape::Own(_) | Shape::Borrow(_) => TypeProperties { resources: true, ..TypeProperties::default() },
            Shape::Record(labels, fields) if labels.names().len() != fields.len() => {
                return Err(format!("type {at} has labels without types"));
            }
            Shape::Variant(labels, cases) if labels.names().len() != cases.len() => {
                return Err(format!("type {at} has labels without types"));
            }
            _ => TypeProperties::default(),
        };
        for part in ty.shape.parts() {
            let Some(part) = all.get(part.0 as usize) else { return Err(format!("type {at} stands before its parts")) };
            own.depth = own.depth.max(part.depth + 1);
            own.flags |= part.flags;
            own.resources |= part.resources;
        }
        if own.depth > TYPE_DEPTH_MAX {
            return Err(format!("its types are nested more than {TYPE_DEPTH_MAX} deep"));
        }
        all.push(own);
    }
    Ok(all)
}
