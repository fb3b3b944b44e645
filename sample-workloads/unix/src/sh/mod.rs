//! `sh`: runs commands of the grammar in `parse`. One instance is all processes: a subshell is a copy of the variables, and the
//! tools of a pipeline run in sequence.
mod arithmetic;
mod builtins;
mod expand;
pub mod parse;
pub mod pattern;

use crate::io::{INTERRUPTED, Input, Output, PIPE_FULL, Sink, Source, Stop};
use crate::{Context, Ended};
use guest::{String, ToOwned, Vec, format};
use parse::{Command, Redirect};

/// Maximum nesting of functions, subshells and substitutions: it bounds the stack.
const CALLS_MAX: usize = 24;

/// Why execution does not continue with the next command.
pub enum Flow {
    Exit(i32),
    Return(i32),
    Break(usize),
    Continue(usize),
    /// A syntax error; the script ends.
    Wrong(String),
    Stop(Stop),
}

pub type Ran<T> = Result<T, Flow>;

impl From<Stop> for Flow {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// A shell.
pub struct Shell<'c> {
    pub(super) context: &'c mut Context,
    /// Name, value, and whether the variable is exported.
    vars: Vec<(String, String, bool)>,
    functions: Vec<(String, Command)>,
    params: Vec<String>,
    name: String,
    status: i32,
    /// `set -e`, `-u`, `-x`
    errexit: bool,
    nounset: bool,
    xtrace: bool,
    /// Set in conditions, where a failure ends nothing.
    tested: usize,
    calls: usize,
    is_interactive: bool,
}

/// The end position of a double-quoted text from `from`, after its quote.
fn double_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            b'$' if matches!(bytes.get(at + 1), Some(b'(' | b'{')) => {
                let close = if bytes[at + 1] == b'(' { b')' } else { b'}' };
                at = parse::end_in_quotes(bytes, at + 2, close).unwrap_or(bytes.len());
            }
            b'`' => at = parse::end_of_nested(bytes, at + 1, b'`').unwrap_or(bytes.len()),
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The tool `sh`.
pub fn sh(context: &mut Context, args: &[String]) -> Ended {
    let (mut script, mut at, mut options) = (None, 1, String::new());
    while let Some(arg) = args.get(at).filter(|arg| arg.len() > 1 && arg.starts_with(['-', '+'])) {
        at += 1;
        if arg == "--" {
            break;
        }
        for letter in arg[1..].chars() {
            match letter {
                'c' => {
                    let Some(text) = args.get(at) else { return context.fail("sh", "-c wants a script").map(|_| 2) };
                    script = Some(text.clone());
                    at += 1;
                }
                'e' | 'u' | 'x' | 'i' | 'l' | 's' => options.push(letter),
                'o' => at += 1,
                other => return context.fail("sh", &format!("unknown option -{other}")).map(|_| 2),
            }
        }
    }
    let rest = args.get(at..).unwrap_or_default();
    let mut shell = Shell::new(context);
    shell.errexit = options.contains('e');
    shell.nounset = options.contains('u');
    shell.xtrace = options.contains('x');
    if let Some(script) = script {
        if let Some((name, params)) = rest.split_first() {
            shell.name.clone_from(name);
            shell.params = params.to_vec();
        }
        return shell.script(&script);
    }
    if let Some((name, params)) = rest.split_first() {
        let input = match shell.context.open(name) {
            Ok(input) => input,
            Err(why) => return shell.context.fail("sh", &why).map(|_| 127),
        };
        let text = crate::disk::whole(shell.context, input)?;
        shell.name.clone_from(name);
        shell.params = params.to_vec();
        return shell.script(&String::from_utf8_lossy(&text));
    }
    shell.is_interactive = options.contains('i') || shell.context.stdin.is_terminal();
    shell.prompt()
}

impl<'c> Shell<'c> {
    fn new(context: &'c mut Context) -> Self {
        let vars = context.env.iter().map(|(name, value)| (name.clone(), value.clone(), true)).collect();
        Self {
            context,
            vars,
            functions: Vec::new(),
            params: Vec::new(),
            name: "sh".to_owned(),
            status: 0,
            errexit: false,
            nounset: false,
            xtrace: false,
            tested: 0,
            calls: 0,
            is_interactive: false,
        }
    }

    /// Runs a whole script.
    fn script(&mut self, text: &str) -> Ended {
        let command = match parse::parse(text) {
            Ok(command) => command,
            Err(wrong) => return self.context.fail("sh", &wrong.why).map(|_| 2),
        };
        let ran = self.run(&command);
        self.ended(ran)
    }

