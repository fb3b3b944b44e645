//! Upstream's test programs as one command of many names, for pods of upstream's conformance tests, by the names of its
//! images. `agnhost` has the subcommands of those tests, beside the shell and the tools of upstream's image. The output of each
//! subcommand is what the tests expect.
//!
//! - [`dns`], [`duration`], [`http`]: messages and texts, without WASI.
//! - `task`, `net`: tasks and sockets. `web`, `client`: HTTP over them.
//! - `servers`: the subcommands that listen. `tools`: the network tools.
#![cfg_attr(target_env = "p2", no_std)]
// Without the programs, on the machine of a test, some items have no user.
#![cfg_attr(not(target_env = "p2"), allow(dead_code, reason = "their callers are of the component"))]
extern crate alloc;

mod dns;
mod duration;
mod http;

#[cfg(target_env = "p2")]
mod client;
#[cfg(target_env = "p2")]
mod flags;
#[cfg(target_env = "p2")]
mod logs;
#[cfg(target_env = "p2")]
mod mounttest;
#[cfg(target_env = "p2")]
mod net;
#[cfg(target_env = "p2")]
mod programs;
#[cfg(target_env = "p2")]
mod servers;
#[cfg(target_env = "p2")]
mod task;
#[cfg(target_env = "p2")]
mod tools;
#[cfg(target_env = "p2")]
mod web;
