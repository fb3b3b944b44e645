//! The cluster's authority, found by its hash at a server that isn't trusted yet. As kubeadm's
//! `--discovery-token-ca-cert-hash`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use apiserver_auth::shared_keys::Authority;
use http::Uri;
use machinery_env::Env;
use machinery_serve::dial::unverified;
use tokio::net::TcpStream;
use tools_command::host;

/// The time for the first connection.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// The hexadecimal digits of a SHA-256.
const DIGITS: usize = 64;

/// Checks the form of a hash: `sha256:` and hexadecimal digits.
///
/// # Errors
/// If the text has another form.
pub fn check_hash(text: &str) -> Result<(), &'static str> {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    match digits.len() == DIGITS && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        true => Ok(()),
        false => Err("sha256: and 64 hexadecimal digits"),
    }
}

/// Checks the form of an API server's URL: `https://HOST:PORT`.
///
/// # Errors
/// If it has another form.
pub fn check_server(url: &Uri) -> Result<(), &'static str> {
    match url.scheme_str() == Some("https") && url.authority().is_some() {
        true => Ok(()),
        false => Err("https://HOST:PORT"),
    }
}

/// The authority: the certificate with the hash among those that the server sends. Nothing is sent to that server but the
/// handshake.
///
/// # Errors
/// If the server doesn't answer, or sends no certificate with the hash.
pub(crate) async fn find(env: &Env, server: &Uri, hash: &str) -> anyhow::Result<Authority> {
    let host = host::of_url(server);
    let port = server.port_u16().unwrap_or(443);
    let connected = async {
        let stream = TcpStream::connect((host, port)).await?;
        unverified::handshake(host, stream).await
    };
    let connected = env.timeout(HANDSHAKE_MAX, connected).await.context("the server does not answer")??;
    let certificates = connected.get_ref().1.peer_certificates().unwrap_or_default();
    let authorities = certificates.iter().filter_map(|certificate| Authority::from_der(certificate));
    let mut authorities = authorities.collect::<Vec<_>>();
    match authorities.iter().position(|authority| authority.hash == hash) {
        Some(found) => Ok(authorities.swap_remove(found)),
        None => bail!(
            "the server sends no certificate with the hash of --ca-hash: this is another cluster, or not a Coracle API \
             server, for which --kubeconfig is needed"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_and_urls_have_one_form() {
        let hash = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(check_hash(&hash), Ok(()));
        for bad in ["", "sha256:", &hash.to_uppercase(), &hash[7..], &format!("{hash}0"), &hash.replace('a', "é")] {
            assert!(check_hash(bad).is_err(), "{bad}");
        }
        let url = |text: &str| text.parse::<Uri>().unwrap();
        assert_eq!(check_server(&url("https://[::1]:6443")), Ok(()));
        for bad in ["http://a:1", "a:1", "/path"] {
            assert!(check_server(&url(bad)).is_err(), "{bad}");
        }
    }
}
