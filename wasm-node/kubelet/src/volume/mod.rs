//! A pod's volumes: folders of the host that its guest finds open.
//!
//! [`files`] decides what they hold, [`atomic`] writes it, [`manager`] keeps it in step with the API for as long as the
//! pod lives, [`usage`] says what guests have written, [`measure`] when to look.

pub mod atomic;
pub mod files;
pub mod manager;
pub(crate) mod measure;
pub mod paths;
pub mod usage;
