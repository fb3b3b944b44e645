//! The files of a project: a template's texts with the project's names in place of `{{KEY}}`. Pure.

use std::path::Path;

use super::catalog::{File, Template};
use super::names::ProjectName;
use crate::run::objects::name_of;

/// A file of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProjectFile {
    /// The path below the project's folder, with `/`.
    pub(super) path: String,
    pub(super) content: String,
}

/// The files of a project, each once.
pub(super) fn render(template: &Template, name: &ProjectName) -> Vec<ProjectFile> {
    let file = |file: &File| ProjectFile { path: file.path.clone(), content: content_of(file, template, name) };
    template.files.iter().map(file).collect()
}

fn content_of(file: &File, template: &Template, name: &ProjectName) -> String {
    let content = text(file.text, template, name);
    if file.path == "Cargo.lock" { sort_packages(&content) } else { content }
}

/// A text with values in place of its keys. A value may have keys itself.
pub(super) fn text(content: &str, template: &Template, name: &ProjectName) -> String {
    let Template { kind, language, project, .. } = template;
    let module = module_of(&project.module, name);
    // The name that `coracle run` makes of the module's file.
    let deployment = name_of(Path::new(&module)).unwrap_or_else(|| name.as_str().to_owned());
    let values: [(&str, &str); 19] = [
        ("about", &project.about),
        ("needs", &language.needs),
        ("source", &project.source),
        ("test", &project.test),
        ("start", &kind.start),
        ("answer", &kind.answer),
        ("build", &project.build),
        ("watch", &project.watch.join(", ")),
        ("options", &project.options),
        ("disabled", &project.options),
        ("wasi", &language.wasi),
        ("world", &kind.world),
        ("module", &module),
        ("package", &name.rust_package()),
        ("library", &name.rust_library()),
        ("wit", &name.wit_package()),
        ("name", name.as_str()),
        ("deployment", &deployment),
        ("image", &format!("registry.local/{}:v1", name.as_str())),
    ];
    values.iter().fold(content.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value))
}

/// The path of the built module.
fn module_of(module: &str, name: &ProjectName) -> String {
    let module = module.replace("{{package}}", &name.rust_package());
    module.replace("{{library}}", &name.rust_library()).replace("{{name}}", name.as_str())
}

/// A Cargo.lock with its packages in cargo's order, which the project's name changes.
fn sort_packages(lock: &str) -> String {
    const MARK: &str = "[[package]]\n";
    let mut parts = lock.split(MARK);
    let head = parts.next().unwrap_or_default();
    let mut packages: Vec<&str> = parts.map(str::trim_end).collect();
    packages.sort_by_key(|package| package.lines().next().unwrap_or_default().to_owned());
    let packages: Vec<String> = packages.iter().map(|package| format!("{MARK}{package}\n")).collect();
    format!("{head}{}", packages.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::catalog::templates;
    use super::*;

    #[test]
    fn no_key_is_left_and_no_path_is_given_twice() {
        let all = templates().unwrap();
        for (template, name) in all.iter().flat_map(|template| ["my-app", "9x"].map(|name| (template, name))) {
            let name = ProjectName::parse(name).unwrap();
            let files = render(template, &name);
            for file in &files {
                let at = format!("{} {}", template.name, file.path);
                assert!(!file.content.contains("{{"), "{at}: {}", file.content);
                assert!(
                    file.content.ends_with('\n') && !file.path.starts_with('/') && !file.path.contains(".."),
                    "{at}"
                );
            }
            let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
            assert_eq!(paths.len(), files.len(), "{}: {paths:?}", template.name);
            for path in ["README.md", "coracle.yaml", ".gitignore"] {
                assert!(paths.contains(path), "{}: {path}", template.name);
            }
        }
    }

    #[test]
    fn readmes_have_ten_lines_and_their_first_command_is_the_test() {
        let name = ProjectName::parse("my-app").unwrap();
        for template in &templates().unwrap() {
            let files = render(template, &name);
            let readme = &files.iter().find(|file| file.path == "README.md").unwrap().content;
            assert!(readme.lines().count() <= 14, "{}: {readme}", template.name);
            let first = readme.split("```console\n").nth(1).unwrap().lines().next().unwrap();
            assert_eq!(first, text(&template.project.test, template, &name), "{}", template.name);
        }
    }

    #[test]
    fn packages_of_a_lock_are_sorted() {
        let lock = "version = 4\n\n[[package]]\nname = \"z\"\n\n[[package]]\nname = \"my-app\"\ndependencies = [\n \"z\",\n]\n";
        let sorted = "version = 4\n\n[[package]]\nname = \"my-app\"\ndependencies = [\n \"z\",\n]\n\n[[package]]\nname = \"z\"\n";
        assert_eq!(sort_packages(lock), sorted);
        assert_eq!(sort_packages(sorted), sorted);
    }
}
