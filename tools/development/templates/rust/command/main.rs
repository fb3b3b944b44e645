//! A command, for Jobs and CronJobs: it greets the names in its arguments.

use std::process::ExitCode;

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    match greetings(&names) {
        Ok(lines) => {
            print!("{lines}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{{name}}: {why}");
            ExitCode::FAILURE
        }
    }
}

/// One line for each name.
fn greetings(names: &[String]) -> Result<String, String> {
    if names.is_empty() {
        return Ok("hello from {{name}}\n".to_owned());
    }
    match names.iter().position(String::is_empty) {
        Some(at) => Err(format!("name {} is empty", at + 1)),
        None => Ok(names.iter().map(|name| format!("hello {name}\n")).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_greeted() {
        assert_eq!(greetings(&[]).unwrap(), "hello from {{name}}\n");
        assert_eq!(greetings(&["ada".into(), "bob".into()]).unwrap(), "hello ada\nhello bob\n");
        assert_eq!(greetings(&["ada".into(), String::new()]).unwrap_err(), "name 2 is empty");
    }
}
