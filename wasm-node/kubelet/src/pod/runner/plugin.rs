//! The runner of plugins: their functions are called over HTTP, so they run as servers.

use runtime_api::Kind;

use super::{RunnerClass, server};

pub(super) const CLASS: RunnerClass = RunnerClass { kind: Kind::Plugin, ..server::CLASS };