    fn ended(&mut self, ran: Ran<i32>) -> Ended {
        match ran {
            Ok(status) | Err(Flow::Exit(status) | Flow::Return(status)) => Ok(status),
            Err(Flow::Break(_) | Flow::Continue(_)) => Ok(self.status),
            Err(Flow::Wrong(why)) => self.context.fail("sh", &why).map(|_| 2),
            Err(Flow::Stop(stop)) => Err(stop),
        }
    }

    /// Reads commands from the input, line by line, to its end.
    fn prompt(&mut self) -> Ended {
        let mut input = self.context.input.clone();
        let mut text = String::new();
        loop {
            if self.is_interactive {
                let sign = if text.is_empty() { format!("{} # ", self.context.cwd) } else { "> ".to_owned() };
                self.context.err.write(sign.as_bytes())?;
            }
            let line = match input.line(&mut self.context.stdin) {
                Ok(line) => line,
                Err(INTERRUPTED) if self.is_interactive => {
                    text.clear();
                    self.status = 130;
                    continue;
                }
                Err(stop) => return Err(stop),
            };
            let at_end = line.is_none();
            text.push_str(&String::from_utf8_lossy(&line.unwrap_or_default()));
            if at_end && text.trim().is_empty() {
                if self.is_interactive {
                    self.context.err.line("")?;
                }
                return Ok(self.status);
            }
            let command = match parse::parse(&text) {
                Ok(command) => command,
                Err(wrong) if wrong.unfinished && !at_end => continue,
                Err(wrong) => {
                    self.status = self.context.fail("sh", &wrong.why).map(|_| 2)?;
                    if !self.is_interactive {
                        return Ok(self.status);
                    }
                    text.clear();
                    continue;
                }
            };
            text.clear();
            (self.calls, self.tested) = (0, 0);
            match self.run(&command) {
                Err(Flow::Stop(INTERRUPTED)) if self.is_interactive => self.status = 130,
                Err(Flow::Wrong(why)) if self.is_interactive => {
                    self.status = self.context.fail("sh", &why)?;
                }
                Ok(_) | Err(Flow::Break(_) | Flow::Continue(_)) => {}
                ended => return self.ended(ended),
            }
        }
    }

    fn run(&mut self, command: &Command) -> Ran<i32> {
        let status = match command {
            Command::Simple { assigns, words, redirects } => self.simple(assigns, words, redirects)?,
            Command::List(commands) => {
                let mut status = self.status;
                for command in commands {
                    status = self.run(command)?;
                }
                return Ok(status);
            }
            Command::AndOr(first, rest) => return self.and_or(first, rest),
            Command::Pipe { not, commands } => {
                let status = if *not { self.untested(|shell| shell.pipe(commands))? } else { self.pipe(commands)? };
                if *not { i32::from(status == 0) } else { status }
            }
            Command::If { condition, then, otherwise } => {
                let status = self.untested(|shell| shell.run(condition))?;
                return match (status, otherwise) {
                    (0, _) => self.run(then),
                    (_, Some(otherwise)) => self.run(otherwise),
                    (_, None) => Ok(self.done(0)),
                };
            }
            Command::While { wanted, condition, body } => return self.repeat(*wanted, condition, body),
            Command::For { name, words, body } => return self.each(name, words.as_deref(), body),
            Command::Case { word, arms } => return self.case(word, arms),
            Command::Subshell(inner) => self.subshell(|shell| shell.run(inner))?,
            Command::Function(name, body) => {
                self.functions.retain(|(known, _)| known != name);
                self.functions.push((name.clone(), (**body).clone()));
                0
            }
            Command::Redirected(inner, redirects) => {
                return match self.redirected(redirects, |shell| shell.run(inner))? {
                    Some(status) => Ok(status),
                    None => self.failed(1),
                };
            }
        };
        if status != 0 { self.failed(status) } else { Ok(self.done(0)) }
    }

    fn done(&mut self, status: i32) -> i32 {
        self.status = status;
        status
    }

    /// Applies `set -e` to a failure.
    fn failed(&mut self, status: i32) -> Ran<i32> {
        self.status = status;
        if self.errexit && self.tested == 0 { Err(Flow::Exit(status)) } else { Ok(status) }
    }

    /// Runs a command whose failure is permitted.
    fn untested(&mut self, act: impl FnOnce(&mut Self) -> Ran<i32>) -> Ran<i32> {
        self.tested += 1;
        let ran = act(self);
        self.tested -= 1;
        ran
    }

    fn and_or(&mut self, first: &Command, rest: &[(bool, Command)]) -> Ran<i32> {
        let mut status = self.untested(|shell| shell.run(first))?;
        for (at, (wanted, command)) in rest.iter().enumerate() {
            if (status == 0) != *wanted {
                continue;
            }
            status = if at + 1 == rest.len() { self.run(command)? } else { self.untested(|shell| shell.run(command))? };
        }
        Ok(self.done(status))
    }

