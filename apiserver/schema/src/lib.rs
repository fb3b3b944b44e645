//! The schemas of all served types as data, with decoding, strictness, defaults, protobuf and OpenAPI.
//!
//! - [`types`]: type definitions; sets of types, of which a custom resource owns one.
//! - [`table`]: the built-in types (`types.txt`, made by `make` from upstream's published schema), parsed once.
//! - `structural`: types of a resource's own OpenAPI schema; `unstructured`: decoding of their objects.
//! - [`raw`]: JSON as written (order, duplicate keys, literals); [`yaml`] and [`protobuf`] produce the same form.
//! - [`typed`]: from that form to the object as upstream would store and print it, with strict findings.
//! - `normal`: normalises an object in place.
//! - [`budget`]: the memory budget of decoding.
//! - [`media`]: the media type of a body.
//! - [`decode`]: bodies: kind and version checks, field validation, upstream's messages.
//! - [`encode`]: objects as protobuf; `golden` beside it makes its test fixtures.
//! - [`defaults`]: defaults declared in types.
//! - [`apply`]: managed fields and server-side apply. [`patch`]: JSON, merge and strategic merge patches.
#![warn(missing_docs)]

pub mod apply;
pub(crate) mod budget;
pub mod decode;
pub mod defaults;
pub mod encode;
#[cfg(test)]
mod fuzz;
pub mod media;
mod normal;
pub mod patch;
pub(crate) mod protobuf;
pub(crate) mod raw;
mod structural;
pub mod table;
pub(crate) mod typed;
pub mod types;
pub(crate) mod unstructured;
pub(crate) mod yaml;

pub use decode::{Decoded, FieldValidation, Target};
pub use defaults::default;
pub use media::Media;
pub use normal::normalise;
pub(crate) use normal::normalise_kind;
pub use structural::{custom, custom_name, structural};
pub use table::built_in;
pub use types::{Field, Kind, KindFact, ListType, SharedType, Type, TypeRef, Types};
pub use unstructured::{Nulls, Unstructured, metadata_in_place};

/// The message of Go's decoder for invalid JSON; `None` for valid JSON.
#[must_use]
pub fn json_fault(bytes: &[u8]) -> Option<String> {
    raw::parse(bytes).err()
}

/// The Go package of a group's internal types, for upstream's messages.
#[must_use]
pub fn internal_group(group: &str) -> &str {
    match group {
        "" | "events.k8s.io" => "core",
        group => group.split('.').next().unwrap_or_default(),
    }
}
