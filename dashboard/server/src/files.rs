//! The files of the dashboard, which are part of the program.

use std::borrow::Cow;
use std::sync::Arc;

use apiserver::http::static_files::{StaticFile, StaticFiles};
use bytes::Bytes;

/// The path of the dashboard.
pub const PREFIX: &str = "/dashboard";

/// Name, media type and content of each file in `dashboard/dist/`.
macro_rules! dist {
    ($($name:literal: $media:literal),* $(,)?) => {
        [$(($name, $media, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/", $name)).as_slice())),*]
    };
}

/// All files of `dashboard/dist/`.
const FILES: [(&str, &str, &[u8]); 4] = dist! {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
};

/// The files with their responses.
pub fn files() -> Arc<StaticFiles> {
    let file = |(name, media, content): (&'static str, &'static str, &'static [u8])| StaticFile {
        name: Cow::Borrowed(name),
        media,
        content: Bytes::from_static(content),
    };
    Arc::new(StaticFiles::new(PREFIX, FILES.map(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_each_file_of_the_folder() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        found.sort();
        let mut listed: Vec<&str> = FILES.iter().map(|(name, ..)| *name).collect();
        listed.sort_unstable();
        assert_eq!(found, listed, "dashboard/dist/ and the list of its files");
    }

    #[test]
    fn the_page_is_at_the_path_with_a_slash() {
        let headers = http::HeaderMap::new();
        let code = |path: &str| files().respond(&http::Method::GET, path, &headers).status().as_u16();
        assert_eq!(["/dashboard/", "/dashboard/app.js", "/dashboard/none"].map(code), [200, 200, 404]);
    }
}
