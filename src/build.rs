//! Build script: passes the commit of the working tree and its time, if any, to the compiler.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/logs/HEAD");
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    println!("cargo::rustc-env=CORACLE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    // Seconds since 1970: no clock is right that is before it. Empty without a working tree.
    println!("cargo::rustc-env=CORACLE_COMMIT_SECONDS={}", git(&["log", "-1", "--format=%ct"]).unwrap_or_default());
}

/// The output of a git command in the working tree, if there is one.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
