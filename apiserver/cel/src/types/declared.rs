//! Declared types: what a variable is, with how large it may be.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Type;

/// A type with the sizes that the estimate of costs asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclType {
    pub ty: Type,
    /// The most characters, bytes, items or entries; negative if nothing is known of it.
    pub max_elements: i64,
    /// The fewest bytes that a value takes in a request.
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

    /// An object of a type with a name, and its fields.
    pub fn object<'a>(name: &str, fields: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let fields = fields.into_iter().map(|(name, field)| (name.into(), Arc::new(field))).collect();
        Self { ty: Type::object(name), max_elements: 0, min_size: 2, shape: Shape::Object(fields) }
    }

    /// The same with names for its objects, each after the way that leads there.
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

    /// Calls `each` for every object type in it, itself among them.
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

    /// What a step of a path leads to: a field's name, or `@items`, `@keys` and the like.
    pub(crate) fn step(&self, step: &str) -> Option<&Arc<Self>> {
        match (&self.shape, step) {
            (Shape::List(item), "@items") | (Shape::Map(item), "@values") => Some(item),
            (Shape::Object(fields), step) => fields.get(step),
            _ => None,
        }
    }
}
