//! Fuzz targets of the providers' configuration and responses.

use std::path::Path;

use bolero::check;

use super::config::{decode, validate};
use super::response::{Cache, parse};

const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
/// Fragments of configurations, valid and invalid.
const PIECES: [&str; 20] = [
    "apiVersion: kubelet.config.k8s.io/v1\n",
    "kind: CredentialProviderConfig\n",
    "providers:\n",
    "- name: a\n",
    "- name: ../b\n",
    "  matchImages: ['*.io', 'a.io:5000/x']\n",
    "  matchImages: ['[::1', 'a.io:x', '%zz', 'b.io/%4']\n",
    "  matchImages: [\"[\\u00e9]:1/\\u00e9%e9\"]\n",
    "  defaultCacheDuration: 1h1ms\n",
    "  defaultCacheDuration: 99999999999999h\n",
    "  apiVersion: credentialprovider.kubelet.k8s.io/v1\n",
    "  args: [x, {}]\n",
    "  env: [{name: A, value: hidden}]\n",
    "  tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [a.io/x]}\n",
    "- &a [*a, *a]\n",
    "  ",
    "\t",
    "\u{0}",
    "# comment\n",
    "---\n",
];
/// Fragments of responses.
const PARTS: [&str; 14] = [
    "{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\"",
    ",\"cacheKeyType\":\"Image\"",
    ",\"cacheKeyType\":\"Global\"",
    ",\"cacheDuration\":\"1h\"",
    ",\"cacheDuration\":\"9223372036s\"",
    ",\"auth\":{",
    "\"a.io\":{\"username\":\"u\",\"password\":\"hidden\"}",
    ",\"*.io/x\":{\"username\":null}",
    "\"b\":null",
    "}",
    "}",
    "hidden",
    ",",
    "[",
];

fn built(picks: &[u8], pieces: &[&str]) -> String {
    picks.iter().map(|pick| pieces[usize::from(*pick) % pieces.len()]).collect()
}

#[test]
fn a_configuration_is_taken_or_refused() {
    check!().with_type::<Vec<u8>>().for_each(|picks| {
        for text in [built(picks, &PIECES), format!("{}{}", PIECES[..3].concat(), built(picks, &PIECES[3..15]))] {
            let Ok(wires) = decode(&text) else { continue };
            let Ok(all) = validate(wires, Path::new("bin")) else { continue };
            for provider in &all {
                assert_eq!(provider.program.parent(), Some(Path::new("bin")), "it stays in its folder");
                let _ = provider.serves("a.io:5000/x");
            }
            assert!(!all.is_empty() && !format!("{all:?}").contains("hidden"));
        }
        let _ = decode(&String::from_utf8_lossy(picks));
    });
}

#[test]
fn an_answer_is_taken_or_refused() {
    check!().with_type::<Vec<u8>>().for_each(|picks| {
        let mut cache = Cache::default();
        for bytes in [built(picks, &PARTS).into_bytes(), picks.clone()] {
            match parse(&bytes, V1) {
                Ok(answer) => {
                    assert!(!format!("{answer:?}").contains("hidden"));
                    cache.put(("a.io/x", None), &answer, std::time::Duration::MAX, std::time::Duration::from_secs(1));
                    assert!(
                        cache
                            .get("a.io/x", None, std::time::Duration::from_secs(1))
                            .is_none_or(|auth| auth == answer.auth)
                    );
                }
                Err(error) => assert!(!error.to_string().contains("hidden")),
            }
        }
    });
}
