//! `agnhost nettest`: counts who reports to it.
//!
//! Not as upstream: it contacts no peers, whose addresses the API would have.
use super::{exit, not_listening};
use crate::flags::Flags;
use crate::http::Response;
use crate::web::{self, hostname};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::RefCell;
use guest::{String, ToOwned, Vec, format};
use serde_json::{Value, json};
use unix::{Context, Ended};

const FLAGS: [&str; 5] = ["port", "peers", "service", "namespace", "delay-shutdown"];
/// Maximum sources and errors that are kept.
const ENTRIES_MAX: usize = 500;

#[derive(Default)]
struct State {
    received: BTreeMap<String, u64>,
    errors: Vec<String>,
}

pub fn nettest(context: &mut Context, args: &[String]) -> Ended {
    super::serve(context, "nettest", async || {
        let flags = Flags::read(args, &FLAGS, &[])?;
        let port = web::port(flags.get("port").unwrap_or("8080"))?;
        let state = Rc::new(RefCell::new(State::default()));
        let respond = web::handler(move |call| {
            let mut state = state.borrow_mut();
            let response = match call.path.as_str() {
                "/quit" => exit(0),
                "/read" => Response::ok(format!("{:#}", state.report())),
                "/write" => {
                    state.write(&call.request.body);
                    Response::ok(format!("{}\n", json!({"Hostname": hostname()})))
                }
                "/status" => Response::ok("fail"),
                _ => Response::error(404, "404 page not found"),
            };
            core::future::ready(response)
        });
        web::listen(port, respond).map_err(|code| not_listening("tcp", port, code))
    })
}

impl State {
    fn report(&self) -> Value {
        json!({
            "Hostname": hostname(), "Sent": null, "Received": self.received, "Errors": self.errors, "Log": null,
            "StillContactingPeers": false,
        })
    }

    fn write(&mut self, body: &[u8]) {
        let source =
            serde_json::from_slice::<Value>(body).map(|post| post["Source"].as_str().unwrap_or_default().to_owned());
        let problem = match source {
            Ok(source) if !source.is_empty() => {
                if self.received.len() < ENTRIES_MAX || self.received.contains_key(&source) {
                    *self.received.entry(source).or_default() += 1;
                }
                return;
            }
            Ok(_) => format!("{}: Got request with no source", hostname()),
            Err(error) => format!("{error}"),
        };
        if self.errors.len() < ENTRIES_MAX {
            self.errors.push(problem);
        }
    }
}