    fn repeat(&mut self, wanted: bool, condition: &Command, body: &Command) -> Ran<i32> {
        let mut status = 0;
        while (self.untested(|shell| shell.run(condition))? == 0) == wanted {
            self.context.stdin.heed().map_err(Flow::Stop)?;
            match self.run(body) {
                Ok(ran) => status = ran,
                Err(Flow::Break(1) | Flow::Break(0)) => break,
                Err(Flow::Break(levels)) => return Err(Flow::Break(levels - 1)),
                Err(Flow::Continue(levels)) if levels > 1 => return Err(Flow::Continue(levels - 1)),
                Err(Flow::Continue(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(self.done(status))
    }

    fn each(&mut self, name: &str, words: Option<&[String]>, body: &Command) -> Ran<i32> {
        let values = match words {
            Some(words) => self.arguments(words)?,
            None => self.params.clone(),
        };
        let mut status = 0;
        for value in values {
            self.context.stdin.heed().map_err(Flow::Stop)?;
            self.set(name, &value);
            match self.run(body) {
                Ok(ran) => status = ran,
                Err(Flow::Break(1) | Flow::Break(0)) => break,
                Err(Flow::Break(levels)) => return Err(Flow::Break(levels - 1)),
                Err(Flow::Continue(levels)) if levels > 1 => return Err(Flow::Continue(levels - 1)),
                Err(Flow::Continue(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(self.done(status))
    }

    fn case(&mut self, word: &str, arms: &[(Vec<String>, Command)]) -> Ran<i32> {
        let text = self.text(word)?;
        for (patterns, body) in arms {
            for one in patterns {
                let one = self.pattern(one)?;
                if pattern::matches(&one, &text) {
                    return self.run(body);
                }
            }
        }
        Ok(self.done(0))
    }

    /// Runs a command in a subshell: only its status remains.
    fn subshell(&mut self, act: impl FnOnce(&mut Self) -> Ran<i32>) -> Ran<i32> {
        self.enter()?;
        let (vars, params, cwd) = (self.vars.clone(), self.params.clone(), self.context.cwd.clone());
        let functions = self.functions.clone();
        let ran = act(self);
        (self.vars, self.params, self.context.cwd) = (vars, params, cwd);
        self.functions = functions;
        self.calls -= 1;
        match ran {
            Err(Flow::Exit(status) | Flow::Return(status)) => Ok(status),
            Err(Flow::Break(_) | Flow::Continue(_)) => Ok(self.status),
            Err(Flow::Wrong(why)) => {
                self.context.say("sh", &why)?;
                Ok(2)
            }
            ran => ran,
        }
    }

    fn enter(&mut self) -> Ran<()> {
        if self.calls >= CALLS_MAX {
            return Err(Flow::Wrong("functions and subshells stand too deep in each other".to_owned()));
        }
        self.calls += 1;
        Ok(())
    }

    fn pipe(&mut self, commands: &[Command]) -> Ran<i32> {
        let [only] = commands else { return self.stages(commands) };
        self.run(only)
    }

    fn stages(&mut self, commands: &[Command]) -> Ran<i32> {
        let (input, out) = (self.context.input.clone(), self.context.out.clone());
        let mut status = 0;
        for (at, command) in commands.iter().enumerate() {
            let is_last = at + 1 == commands.len();
            let between = Output::from(Sink::Bytes(Vec::new()));
            self.context.out = if is_last { out.clone() } else { between.clone() };
            let ran = self.untested(|shell| shell.subshell(|shell| shell.run(command)));
            self.context.input = Source::Bytes(between.take(), 0).into();
            status = match ran {
                Ok(status) => status,
                Err(flow) => {
                    (self.context.input, self.context.out) = (input, out);
                    return Err(flow);
                }
            };
        }
        (self.context.input, self.context.out) = (input, out);
        Ok(status)
    }

    /// The output of a command, without trailing newlines.
    fn substitute(&mut self, script: &str) -> Ran<String> {
        let command = parse::parse(script).map_err(|wrong| Flow::Wrong(wrong.why))?;
        let said = Output::from(Sink::Bytes(Vec::new()));
        let before = core::mem::replace(&mut self.context.out, said.clone());
        let ran = self.untested(|shell| shell.subshell(|shell| shell.run(&command)));
        self.context.out = before;
        self.status = ran?;
        let text = String::from_utf8_lossy(&said.take()).into_owned();
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Runs a command with redirected streams; none if a file cannot be opened, which is reported.
    fn redirected(&mut self, redirects: &[Redirect], act: impl FnOnce(&mut Self) -> Ran<i32>) -> Ran<Option<i32>> {
        let before = (self.context.input.clone(), self.context.out.clone(), self.context.err.clone());
        let ran = match self.redirect(redirects) {
            Ok(true) => act(self).map(Some),
            Ok(false) => Ok(None),
            Err(flow) => Err(flow),
        };
        (self.context.input, self.context.out, self.context.err) = before;
        ran
    }

    fn redirect(&mut self, redirects: &[Redirect]) -> Ran<bool> {
        for redirect in redirects {
            let led: Result<(), String> = match redirect {
                Redirect::From(word) => {
                    let name = self.text(word)?;
                    self.context.open(&name).map(|input: Input| self.context.input = input)
                }
                Redirect::Here(text, expands) => {
                    let text = if *expands { self.here(text)? } else { text.clone() };
                    self.context.input = Source::Bytes(text.into_bytes(), 0).into();
                    Ok(())
                }
                Redirect::To(stream, word, append) => {
                    let name = self.text(word)?;
                    let made = match name.as_str() {
                        "/dev/stdout" => Ok(self.context.out.clone()),
                        "/dev/stderr" => Ok(self.context.err.clone()),
                        name => self.context.create(name, *append),
                    };
                    made.map(|made| {
                        if *stream != 2 {
                            self.context.out = made.clone();
                        }
                        if *stream >= 2 {
                            self.context.err = made;
                        }
                    })
                }
                Redirect::Same(1, 2) => {
                    self.context.out = self.context.err.clone();
                    Ok(())
                }
                Redirect::Same(2, 1) => {
                    self.context.err = self.context.out.clone();
                    Ok(())
                }
                Redirect::Same(..) => Ok(()),
            };
            if let Err(why) = led {
                self.context.say("sh", &why)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn simple(&mut self, assigns: &[(String, String)], words: &[String], redirects: &[Redirect]) -> Ran<i32> {
        let words = self.arguments(words)?;
        let mut values = Vec::new();
        if words.is_empty() {
            self.status = 0;
        }
        for (name, word) in assigns {
            values.push((name.clone(), self.text(word)?));
        }
        if self.xtrace {
            let assigned = values.iter().map(|(name, value)| format!("{name}={value}"));
            let line: Vec<String> = assigned.chain(words.iter().cloned()).collect();
            self.context.err.line(&format!("+ {}", line.join(" ")))?;
        }
        if words.is_empty() {
            // The status is that of the last substitution.
            let status = self.status;
            for (name, value) in &values {
                self.set(name, value);
            }
            let led = self.redirected(redirects, |_| Ok(status))?;
            return Ok(led.unwrap_or(1));
        }
        let ran = self.redirected(redirects, |shell| shell.call(&values, &words))?;
        Ok(ran.unwrap_or(1))
    }

    /// Runs a builtin, a function or a tool.
    fn call(&mut self, assigns: &[(String, String)], words: &[String]) -> Ran<i32> {
        let Some(name) = words.first() else { return Ok(0) };
        if let Some(builtin) = builtins::find(name) {
            for (name, value) in assigns {
                self.set(name, value);
            }
            return builtin(self, words);
        }
        if let Some((_, body)) = self.functions.iter().find(|(known, _)| known == name) {
            let body = body.clone();
            self.enter()?;
            for (name, value) in assigns {
                self.set(name, value);
            }
            let params = core::mem::replace(&mut self.params, words[1..].to_vec());
            let ran = self.run(&body);
            self.params = params;
            self.calls -= 1;
            return match ran {
                Err(Flow::Return(status)) => Ok(status),
                ran => ran,
            };
        }
        let Some(tool) = self.context.tool(name) else {
            self.context.say("sh", &format!("{name}: not found"))?;
            return Ok(127);
        };
        self.enter()?;
        let mut env: Vec<(String, String)> = self
            .vars
            .iter()
            .filter(|(.., exported)| *exported)
            .map(|(name, value, _)| (name.clone(), value.clone()))
            .collect();
        for (name, value) in assigns {
            crate::process::set(&mut env, name, value);
        }
        self.context.env = env;
        let (cwd, input) = (self.context.cwd.clone(), self.context.input.clone());
        let ended = tool(self.context, words);
        (self.context.cwd, self.context.input) = (cwd, input);
        self.calls -= 1;
        match ended {
            Ok(status) => Ok(status),
            Err(INTERRUPTED) => Err(Flow::Stop(INTERRUPTED)),
            Err(PIPE_FULL) => {
                let why = format!(
                    "{name}: more than {} MiB for the next tool: they run one after the other",
                    crate::io::PIPE_BYTES_MAX >> 20
                );
                self.context.say("sh", &why)?;
                Ok(141)
            }
            Err(Stop(status)) => Ok(status),
        }
    }
}
