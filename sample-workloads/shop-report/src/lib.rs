//! Prints the shop's sales as one line of JSON: a command for a CronJob that calls the order service.
#![no_std]
use guest::fetch;
use guest::process::{print, print_error};
use guest::{String, format};

struct Report;
guest::wasip2::cli::command::export!(Report);

impl guest::wasip2::exports::cli::run::Guest for Report {
    fn run() -> Result<(), ()> {
        match fetch::get("orders", &["report"]) {
            Ok(reply) if reply.status == 200 => {
                print(String::from_utf8_lossy(&reply.body).trim_end());
                Ok(())
            }
            Ok(reply) => {
                let said = String::from_utf8_lossy(&reply.body);
                print_error(&format!("shop-report: orders answered {}: {}", reply.status, said.trim_end()));
                Err(())
            }
            Err(problem) => {
                print_error(&format!("shop-report: {problem}"));
                Err(())
            }
        }
    }
}
