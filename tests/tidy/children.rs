//! Child processes: a program of others gets no variable that names this cluster or an account in it.

use super::check;
use super::shipped::shipped_files;

/// Files that start a program with all variables, and why.
const EXCEPTIONS: &[(&str, &str)] =
    &[("src/build.rs", "git, while this program is built"), ("tools/joining/src/arguments.rs", "this program itself")];

/// Whether a file's code starts a program, and whether it removes the cluster's variables or all of them.
fn starts(text: &str) -> (bool, bool) {
    let starts = text.contains("Command::new(") && (text.contains("process::Command") || text.contains("process::{"));
    (starts, text.contains("cluster_variables()") || text.contains(".env_clear()"))
}

#[test]
fn child_processes_get_no_variable_of_the_cluster() {
    let mut problems = Vec::new();
    for (path, text) in shipped_files() {
        let exception = EXCEPTIONS.iter().any(|(file, _)| file == path);
        match (starts(text), exception) {
            ((true, false), false) => problems.push(format!(
                "{path} starts a program with the variables of this one: machinery_env::child_process names those to remove"
            )),
            ((false, _) | (true, true), true) => problems.push(format!("{path} needs no exception")),
            _ => {}
        }
    }
    check(&problems);
}

#[test]
fn a_started_program_is_found() {
    let started = "use tokio::process::{Child, Command};\nfn f() { Command::new(\"a\").spawn(); }";
    assert_eq!(starts(started), (true, false));
    assert_eq!(starts(&started.replace(".spawn", ".env_clear().spawn")), (true, true));
    assert_eq!(starts("use clap::Command;\nfn f() { Command::new(\"a\"); }"), (false, false));
}
