//! Policies, and their decisions on signatures.

use super::judge::{RuleCheck, SignedPayload};
use super::key::tests::test_keys;
use super::policy::SignaturePolicy;
use oci_registry::reference::{ImageName, Reference};

const PAYLOAD: &str = include_str!("payload.json");

fn policy(text: &str) -> Result<SignaturePolicy, String> {
    let dir = tempfile::tempdir().unwrap();
    let key = include_str!("keys.txt").lines().next().unwrap().split(' ').nth(1).unwrap();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n");
    std::fs::write(dir.path().join("p256.pub"), pem).unwrap();
    std::fs::write(dir.path().join("policy.json"), text).unwrap();
    SignaturePolicy::read(&dir.path().join("policy.json")).map_err(|error| error.to_string())
}

fn of(policy: &SignaturePolicy, image: &str) -> Option<String> {
    policy.rule(&ImageName::parse(image).unwrap()).map(|rule| rule.scope.clone())
}

#[test]
fn the_narrowest_scope_decides() {
    let rules = r#"{"default": [{"type": "reject"}], "transports": {"docker-daemon": {"": [{"type": "signedBy"}]},
        "dir": {"/modules": [{"type": "insecureAcceptAnything"}]},
        "docker": {"registry.local": [{"type": "insecureAcceptAnything"}], "a.io:5000": [{"type": "reject"}],
            "a.io/team": [{"type": "sigstoreSigned", "keyPath": "p256.pub"}], "a.io/team/x:free": [{"type": "insecureAcceptAnything"}],
            "*.b.io": [{"type": "sigstoreSigned", "keyPaths": ["p256.pub"]}]}}}"#;
    let rules = policy(rules).unwrap();
    for (image, scope) in [
        ("registry.local/x:v1", None),
        ("a.io/team/x:v1", Some("a.io/team")),
        ("a.io/team/x:free", None),
        ("a.io/teams/x", Some("default")),
        ("a.io:5000/team/x", Some("a.io:5000")),
        ("c.b.io:1/x", Some("*.b.io")),
        ("d.c.b.io/x", Some("*.b.io")),
        ("b.io/x", Some("default")),
        ("nginx", Some("default")),
        ("file:///modules/x.wasm", None),
        ("file:///other/x.wasm", Some("default")),
    ] {
        assert_eq!(of(&rules, image).as_deref(), scope, "{image}");
    }
    assert_eq!(of(&SignaturePolicy::default(), "nginx"), None, "without a file every image is taken");
    let everything =
        r#"{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"": [{"type": "reject"}]}}}"#;
    assert_eq!(of(&policy(everything).unwrap(), "nginx").as_deref(), Some("docker"));
    // Equal requirements have equal ids, different ones have different ids.
    let id = |keys: &str| {
        let text = format!(r#"{{"default": [{{"type": "sigstoreSigned", {keys}}}]}}"#);
        policy(&text).unwrap().rule(&ImageName::parse("x").unwrap()).unwrap().id().to_owned()
    };
    let (one, two) = (id(r#""keyPath": "p256.pub""#), id(r#""keyPaths": ["p256.pub"]"#));
    assert_eq!(one, two);
    assert_ne!(one, id(r#""keyPath": "p256.pub", "signedIdentity": {"type": "matchRepository"}"#));
}

#[test]
fn errors_name_the_field() {
    let signed = |more: &str| format!(r#"{{"default": [{{"type": "sigstoreSigned"{more}}}]}}"#);
    let docker = |scopes: &str| format!(r#"{{"default": [{{"type": "reject"}}], "transports": {{{scopes}}}}}"#);
    for (text, says) in [
        (String::new(), "default: Required"),
        ("{}".into(), "default: Required"),
        (r#"{"default": []}"#.into(), "default: at least one requirement"),
        (r#"{"default": [{}]}"#.into(), "default[0]: type: Required"),
        (r#"{"default": [{"type": "x"}]}"#.into(), "unknown type \"x\""),
        (r#"{"default": [{"type": "reject", "keyPath": "k"}]}"#.into(), "no other fields"),
        (r#"{"default": [{"type": "reject"}], "defaults": []}"#.into(), "defaults"),
        (r#"{"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "k"}]}"#.into(), "GPG are not verified"),
        (signed(""), "exactly one of keyPath"),
        (signed(r#", "keyPath": "p256.pub", "keyData": "x""#), "exactly one of keyPath"),
        (signed(r#", "keyPath": "none.pub""#), "none.pub"),
        (signed(r#", "keyPath": "policy.json""#), "policy.json: holds no PEM"),
        (signed(r#", "keyData": "%""#), "not base64"),
        (signed(r#", "keyPaths": []"#), "1 to 100 keys"),
        (signed(r#", "keyPath": "p256.pub", "keyType": "GPGKeys""#), "keyType"),
        (signed(r#", "keyPath": "p256.pub", "rekorPublicKeyPath": "r""#), "keyless signatures and transparency logs"),
        (signed(r#", "fulcio": {"oidcIssuer": "x"}"#), "keyless signatures"),
        (signed(r#", "keyPath": "p256.pub", "more": 1"#), "more"),
        (docker(r#""docker": {"a.io/": [{"type": "reject"}]}"#), "transports.docker.\"a.io/\": a scope is HOST"),
        (docker(r#""docker": {"https://a.io": [{"type": "reject"}]}"#), "a scope is HOST"),
        (docker(r#""docker": {"*.a.io/x": [{"type": "reject"}]}"#), "a scope is HOST"),
        (docker(r#""docker": {"a.io": []}"#), "transports.docker.\"a.io\": at least one"),
        (docker(r#""docker": {"a.io": [{"type": "reject"}], "a.io": [{"type": "insecureAcceptAnything"}]}"#), "a.io"),
        (docker(r#""dir": {"x": [{"type": "reject"}]}"#), "absolute path"),
        (docker(r#""dockers": {}"#), "transports.dockers: unknown transport"),
        ("[".into(), "policy.json"),
    ] {
        let error = policy(&text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn signatures_are_judged_by_key_digest_and_name() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let signature = made_of_payload();
    let found = SignedPayload { payload: PAYLOAD.trim_end().as_bytes().to_vec(), signature };
    let text = |keys: &str, identity: &str| {
        format!(r#"{{"default": [{{"type": "sigstoreSigned", {keys}, "signedIdentity": {{"type": "{identity}"}}}}]}}"#)
    };
    let judged = |text: &str, image: &str, digest: &str, found: &SignedPayload| {
        let rule = policy(text).unwrap().rule(&ImageName::parse(image).unwrap()).unwrap();
        let reference = Reference::parse(image).unwrap();
        let mut rule_check = RuleCheck::new(&rule, &reference);
        assert!(!rule_check.is_met(), "nothing is shown yet");
        rule_check.check_signature(digest, found);
        if rule_check.is_met() { Ok(()) } else { Err(rule_check.failure_text(digest)) }
    };
    let own = text(r#""keyPath": "p256.pub""#, "matchRepository");
    assert_eq!(judged(&own, "a.io/x:v1", &digest, &found), Ok(()));
    let changed =
        SignedPayload { payload: PAYLOAD.trim_end().replace("a.io/x", "a.io/y").into_bytes(), ..found.clone() };
    let other = text(&format!(r#""keyData": "{}""#, other_key()), "matchRepository");
    let exact = text(r#""keyPath": "p256.pub""#, "matchRepoDigestOrExact");
    let none = SignedPayload { signature: Vec::new(), ..found.clone() };
    for (text, image, of, found, says) in [
        (&own, "a.io/x:v1", &digest, &changed, "signed by none of the policy's keys"),
        (&own, "a.io/x:v1", &digest, &none, "signed by none of the policy's keys"),
        (&other, "a.io/x:v1", &digest, &found, "signed by none of the policy's keys"),
        (&own, "a.io/x:v1", &digest.replace('a', "b"), &found, "of another image, sha256:aaaa"),
        (&own, "a.io/z:v1", &digest, &found, "for \"a.io/x\", which signedIdentity matchRepository doesn't take"),
        (&exact, "a.io/x:v1", &digest, &found, "signedIdentity matchRepoDigestOrExact doesn't take"),
    ] {
        let reported = judged(text, image, of, found).unwrap_err();
        assert!(
            reported.contains(says) && reported.contains("cosign sign --key") && reported.contains(&format!("@{of}")),
            "{reported}"
        );
    }
    let never = r#"{"default": [{"type": "reject"}]}"#;
    assert!(judged(never, "a.io/x", &digest, &found).unwrap_err().contains("rejects every image"));
    // Each requirement has to be met.
    let both = own.replace("\"default\": [", "\"default\": [{\"type\": \"insecureAcceptAnything\"}, {\"type\": \"sigstoreSigned\", \"keyPath\": \"p256.pub\"}, ");
    assert!(judged(&both, "a.io/x:v1", &digest, &found).unwrap_err().contains("matchRepoDigestOrExact"));
}

/// The signature of `payload.json` without its last line break, by the first key of `keys.txt`.
fn made_of_payload() -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(include_str!("payload.sig").trim_end()).unwrap()
}

fn other_key() -> String {
    use base64::Engine as _;
    assert_eq!(test_keys().len(), 4);
    let key = include_str!("keys.txt").lines().nth(1).unwrap().split(' ').nth(1).unwrap();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n");
    base64::engine::general_purpose::STANDARD.encode(pem)
}
