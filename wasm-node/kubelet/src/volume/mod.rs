//! A pod's volumes: folders of the host that its guest finds open.
//!
//! [`files`] decides what they hold, [`atomic`] writes it, [`keep`] keeps it in step with the API for as long as the
//! pod lives, [`usage`] measures what guests write.

pub mod atomic;
pub mod files;
pub mod keep;
pub mod usage;
