//! greet URL [SECONDS]: calls the sample `greeter` for that time and prints the number of calls. Exits with an error if
//! a call fails.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program of a host application, which has its own clock"
)]

use std::time::{Duration, Instant};

use coracle_client::Plugin;
use serde_json::json;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let greeter = Plugin::at(&arguments.next().unwrap_or_default())?;
    let end = Instant::now() + Duration::from_secs(arguments.next().unwrap_or_default().parse().unwrap_or(0));
    let mut calls = 0;
    while calls == 0 || Instant::now() < end {
        let text: String = greeter.call("coracle:samples/greeter/greet", &json!({"name": calls.to_string()})).await?;
        anyhow::ensure!(text == format!("hello {calls}"), "{text}");
        calls += 1;
    }
    println!("{calls}");
    Ok(())
}
