//! `coracle new`: writes a project from a template into a folder that doesn't exist or is empty.

mod catalog;
mod names;
mod render;
mod write;

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;

use self::catalog::{Template, templates};
use self::names::ProjectName;
use tools_command::failure::Failure;
use tools_command::output::{columns, print_stdout, result};

/// Arguments of `coracle new`.
#[derive(Debug, Clone, Args)]
pub struct New {
    /// The template; --list prints them
    #[arg(value_name = "TEMPLATE", required_unless_present = "list")]
    pub(crate) template: Option<String>,
    /// The project's name: lower-case letters, digits and dashes, at most 63
    #[arg(value_name = "NAME", required_unless_present = "list")]
    pub(crate) name: Option<String>,
    /// The folder for the project, which doesn't exist or is empty [default: NAME]
    #[arg(long, env = "CORACLE_DIR", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Lists the templates
    #[arg(long, env = "CORACLE_LIST", conflicts_with_all = ["template", "name", "dir"])]
    pub(crate) list: bool,
}

/// Writes the project and prints the next steps, or lists the templates.
///
/// # Errors
/// If there is no such template, the name is no DNS label, or the folder has files or can't be written.
pub fn run(flags: &New) -> Result<(), Failure> {
    let all = templates().map_err(|why| anyhow!("a template of this program is wrong: {why}"))?;
    let (Some(template), Some(name)) = (&flags.template, &flags.name) else {
        return Ok(result(format_args!("{}", list(&all)))?);
    };
    let template = find(&all, template).map_err(Failure::Usage)?;
    let name = ProjectName::parse(name).map_err(Failure::Usage)?;
    let folder = flags.dir.clone().unwrap_or_else(|| PathBuf::from(name.as_str()));
    let files = render::render(template, &name);
    write::write(&folder, &files).with_context(|| format!("cannot make a project in {}", folder.display()))?;
    for step in steps(template, &name, &folder.display().to_string()) {
        print_stdout!("{step}")?;
    }
    Ok(())
}

/// The template of this name.
fn find<'a>(all: &'a [Template], name: &str) -> Result<&'a Template, String> {
    all.iter().find(|template| template.name == name).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|template| template.name.as_str()).collect();
        format!("there is no template {name:?}; there are {}", names.join(", "))
    })
}

/// A line for each template.
fn list(all: &[Template]) -> String {
    let rows = all.iter().map(|template| vec![template.name.clone(), template.project.about.clone()]);
    columns(&rows.collect::<Vec<_>>())
}

/// The commands to type next: three lines.
fn steps(template: &Template, name: &ProjectName, folder: &str) -> [String; 3] {
    let quoted = if folder.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) {
        folder.to_owned()
    } else {
        format!("'{}'", folder.replace('\'', r"'\''"))
    };
    [
        format!("cd {quoted}"),
        render::text(&template.project.test, template, name),
        render::text(&template.kind.start, template, name),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_templates_are_rejected_with_the_known_ones() {
        let all = templates().unwrap();
        assert_eq!(find(&all, "http-rust").unwrap().name, "http-rust");
        let why = find(&all, "http-cobol").unwrap_err();
        assert!(why.starts_with("there is no template \"http-cobol\"; there are http-rust, "), "{why}");
        assert_eq!(list(&all).lines().count(), all.len());
    }

    #[test]
    fn next_steps_are_commands() {
        let name = ProjectName::parse("my-app").unwrap();
        let all = templates().unwrap();
        let steps = steps(find(&all, "plugin-rust").unwrap(), &name, "it's here");
        assert_eq!(steps, [r"cd 'it'\''s here'", "cargo test", "coracle run --dev"]);
    }
}
