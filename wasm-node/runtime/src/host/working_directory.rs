//! The working directory of components, for which WASI has no interface: names by which libraries find it among the folders.

use runtime_api::Preopen;

/// Names of the working directory among the folders of a guest, besides those of its volumes. WASI has no working directory: C
/// libraries resolve relative paths against a folder named ".", TinyGo against the one whose name is the initial
/// directory.
///
/// C libraries don't distinguish "." and "/": where a folder is mounted at "/", its absolute paths win.
pub(crate) fn names<'a>(cwd: &'a str, folders: &[Preopen]) -> impl Iterator<Item = &'a str> {
    let is_mounted = |path: &str| folders.iter().any(|folder| folder.guest == path);
    let names = [(cwd, !is_mounted(cwd)), (".", !is_mounted("/"))];
    names.into_iter().filter_map(|(name, is_new)| is_new.then_some(name))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_working_directory_has_the_names_that_libraries_look_for() {
        let at =
            |guest: &str| Preopen { host: PathBuf::new(), sub_paths: Vec::new(), guest: guest.into(), writable: true };
        for (cwd, mounts, wanted) in [
            ("/data", vec!["/data"], vec!["."]),
            ("/data/sub", vec!["/data"], vec!["/data/sub", "."]),
            ("/app", vec!["/"], vec!["/app"]),
            ("/", vec!["/"], vec![]),
            ("/app", vec!["/", "/app"], vec![]),
        ] {
            let folders: Vec<Preopen> = mounts.iter().map(|mount| at(mount)).collect();
            assert_eq!(names(cwd, &folders).collect::<Vec<_>>(), wanted, "{cwd} {mounts:?}");
        }
    }
}
