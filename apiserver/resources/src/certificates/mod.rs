//! certificates.k8s.io: requests for certificates, their approval, and what was issued.

pub(crate) mod requests;
mod validate;
