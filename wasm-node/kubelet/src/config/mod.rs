//! Configuration of containers from the API: ConfigMaps and Secrets ([`sources`]), variables and fields
//! ([`environment`], [`env_file`]). Volumes and environments are built from it.

pub mod env_file;
pub mod environment;
#[cfg(test)]
mod fuzz;
pub mod granted;
pub mod keyvalue;
pub(crate) mod pull_secrets;
pub mod sources;
pub(crate) mod tokens;
