//! What every served type looks like, as data: decoding, strictness, defaults, protobuf, OpenAPI.
//!
//! - [`types`]: what a type is; sets of types, of which a resource holds its own.
//! - [`table`]: the built-in ones (`types.txt`, made by `make` from upstream's published schema), parsed once.
//! - `structural`: those of a resource that brings an OpenAPI schema; `unstructured`: how objects of such are read.
//! - [`raw`]: JSON as it was written (order, doubled keys, literal numbers); [`yaml`] and [`protobuf`] yield the same form.
//! - [`typed`]: from that form to the object as upstream would store and print it; strict findings on the way.
//! - `normal`: the same form made of an object in place.
//! - [`budget`]: what a body may become in memory.
//! - [`media`]: the media type of a body.
//! - [`decode`]: bodies: kind and version checks, field validation, upstream's messages.
//! - [`encode`]: objects as protobuf; `golden` beside it makes what that is held to.
//! - [`defaults`]: the defaults that the types themselves declare.

pub(crate) mod budget;
pub mod decode;
pub mod defaults;
pub mod encode;
#[cfg(test)]
mod fuzz;
pub mod media;
mod normal;
pub(crate) mod protobuf;
pub(crate) mod raw;
mod structural;
pub mod table;
pub(crate) mod typed;
pub mod types;
mod unstructured;
pub(crate) mod yaml;

pub use decode::{Decoded, FieldValidation, Target};
pub use defaults::default;
pub use media::Media;
pub use normal::normalise;
pub(crate) use normal::normalise_kind;
pub use structural::{custom, custom_name, structural};
pub use table::built_in;
pub use types::{Field, Kind, KindFact, ListType, SharedType, Type, TypeRef, Types};
pub use unstructured::{Unstructured, metadata_in_place};

/// What Go's decoder says of bytes that are no JSON; none where it takes them.
#[must_use]
pub fn json_fault(bytes: &[u8]) -> Option<String> {
    raw::parse(bytes).err()
}

/// The Go package of a group's internal types, which upstream's messages name.
#[must_use]
pub fn internal_group(group: &str) -> &str {
    match group {
        "" | "events.k8s.io" => "core",
        group => group.split('.').next().unwrap_or_default(),
    }
}
