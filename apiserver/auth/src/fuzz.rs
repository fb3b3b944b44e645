//! Fuzz targets of credentials: tokens, keys, and impersonation headers.

use std::sync::LazyLock;

use apiserver_resources::objects::memory::MemoryObjects;
use bolero::check;
use jiff::Timestamp;
use serde_json::json;

use super::jwt::SigningKey;
use super::own_certificates::OwnCertificate;
use super::pki::Identity;
use super::shared_keys::Authority;
use super::{impersonate, tokens};

static PEM: LazyLock<String> = LazyLock::new(|| rcgen::KeyPair::generate().unwrap().serialize_pem());
static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_pem(&PEM).unwrap());

#[test]
fn no_changed_token_holds() {
    let claims = json!({"sub": "system:serviceaccount:a:b", "exp": 4_000_000_000_i64});
    let token = KEY.sign(&claims).unwrap();
    check!().with_type::<Vec<(u16, u8)>>().for_each(|changes| {
        let mut bytes = token.clone().into_bytes();
        for (at, value) in changes {
            let at = usize::from(*at) % bytes.len();
            bytes[at] = *value;
        }
        let changed = String::from_utf8_lossy(&bytes);
        assert!(KEY.verify(&changed).is_none() || changed == token, "{changed}");
    });
}

#[test]
fn any_claims_are_judged() {
    const NAMES: [&str; 8] = ["iss", "sub", "aud", "exp", "nbf", "iat", "kubernetes.io", "jti"];
    const VALUES: [&str; 10] = [
        "null",
        "1",
        "-1e300",
        "\"\"",
        "[]",
        "{}",
        "\"https://kubernetes.default.svc.cluster.local\"",
        "[\"a\", 1]",
        "{\"namespace\": \"a\", \"serviceaccount\": {\"name\": \"b\", \"uid\": 1}, \"pod\": []}",
        "\"system:serviceaccount:a:b\"",
    ];
    let map = MemoryObjects::default();
    map.put("", "serviceaccounts", json!({"metadata": {"namespace": "a", "name": "b", "uid": "u"}}));
    check!().with_type::<Vec<(u8, u8)>>().for_each(|pairs| {
        let mut claims = json!({});
        for (name, value) in pairs {
            let value = VALUES[usize::from(*value) % VALUES.len()];
            claims[NAMES[usize::from(*name) % NAMES.len()]] = serde_json::from_str(value).unwrap();
        }
        let authenticated =
            tokens::authenticate(Some(&claims), &map, Timestamp::UNIX_EPOCH, "a.b.c", &["x".to_owned()]);
        assert!(authenticated.is_err(), "no such token was issued: {claims}");
    });
}

#[test]
fn any_key_is_read_or_refused() {
    check!().with_type::<(u16, Vec<u8>)>().for_each(|(at, bytes)| {
        let mut pem = PEM.clone().into_bytes();
        let at = usize::from(*at) % pem.len();
        let end = (at + bytes.len()).min(pem.len());
        pem.splice(at..end, bytes.iter().copied());
        let _ = SigningKey::from_pem(&String::from_utf8_lossy(&pem));
    });
}

#[test]
fn impersonation_requires_a_name() {
    const NAMES: [&str; 6] = [
        "impersonate-user",
        "impersonate-uid",
        "impersonate-group",
        "impersonate-extra-a",
        "impersonate-extra-%2f",
        "impersonate-extra-%ff",
    ];
    check!().with_type::<Vec<(u8, Vec<u8>)>>().for_each(|pairs| {
        let mut headers = http::HeaderMap::new();
        for (name, value) in pairs {
            if let Ok(value) = http::HeaderValue::from_bytes(value) {
                headers.append(NAMES[usize::from(*name) % NAMES.len()], value);
            }
        }
        match impersonate::requested_user(&headers) {
            Ok(Some(user)) => assert!(!user.name.is_empty()),
            // A request for another group without a user name must not pass with its own identity.
            Ok(None) => assert!(headers.keys().all(|name| name == NAMES[0] || name == NAMES[1])),
            Err(error) => assert_eq!(error.status().code, 400),
        }
    });
}

/// What an API server answers to a joining node, and what a node's folder or a kubeconfig holds.
#[test]
fn any_certificate_is_read_or_refused() {
    let own = rcgen::KeyPair::generate().unwrap();
    let names = vec!["n1".to_owned(), "192.0.2.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&own).unwrap().der().to_vec();
    let key_pem = own.serialize_pem();
    let identity = |der: &[u8]| {
        let cert_pem = pem::encode(&pem::Pem::new("CERTIFICATE", der));
        Identity { cert_pem, key_pem: key_pem.clone() }
    };
    assert!(OwnCertificate::read(&identity(&certificate)).is_ok());
    check!().with_type::<Vec<(u16, u8)>>().for_each(|changes| {
        let mut der = certificate.clone();
        for (at, value) in changes {
            let at = usize::from(*at) % der.len();
            der[at] = *value;
        }
        let _ = OwnCertificate::read(&identity(&der));
        let _ = Authority::from_der(&der);
        let flat: Vec<u8> = changes.iter().map(|(_, value)| *value).collect();
        let _ = OwnCertificate::read(&identity(&flat));
        let text = String::from_utf8_lossy(&flat).into_owned();
        assert!(OwnCertificate::read(&Identity { cert_pem: text.clone(), key_pem: text }).is_err());
    });
}
