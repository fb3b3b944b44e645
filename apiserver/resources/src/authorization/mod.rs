//! `authorization.k8s.io` and `authentication.k8s.io`: questions, never stored.

pub(crate) mod reviews;
