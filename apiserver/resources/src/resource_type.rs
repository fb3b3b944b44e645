//! The type of a resource's objects: static for a built-in kind, compiled on demand for a custom resource.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use apiserver_schema::SharedType;

/// Compiles a type on demand.
pub trait TypeSource: Send + Sync + fmt::Debug {
    /// The type. It may be evicted once the result is dropped.
    fn hold(&self) -> SharedType;
}

/// The type of a resource's objects; see the module.
#[derive(Clone)]
pub enum ResourceType {
    /// A static type.
    Made(SharedType),
    /// A type compiled on demand, and its name.
    Source(Arc<str>, Arc<dyn TypeSource>),
}

impl ResourceType {
    /// The type, held for one request and not for a watch.
    #[must_use]
    pub fn hold(&self) -> Cow<'_, SharedType> {
        match self {
            Self::Made(made) => Cow::Borrowed(made),
            Self::Source(_, source) => Cow::Owned(source.hold()),
        }
    }

    /// The type, if it is static.
    #[must_use]
    pub fn made(&self) -> Option<&SharedType> {
        match self {
            Self::Made(made) => Some(made),
            Self::Source(..) => None,
        }
    }

    /// Its name in OpenAPI.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Made(made) => made.name(),
            Self::Source(name, _) => name,
        }
    }
}

impl From<SharedType> for ResourceType {
    fn from(made: SharedType) -> Self {
        Self::Made(made)
    }
}

impl fmt::Debug for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
