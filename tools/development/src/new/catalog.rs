//! The templates: data in `templates/`, which is part of the program. A new template is a new folder.
//!
//! - `LANGUAGE/KIND/template.yaml`: the template `KIND-LANGUAGE` ([`Project`]).
//! - `LANGUAGE/language.yaml`: a language's tools, for all of its templates ([`Language`]).
//! - `kinds/KIND/kind.yaml`: how projects of a kind start, in all languages ([`Kind`]).
//! - `common/`: files of every project.
//!
//! A text may have keys such as `{{name}}` ([`super::render`]). Pure.

use std::collections::BTreeMap;

use machinery_api::yaml;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Path below `templates/`, and text. The build script lists them.
const EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/templates.rs"));
/// Interfaces of the program that a project's world imports or exports, as if they were in `templates/`.
const INTERFACES: &[(&str, &str)] = &[
    ("interfaces/config.wit", include_str!("../../../../sample-workloads/visits/wit/deps/config/config.wit")),
    ("interfaces/keyvalue.wit", include_str!("../../../../sample-workloads/visits/wit/deps/keyvalue/keyvalue.wit")),
    ("interfaces/scheduler-plugin.wit", include_str!("../../../../scheduler/wit/plugin.wit")),
];
/// Files of every project, below `templates/`.
const COMMON: &str = "common/";

/// Maps a path in the project to the path of its text: below the folder of the YAML file, or with `/` in front below
/// `templates/`.
type FileMap = BTreeMap<String, String>;

/// A kind of project, which decides what the host calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kind {
    /// Its position in lists.
    position: u32,
    /// The world in the project's WIT.
    pub(super) world: String,
    /// The command that starts a built or unbuilt project.
    pub(super) start: String,
    /// What shows that it works.
    pub(super) answer: String,
    #[serde(default)]
    files: FileMap,
}

/// A language with its tools.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Language {
    /// Its position in lists.
    position: u32,
    /// The tools that a build needs.
    pub(super) needs: String,
    /// The version of WASI that its tools take.
    pub(super) wasi: String,
    #[serde(default)]
    files: FileMap,
}

/// A project of one kind in one language.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Project {
    /// What it is, in a list.
    pub(super) about: String,
    /// The file that a user changes first.
    pub(super) source: String,
    /// The command of the unit tests.
    pub(super) test: String,
    /// The command of the build.
    pub(super) build: String,
    /// The file that the build makes.
    pub(super) module: String,
    /// Files and folders whose change needs a build.
    pub(super) watch: Vec<String>,
    /// Options of the language's tool.
    #[serde(default)]
    pub(super) options: String,
    files: FileMap,
}

/// A file of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// The path below the project's folder, with `/`.
    pub(super) path: String,
    /// The path of its text below `templates/`.
    source: String,
    pub(super) text: &'static str,
}

/// A template.
#[derive(Debug)]
pub(super) struct Template {
    /// `KIND-LANGUAGE`.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) language: Language,
    pub(super) project: Project,
    /// All files of a project.
    pub(super) files: Vec<File>,
}

/// The templates, by kind.
///
/// # Errors
/// The file of `templates/` that is wrong, which a test finds.
pub(super) fn templates() -> Result<Vec<Template>, String> {
    let folders = EMBEDDED.iter().filter_map(|(path, _)| path.strip_suffix("/template.yaml"));
    let mut found: Vec<Template> = folders.map(template).collect::<Result<_, _>>()?;
    found.sort_by_key(|template| (template.kind.position, template.language.position));
    Ok(found)
}

/// The template in a folder.
fn template(folder: &str) -> Result<Template, String> {
    let (language_folder, kind_name) =
        folder.split_once('/').ok_or_else(|| format!("{folder}: wanted a folder LANGUAGE/KIND"))?;
    let kind_folder = format!("kinds/{kind_name}");
    let project: Project = read(&format!("{folder}/template.yaml"))?;
    let kind: Kind = read(&format!("{kind_folder}/kind.yaml"))?;
    let language: Language = read(&format!("{language_folder}/language.yaml"))?;
    let common = EMBEDDED.iter().filter_map(|(path, _)| path.strip_prefix(COMMON));
    let common = common.map(|name| (name.to_owned(), name.to_owned())).collect();
    let mut files = Vec::new();
    for (folder, map) in
        [(folder, &project.files), (&kind_folder, &kind.files), (language_folder, &language.files), ("common", &common)]
    {
        for (path, source) in map {
            let source = source.strip_prefix('/').map_or_else(|| format!("{folder}/{source}"), str::to_owned);
            let text = text_of(&source)?;
            files.push(File { path: path.clone(), source, text });
        }
    }
    Ok(Template { name: format!("{kind_name}-{language_folder}"), kind, language, project, files })
}

fn read<T: DeserializeOwned>(path: &str) -> Result<T, String> {
    yaml::read(text_of(path)?).map_err(|why| format!("{path}: {why}"))
}

fn text_of(path: &str) -> Result<&'static str, String> {
    let mut all = EMBEDDED.iter().chain(INTERFACES);
    let found = all.find(|(known, _)| *known == path).ok_or_else(|| format!("no template has a file {path}"))?;
    Ok(found.1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A file that no template has would be compiled and tested by no script.
    #[test]
    fn each_file_belongs_to_a_template() {
        let all = templates().unwrap();
        let used: BTreeSet<&str> = all.iter().flat_map(|one| &one.files).map(|file| file.source.as_str()).collect();
        let is_data = |path: &str| {
            let name = path.rsplit('/').next().unwrap_or_default();
            ["template.yaml", "language.yaml", "kind.yaml"].contains(&name)
        };
        assert!(EMBEDDED.len() > 60, "{}", EMBEDDED.len());
        for (path, _) in EMBEDDED.iter().chain(INTERFACES) {
            assert!(is_data(path) || used.contains(path), "{path} is a file of no template");
        }
    }

    /// A kind or a language without templates would be no folder's, and positions decide the order of lists.
    #[test]
    fn kinds_and_languages_have_templates_and_positions_of_their_own() {
        let all = templates().unwrap();
        let kinds: BTreeSet<(u32, &str)> =
            all.iter().map(|one| (one.kind.position, one.name.rsplit_once('-').unwrap().0)).collect();
        let languages: BTreeSet<(u32, &str)> =
            all.iter().map(|one| (one.language.position, one.name.rsplit_once('-').unwrap().1)).collect();
        for (file, found) in [("kind.yaml", kinds), ("language.yaml", languages)] {
            let of_file = EMBEDDED.iter().filter(|(path, _)| path.ends_with(&format!("/{file}"))).count();
            let positions: BTreeSet<u32> = found.iter().map(|(position, _)| *position).collect();
            assert_eq!((of_file, positions.len()), (found.len(), found.len()), "{file}: {found:?}");
        }
    }

    /// The backtrace of a trap has the names of functions only if the module has them.
    #[test]
    fn no_build_strips_the_names_of_functions() {
        for template in templates().unwrap() {
            let files = template.files.iter().map(|file| (file.path.as_str(), file.text));
            let build = ("the build command", template.project.build.as_str());
            for (path, text) in files.chain([build]).filter(|(path, _)| !path.ends_with("package-lock.json")) {
                for strips in ["strip = true", "strip = \"symbols\"", "--strip-all", "-ldflags", "-Wl,-s", "--strip "] {
                    assert!(!text.contains(strips), "{path} has {strips}");
                }
            }
        }
    }
}
