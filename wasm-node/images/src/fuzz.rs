//! Fuzz targets for parsers of untrusted or damaged input: the node's registries file, and Spin's applications.

use bolero::check;

use super::manifest::Descriptor;
use super::registries::Registries;
use super::spin::{Asset, component};
use super::volume_manifest::Content;

/// Fragments of registries files, valid and invalid.
const PIECES: [&str; 24] = [
    "mirrors:\n",
    "configs:\n",
    "  docker.io:\n",
    "  \"*\":\n",
    "  \"a.io:5000\":\n",
    "  \"[::1]:5000\":\n",
    "  registry.local:\n",
    "    endpoint:\n",
    "    endpoint: [\"http://127.0.0.1:5000\", \"https://m.io/v2/hub/\"]\n",
    "      - \"https://b.io\"\n",
    "      - \"ftp://c.io\"\n",
    "      - \"https://u:p@d.io:99999\"\n",
    "      - \"https://e.io/../x?y#z\"\n",
    "    auth: {username: u, password: hidden}\n",
    "    tls: {ca_file: ca.pem, insecure_skip_verify: true}\n",
    "    tls: {cert_file: x}\n",
    "    rewrite: {}\n",
    "- &a [*a, *a]\n",
    "  ? {} : []\n",
    "\t",
    "  ",
    "\u{0}",
    "# comment\n",
    "---\n",
];

#[test]
fn a_file_is_taken_or_refused() {
    check!().with_type::<Vec<u8>>().for_each(|picks| {
        let text: String = picks.iter().map(|pick| PIECES[usize::from(*pick) % PIECES.len()]).collect();
        let Ok(unread) = Registries::parse(&text) else { return };
        let registries = unread.found;
        for registry in ["docker.io", "a.io:5000", "quay.io"] {
            let endpoints = registries.endpoints(registry);
            assert!(!endpoints.is_empty(), "there is always somebody to ask");
            for endpoint in endpoints {
                assert!(
                    !endpoint.authority.contains(['/', '@', ' ']) && endpoint.path.starts_with('/'),
                    "{endpoint:?}"
                );
                assert!(!endpoint.path.ends_with('/') && !endpoint.path.contains(".."), "{endpoint:?}");
            }
        }
        assert!(!format!("{registries:?}").contains("hidden"));
    });
}

#[test]
fn any_text_is_taken_or_refused() {
    check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let _ = Registries::parse(&String::from_utf8_lossy(bytes));
    });
}

/// Fragments of applications, valid and invalid.
const SPIN: [&str; 16] = [
    r#""components":[{"#,
    r#""id":"web","#,
    r#""source":{"digest":"sha256:a"},"#,
    r#""source":{}"#,
    r#""files":["#,
    r#"{"path":"a/b","digest":"sha256:b"}"#,
    r#"{"path":"/../x","digest":"sha256:b"}"#,
    r#"{"path":"./a//b/.","inline":"aGk="}"#,
    r#"{"path":"\u0000","inline":"aGk="}"#,
    r#"{"path":"","inline":"%"}"#,
    r#""env":{"A":"b"}"#,
    r#""triggers":[{"trigger_type":"http"}]"#,
    ",",
    "]",
    "}",
    "}]",
];

#[test]
fn an_application_is_run_or_refused() {
    let layer =
        |digest: &str| Descriptor { digest: digest.into(), ..serde_json::from_str(r#"{"digest":"x"}"#).unwrap() };
    let layers = [layer("sha256:a"), layer("sha256:b")];
    check!().with_type::<Vec<u8>>().for_each(|picks| {
        let files: String = picks.iter().map(|pick| SPIN[usize::from(*pick) % SPIN.len()]).collect();
        let begun = format!(r#"{{"components":[{{"source":{{"digest":"sha256:a"}},"files":[{files}"#);
        let whole = format!("{begun}]}}]}}");
        for text in [files, begun, whole] {
            let Ok(found) = component(text.as_bytes(), &layers) else { continue };
            assert_eq!(found.module.digest, "sha256:a");
            for asset in found.assets {
                let (Asset::Layer(_, content) | Asset::Inline(_, content)) = asset;
                let Content::File(name) = content else { continue };
                let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
                assert!(name.split('/').all(is_plain), "{name:?} may lead out");
            }
        }
    });
}
