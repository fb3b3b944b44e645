//! Fuzz targets of signature policies and payloads.

use bolero::check;

use super::payload;
use super::policy::SignaturePolicy;
use oci_registry::reference::ImageName;

/// Fragments of policies, valid and invalid.
const PIECES: [&str; 26] = [
    "{\"default\":",
    "[{\"type\":\"reject\"}]",
    "[{\"type\":\"insecureAcceptAnything\"}]",
    ",\"transports\":{",
    "\"docker\":{",
    "\"dir\":{",
    "\"docker-daemon\":{\"\":[]}",
    "\"registry.local\":",
    "\"a.io/x\":",
    "\"*.io\":",
    "\"\":",
    "\"a.io/\":",
    "[{\"type\":\"sigstoreSigned\",\"keyPath\":\"k\"",
    "[{\"type\":\"sigstoreSigned\",\"keyData\":\"AAAA\"",
    ",\"fulcio\":{}",
    ",\"signedIdentity\":{\"type\":\"matchRepository\"}",
    ",\"signedIdentity\":{\"type\":\"remapIdentity\",\"prefix\":\"a\",\"signedPrefix\":\"b\"}",
    "}]",
    "}",
    "}",
    ",",
    "[]",
    "\u{0}",
    "- &a [*a, *a]\n",
    "#",
    "\n",
];

#[test]
fn a_policy_is_taken_or_refused() {
    let key = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/signatures/keys.txt")).unwrap();
    let key = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", key.split(' ').nth(1).unwrap());
    let names = ["a.io/x:v1", "registry.local/x", "b.c.io:1/x/y", "file:///a/b.wasm"]
        .map(|name| ImageName::parse(name).unwrap());
    check!().with_type::<Vec<u8>>().for_each(|picks| {
        let built: String = picks.iter().map(|pick| PIECES[usize::from(*pick) % PIECES.len()]).collect();
        let begun = format!("{}{}{}{}", PIECES[0], PIECES[1], PIECES[3], built);
        for text in [built, begun, String::from_utf8_lossy(picks).into_owned()] {
            let Ok(policy) = SignaturePolicy::parse(&text, &|_| Ok(key.clone().into_bytes())) else { continue };
            for name in &names {
                // The lookup is deterministic for any policy.
                assert_eq!(policy.rule(name), policy.rule(name));
            }
            assert!(text.contains("default"), "nothing holds by itself");
        }
    });
}

#[test]
fn a_payload_is_taken_or_refused() {
    let good = r#"{"critical":{"identity":{"docker-reference":"a.io/x"},"image":{"docker-manifest-digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000"},"type":"cosign container image signature"},"optional":null}"#;
    check!().with_type::<(Vec<u8>, u16, u8)>().for_each(|(bytes, at, byte)| {
        let _ = payload::parse(bytes);
        let mut changed = good.as_bytes().to_vec();
        let at = usize::from(*at) % changed.len();
        changed[at] = *byte;
        if let Ok(payload) = payload::parse(&changed) {
            assert_eq!(payload.digest.len(), "sha256:".len() + 64);
        }
    });
}
