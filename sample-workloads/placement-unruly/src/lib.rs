//! A misbehaving scheduler plugin; its profile selects the fault (`trap`, `loop`, `eat`, `rubbish`, `reasons`, `score`,
//! `error`, `refuse`; anything else: none).
#![no_std]
extern crate alloc;

use alloc::{format, string::String, vec, vec::Vec};

use exports::coracle::scheduler::plugin::{Candidate, Guest, GuestInstance, Instance, Node, Refusal};

wit_bindgen::generate!({ path: "../../scheduler/wit", world: "scheduler-plugin" });

const MIB: usize = 1024 * 1024;

struct Unruly;

impl Guest for Unruly {
    type Instance = Manner;
}

struct Manner(String);

impl GuestInstance for Manner {
    fn open(config: String) -> Result<Instance, String> {
        if config == "refuse" { Err("it is not in the mood".into()) } else { Ok(Instance::new(Self(config))) }
    }

    fn set_nodes(&self, _nodes: Vec<Node>) {}

    fn remove_nodes(&self, _names: Vec<String>) {}

    fn filter(&self, _pod: String, candidates: Vec<Candidate>) -> Result<Vec<Refusal>, String> {
        let refusal = |candidate: usize, reason: String| Refusal { candidate: candidate as u32, reason, unresolvable: false };
        match self.0.as_str() {
            "trap" => {
                guest::log!("about to trap");
                core::arch::wasm32::unreachable()
            }
            "loop" => loop {
                core::hint::black_box(&candidates);
            },
            "eat" => {
                let mut eaten: Vec<Vec<u8>> = Vec::new();
                loop {
                    eaten.push(core::hint::black_box(vec![0xEA; MIB]));
                }
            }
            "rubbish" => Ok(vec![refusal(candidates.len(), "nobody".into())]),
            "reasons" => Ok((0..candidates.len()).map(|at| refusal(at, "\u{1b}[31mred\n".repeat(100))).collect()),
            "error" => Err(format!("{} candidates are too many", candidates.len())),
            _ => Ok(Vec::new()),
        }
    }

    fn score(&self, _pod: String, candidates: Vec<Candidate>) -> Result<Vec<u32>, String> {
        Ok(vec![if self.0 == "score" { 101 } else { 0 }; candidates.len()])
    }
}

export!(Unruly);
