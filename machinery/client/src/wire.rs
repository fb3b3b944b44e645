//! Codecs of the types that components exchange with the API server, compiled once for all crates.
//!
//! serde's implementations are generic over the format, and at the release profile's optimization each crate that uses one compiles
//! it again, with all types below it. Here each type of the table has plain functions to and from JSON, and other crates link
//! to them. Invariant: no other crate reads or prints a type of this table through serde.

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use k8s_openapi::api::{
    admissionregistration::v1 as admissionregistration, apps::v1 as apps, authentication::v1 as authentication,
    authorization::v1 as authorization, autoscaling::v2 as autoscaling, batch::v1 as batch,
    certificates::v1 as certificates, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

/// A type with a JSON form whose codec is compiled in one crate.
pub trait Wire: Sized {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// When the text isn't of this type.
    fn from_json(text: &str) -> Result<Self, serde_json::Error>;

    /// The JSON form as a value.
    fn wire_value(&self) -> Value;
}

/// Reads a value through serde: for the bodies of [`Wire`].
///
/// # Errors
/// When the text isn't of this type.
pub fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    T::deserialize(&mut serde_json::Deserializer::from_str(text))
}

/// A value's JSON form through serde: for the bodies of [`Wire`].
pub fn wire_value<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).expect("the API's types have string keys and serialize without fail")
}

/// Implements [`Wire`] for types by their implementations of serde's traits.
#[macro_export]
macro_rules! wire {
    ($($type:ty),* $(,)?) => {$(
        impl $crate::wire::Wire for $type {
            #[inline(never)]
            fn from_json(text: &str) -> Result<Self, serde_json::Error> {
                $crate::wire::from_json(text)
            }

            #[inline(never)]
            fn wire_value(&self) -> serde_json::Value {
                $crate::wire::wire_value(self)
            }
        }
    )*};
}

impl<T: Wire> Wire for Vec<T> {
    fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let items: Vec<&serde_json::value::RawValue> = serde_json::from_str(text)?;
        items.into_iter().map(|item| T::from_json(item.get())).collect()
    }

    fn wire_value(&self) -> Value {
        Value::Array(self.iter().map(Wire::wire_value).collect())
    }
}

wire! {
    crate::Pod, crate::Condition,
}
