//! Reports a verb's progress on stderr: as the last line of a terminal; without a terminal only long waits.

use std::cell::RefCell;
use std::io::IsTerminal as _;
use std::time::Duration;

use machinery_env::Env;

use crate::output::{aside, plain, print_stderr};

/// The last line of a terminal.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    terminal: bool,
}

impl Progress {
    /// Progress on stderr, if that is a terminal.
    pub fn stderr() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Replaces the line by the current step.
    pub fn doing(self, what: &str) {
        if self.terminal {
            aside(format_args!("\r\x1b[2K… {what}"));
        }
    }

    /// Clears the line before a result.
    pub fn done(self) {
        if self.terminal {
            aside(format_args!("\r\x1b[2K"));
        }
    }
}

/// Redraw interval of a spinner.
const FRAME_INTERVAL: Duration = Duration::from_millis(100);
/// Interval of lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const FRAMES: [char; 8] = ['⣾', '⣽', '⣻', '⢿', '⡿', '⣟', '⣯', '⣷'];
/// Maximum characters of a line on a terminal: a longer one would not be overwritten as a whole.
const LINE_CHARS_MAX: usize = 78;

/// Progress of steps of unknown length: a spinner with the seconds of the step on a terminal, else a line on each 5 s of
/// a step.
#[derive(Debug)]
pub struct Spinner {
    line: Progress,
    env: Env,
    state: RefCell<SpinnerState>,
}

#[derive(Debug, Default)]
struct SpinnerState {
    step: String,
    /// A reason to wait, beside the step.
    detail: Option<String>,
    began: Duration,
    next_line: Duration,
    frame: usize,
}

impl Spinner {
    /// A spinner on stderr.
    pub fn new(env: &Env) -> Self {
        Self { line: Progress::stderr(), env: env.clone(), state: RefCell::default() }
    }

    /// Begins a step.
    pub fn step(&self, step: String) {
        let began = self.env.elapsed();
        let next_line = began + LINE_INTERVAL;
        self.state.replace(SpinnerState { step, began, next_line, ..SpinnerState::default() });
        self.draw();
    }

    /// Sets the reason why the step takes its time.
    pub fn detail(&self, detail: Option<String>) {
        self.state.borrow_mut().detail = detail;
    }

    /// Redraws until `work` is done, then clears the line.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = self.env.timeout(FRAME_INTERVAL, &mut work).await {
                self.line.done();
                return done;
            }
            self.draw();
        }
    }

    /// Prints lines above the spinner.
    pub fn above(&self, print: impl FnOnce()) {
        self.line.done();
        print();
    }

    fn draw(&self) {
        let state = &mut *self.state.borrow_mut();
        let now = self.env.elapsed();
        if self.line.terminal {
            state.frame = (state.frame + 1) % FRAMES.len();
            let text = text(state, now);
            let text: String = text.chars().take(LINE_CHARS_MAX).collect();
            aside(format_args!("\r\x1b[2K{} {text}", FRAMES[state.frame]));
        } else if now >= state.next_line {
            state.next_line += LINE_INTERVAL;
            print_stderr!("coracle: {}", text(state, now));
        }
    }
}

/// The text of a step: its seconds, and its reason to wait.
fn text(state: &SpinnerState, now: Duration) -> String {
    let seconds = now.saturating_sub(state.began).as_secs();
    let detail = state.detail.as_ref().map(|detail| format!(": {}", plain(&detail.replace('\n', " "))));
    let detail = detail.unwrap_or_default();
    if seconds == 0 { format!("{}{detail}", state.step) } else { format!("{}, {seconds} s{detail}", state.step) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_its_seconds_and_its_reason() {
        let at = Duration::from_secs;
        let mut state = SpinnerState { step: "waiting for web".into(), began: at(10), ..SpinnerState::default() };
        assert_eq!(text(&state, at(10)), "waiting for web");
        assert_eq!(text(&state, at(15)), "waiting for web, 5 s");
        state.detail = Some("compiling\n\x1b[1m".into());
        assert_eq!(text(&state, at(15)), "waiting for web, 5 s: compiling ?[1m");
    }
}
