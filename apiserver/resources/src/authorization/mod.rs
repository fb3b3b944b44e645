//! The groups `authorization.k8s.io` and `authentication.k8s.io`: reviews, which are never stored.

pub(crate) mod reviews;
