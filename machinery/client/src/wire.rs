//! Codecs of the types that components exchange with the API server, compiled once for all crates.
//!
//! serde's implementations are generic over the format. At the release profile's optimization each crate that uses one
//! compiles it again, with all types below it. Here each type of the table has plain functions to and from JSON, and
//! other crates link to them. Invariant: no other crate encodes or decodes a type of this table through serde.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use k8s_openapi::api::{
    admissionregistration::v1 as admissionregistration, apps::v1 as apps, authentication::v1 as authentication,
    authorization::v1 as authorization, autoscaling::v2 as autoscaling, batch::v1 as batch,
    certificates::v1 as certificates, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    events::v1 as events, networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

/// A type decoded from JSON by code of one crate.
pub trait ReadWire: Sized {
    /// Decodes the JSON form.
    ///
    /// # Errors
    /// If the text isn't of this type.
    fn from_json(text: &str) -> Result<Self, serde_json::Error>;
}

/// A type encoded as JSON by code of one crate.
pub trait Wire {
    /// The JSON form as a value.
    fn wire_value(&self) -> Value;
}

/// Decodes through serde: for implementations of [`ReadWire`].
///
/// # Errors
/// If the text isn't of this type.
pub fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text)
}

/// Encodes through serde: for implementations of [`Wire`].
pub fn wire_value<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).expect("the API's types have string keys and serialize without fail")
}

/// Implements [`ReadWire`] for types by their `Deserialize`.
#[macro_export]
macro_rules! read_wire {
    ($($type:ty),* $(,)?) => {$(
        impl $crate::wire::ReadWire for $type {
            #[inline(never)]
            fn from_json(text: &str) -> Result<Self, serde_json::Error> {
                $crate::wire::from_json(text)
            }
        }
    )*};
}

/// Implements [`ReadWire`] and [`Wire`] for types by their `Deserialize` and `Serialize`.
#[macro_export]
macro_rules! wire {
    ($($type:ty),* $(,)?) => {
        $crate::read_wire! { $($type),* }
        $(impl $crate::wire::Wire for $type {
            #[inline(never)]
            fn wire_value(&self) -> serde_json::Value {
                $crate::wire::wire_value(self)
            }
        })*
    };
}

impl ReadWire for Value {
    fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

impl Wire for Value {
    fn wire_value(&self) -> Value {
        self.clone()
    }
}

impl<T: ReadWire> ReadWire for Vec<T> {
    fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let items: Vec<&serde_json::value::RawValue> = serde_json::from_str(text)?;
        items.into_iter().map(|item| T::from_json(item.get())).collect()
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn wire_value(&self) -> Value {
        self.as_slice().wire_value()
    }
}

impl<T: Wire> Wire for [T] {
    fn wire_value(&self) -> Value {
        Value::Array(self.iter().map(Wire::wire_value).collect())
    }
}

impl<T: Wire + ?Sized> Wire for &T {
    fn wire_value(&self) -> Value {
        (**self).wire_value()
    }
}

read_wire! {
    serde::de::IgnoredAny,
}

wire! {
    crate::Pod, crate::Condition,
    admissionregistration::ValidatingAdmissionPolicy, admissionregistration::ValidatingAdmissionPolicyStatus,
    apps::ControllerRevision, apps::DaemonSet, apps::Deployment, apps::ReplicaSet, apps::StatefulSet,
    authentication::TokenRequest, authentication::TokenReview, authorization::SubjectAccessReview,
    autoscaling::HorizontalPodAutoscaler,
    batch::CronJob, batch::Job,
    certificates::CertificateSigningRequest,
    coordination::Lease,
    core::ConfigMap, core::Endpoints, core::EndpointPort, core::Event, core::Namespace, core::Node, core::NodeCondition,
    core::ObjectReference, core::PersistentVolume, core::PersistentVolumeClaim, core::Pod, core::PodCondition,
    core::PodStatus, core::PodTemplateSpec, core::ReplicationController, core::ResourceQuota, core::Secret, core::Service,
    core::ServiceAccount, core::Taint,
    discovery::EndpointPort, discovery::EndpointSlice,
    networking::IPAddress, networking::ServiceCIDR,
    events::Event,
    node::RuntimeClass,
    policy::PodDisruptionBudget,
    rbac::ClusterRole,
    scheduling::PriorityClass,
    storage::CSINode, storage::StorageClass, storage::VolumeAttributesClass,
    meta::Condition, meta::ObjectMeta, meta::OwnerReference,
}
