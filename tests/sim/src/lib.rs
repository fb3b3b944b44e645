//! The whole cluster in one thread under one seed: the real API server with its watch cache over the real memory store, the
//! real controllers, scheduler and client kit, and modelled nodes, with a network and a store that fail (docs/testing.md).
//!
//! The same seed gives the same log, byte for byte. A failure prints its seed and how to run it again: `SIM_SEED=n cargo test
//! -p sim -- --nocapture`; `SIM_SEEDS=a..b` runs a range. Checkers (`checkers`) are independent of `workload` and `faults`.
#![cfg(test)]

mod checkers;
mod clock;
mod cluster;
mod crowd;
mod failover;
mod faults;
mod freeze;
mod history;
mod leaving;
mod log;
mod network;
mod node;
mod panics;
mod parsed_request;
mod random;
mod rollouts;
mod run;
mod sabotage;
mod store;
mod stream;
mod tests;
mod workload;
mod world;
