//! The catalog of the built-in kinds, for tests.

use std::sync::{Arc, LazyLock};

use apiserver_catalog::Catalog;
use apiserver_resources::ResourceInfo;

/// The catalog of the built-in kinds.
pub(crate) fn built_in() -> &'static Catalog {
    static BUILT_IN: LazyLock<Catalog> = LazyLock::new(|| Catalog::built_in("127.0.0.1:6443"));
    &BUILT_IN
}

/// The storage version of a built-in kind.
pub(crate) fn resource(group: &str, plural: &str) -> &'static Arc<ResourceInfo> {
    built_in().stored(group, plural).unwrap()
}
