//! Declared types: a variable's type with the maximum sizes that the static cost estimate needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Type;

/// A type with the sizes that the cost estimate needs.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclType {
    pub ty: Type,
    /// The maximum number of characters, bytes, items or entries; negative if unknown.
    pub max_elements: i64,
    /// The minimum size of a value in a request, in bytes.
    pub min_size: i64,
    pub shape: Shape,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    Scalar,
    List(Arc<DeclType>),
    /// The values of a map whose keys are strings.
    Map(Arc<DeclType>),
    Object(BTreeMap<Arc<str>, Arc<DeclType>>),
}

impl DeclType {
    pub fn scalar(ty: Type, min_size: i64) -> Self {
        Self { ty, max_elements: 0, min_size, shape: Shape::Scalar }
    }

    pub fn list(item: Self, max_elements: i64) -> Self {
        Self { ty: Type::list(item.ty.clone()), max_elements, min_size: 2, shape: Shape::List(Arc::new(item)) }
    }

    pub fn map(value: Self, max_elements: i64) -> Self {
        let ty = Type::map(Type::String, value.ty.clone());
        Self { ty, max_elements, min_size: 2, shape: Shape::Map(Arc::new(value)) }
    }

    /// An object of a named type, and its fields.
    pub fn object<'a>(name: &str, fields: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let fields = fields.into_iter().map(|(name, field)| (name.into(), Arc::new(field))).collect();
        Self { ty: Type::object(name), max_elements: 0, min_size: 2, shape: Shape::Object(fields) }
    }

    /// Names all object types within, each after its path.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.shape = match self.shape {
            Shape::Scalar => return self,
            Shape::List(item) => {
                let item = Arc::unwrap_or_clone(item).named(&format!("{name}.@idx"));
                self.ty = Type::list(item.ty.clone());
                Shape::List(Arc::new(item))
            }
            Shape::Map(value) => {
                let value = Arc::unwrap_or_clone(value).named(&format!("{name}.@elem"));
                self.ty = Type::map(Type::String, value.ty.clone());
                Shape::Map(Arc::new(value))
            }
            Shape::Object(fields) => {
                self.ty = Type::object(name);
                let named = |(field, ty): (Arc<str>, Arc<Self>)| {
                    let ty = Arc::unwrap_or_clone(ty).named(&format!("{name}.{field}"));
                    (field, Arc::new(ty))
                };
                Shape::Object(fields.into_iter().map(named).collect())
            }
        };
        self
    }

    /// Calls `each` for every object type within, including this one.
    pub(crate) fn objects(self: &Arc<Self>, each: &mut impl FnMut(&Arc<str>, &Arc<Self>)) {
        match &self.shape {
            Shape::Scalar => {}
            Shape::List(item) | Shape::Map(item) => item.objects(each),
            Shape::Object(fields) => {
                if let Type::Struct(name) = &self.ty {
                    each(name, self);
                }
                fields.values().for_each(|field| field.objects(each));
            }
        }
    }

    /// The type behind a step of a path: a field's name, or `@items`, `@keys` and the like.
    pub(crate) fn step(&self, step: &str) -> Option<&Arc<Self>> {
        match (&self.shape, step) {
            (Shape::List(item), "@items") | (Shape::Map(item), "@values") => Some(item),
            (Shape::Object(fields), step) => fields.get(step),
            _ => None,
        }
    }
}
