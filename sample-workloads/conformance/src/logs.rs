//! `agnhost logs-generator`: a number of log lines, evenly over a time, in klog's form.
use crate::duration::nanoseconds;
use crate::flags::Flags;
use guest::wasip2::clocks::{monotonic_clock, wall_clock};
use guest::wasip2::random::random;
use guest::{String, format};
use unix::{Context, Ended, process};

const FLAGS: [&str; 2] = ["log-lines-total", "run-duration"];
const METHODS: [&str; 3] = ["GET", "POST", "PUT"];
const NAMESPACES: [&str; 3] = ["kube-system", "default", "ns"];

fn below(bound: u64) -> u64 {
    random::get_random_u64() % bound
}

fn line(id: u64) -> String {
    let now = wall_clock::now();
    let time = process::time_text("%m%d %T", now.seconds, now.nanoseconds);
    let pod: String = (0..3 + below(2)).map(|_| char::from(b'a' + below(26) as u8)).collect();
    format!(
        "I{time}.{:06}       1 logs_generator.go:76] {id} {} /api/v1/namespaces/{}/pods/{pod} {}",
        now.nanoseconds / 1000,
        METHODS[below(3) as usize],
        NAMESPACES[below(3) as usize],
        200 + below(400)
    )
}

pub fn generate(context: &mut Context, args: &[String]) -> Ended {
    let flags = match Flags::read(args, &FLAGS, &[]) {
        Ok(flags) => flags,
        Err(why) => return context.fail("logs-generator", &why),
    };
    let lines = flags.get("log-lines-total").and_then(|text| text.parse().ok()).filter(|lines: &u64| *lines > 0);
    let duration = flags.get("run-duration").and_then(nanoseconds).filter(|duration| *duration > 0);
    let (Some(lines), Some(duration)) = (lines, duration) else {
        return context.fail("logs-generator", "--log-lines-total and --run-duration must be positive");
    };
    for id in 0..lines {
        let mut err = context.err.clone(); // klog writes to stderr
        err.line(&line(id))?;
        monotonic_clock::subscribe_duration(duration / lines).block();
    }
    Ok(0)
}
