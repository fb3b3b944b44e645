//! The type of a resource's objects: a built-in's is always there, one that a definition brings is made when it is asked for.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use machinery_api::schema::SharedType;

/// What makes a type when somebody asks for it.
pub trait TypeSource: Send + Sync + fmt::Debug {
    /// The type, for as long as the answer is held.
    fn hold(&self) -> SharedType;
}

/// See the module.
#[derive(Clone)]
pub enum ResourceType {
    /// One that is always there.
    Made(SharedType),
    /// One that is made when it is asked for, and its name.
    Source(Arc<str>, Arc<dyn TypeSource>),
}

impl ResourceType {
    /// The type, for as long as the answer is held: for one request, not for a watch.
    #[must_use]
    pub fn hold(&self) -> Cow<'_, SharedType> {
        match self {
            Self::Made(made) => Cow::Borrowed(made),
            Self::Source(_, source) => Cow::Owned(source.hold()),
        }
    }

    /// The type, where it is always there.
    #[must_use]
    pub fn made(&self) -> Option<&SharedType> {
        match self {
            Self::Made(made) => Some(made),
            Self::Source(..) => None,
        }
    }

    /// Its name, as OpenAPI has it.
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
