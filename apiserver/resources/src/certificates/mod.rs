//! The group `certificates.k8s.io`: certificate requests, their approval, and the issued certificates.

pub(crate) mod requests;
mod validate;
