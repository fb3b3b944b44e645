//! The selectors of a list or watch, matched against an object's facts without decoding it.

use machinery_api::selector::{FieldSelector, LabelSelector, Labels};

use super::object::Cached;

/// Label and field selectors; empty ones select everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selectors {
    /// The label selector.
    pub labels: LabelSelector,
    /// The field selector. A field that the object's resource doesn't extract counts as empty.
    pub fields: FieldSelector,
}

impl Labels for Cached {
    fn label(&self, key: &str) -> Option<&str> {
        Self::label(self, key)
    }
}

impl Selectors {
    /// Whether everything is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether the object is selected.
    #[must_use]
    pub fn matches(&self, object: &Cached) -> bool {
        self.labels.matches(object) && self.fields.matches(|field| object.field(field).unwrap_or(""))
    }

    /// The value that a field must equal, if any.
    #[must_use]
    pub fn field_equals(&self, label: &str) -> Option<&str> {
        self.fields.exact(label)
    }
}
