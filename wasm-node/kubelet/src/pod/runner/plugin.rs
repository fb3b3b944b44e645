//! Plugins: their functions are called over HTTP, so to the pod they are servers.

use runtime_api::Kind;

use super::{RunnerClass, server};

pub(super) const CLASS: RunnerClass = RunnerClass { kind: Kind::Plugin, ..server::CLASS };
