//! `--keyvalue` and the flags of its credentials: the store of `wasi:keyvalue` that nodes share.

use std::path::PathBuf;

use clap::Args;
use machinery_options::{OptionError, read_bytes};

use crate::{SharedStoreConfig, SharedStoreFiles};

/// Options of the shared key-value store.
#[derive(Debug, Clone, Default, Args)]
pub struct KeyvalueOptions {
    /// Store of wasi:keyvalue for all nodes with this flag, a Redis or Valkey: redis://[USER[:PASSWORD]@]HOST[:PORT][/DB], or
    /// rediss:// for TLS [default: files of this node] (docs/shared-stores.md, "Key-value data of several nodes")
    #[arg(long, env = "CORACLE_KEYVALUE", value_name = "URL", hide_env_values = true)]
    keyvalue: Option<RedactedUrl>,
    /// File with the password for --keyvalue, read at each connect; command lines are visible to all users of a machine
    #[arg(long, env = "CORACLE_KEYVALUE_PASSWORD_FILE", value_name = "FILE", requires = "keyvalue")]
    keyvalue_password_file: Option<PathBuf>,
    /// Authorities of the certificate behind a rediss:// URL (PEM) [default: the public ones]
    #[arg(long, env = "CORACLE_KEYVALUE_CAFILE", value_name = "FILE", requires = "keyvalue")]
    keyvalue_cafile: Option<PathBuf>,
    /// Client certificate for a rediss:// URL (PEM)
    #[arg(long, env = "CORACLE_KEYVALUE_CERTFILE", value_name = "FILE", requires_all = ["keyvalue", "keyvalue_keyfile"])]
    keyvalue_certfile: Option<PathBuf>,
    /// Key of the client certificate for a rediss:// URL (PEM)
    #[arg(long, env = "CORACLE_KEYVALUE_KEYFILE", value_name = "FILE", requires = "keyvalue_certfile")]
    keyvalue_keyfile: Option<PathBuf>,
}

/// A URL that may contain a password.
#[derive(Clone)]
struct RedactedUrl(String);

impl std::fmt::Debug for RedactedUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedactedUrl")
    }
}

impl From<String> for RedactedUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl KeyvalueOptions {
    /// The shared store; `None`: files of this node.
    ///
    /// # Errors
    /// If the URL or a certificate is invalid, flags contradict each other, or a file can't be read.
    pub fn config(&self) -> Result<Option<SharedStoreConfig>, OptionError> {
        let Some(url) = &self.keyvalue else { return Ok(None) };
        let read_optional =
            |flag, file: &Option<PathBuf>| file.as_deref().map(|file| read_bytes(flag, file)).transpose();
        let cert = read_optional("keyvalue-certfile", &self.keyvalue_certfile)?;
        let key = read_optional("keyvalue-keyfile", &self.keyvalue_keyfile)?;
        let files = SharedStoreFiles {
            password: self.keyvalue_password_file.clone(),
            ca_pem: read_optional("keyvalue-cafile", &self.keyvalue_cafile)?,
            identity_pem: cert.zip(key),
        };
        let wrong = |why: String| OptionError::new(format!("--keyvalue: {why}"));
        let config = SharedStoreConfig::new(&url.0, files).map_err(wrong)?;
        config.password().map_err(|why| OptionError::new(format!("--keyvalue-password-file: {why}")))?;
        Ok(Some(config))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        flags: KeyvalueOptions,
    }

    fn config(flags: &[&str]) -> Result<Option<SharedStoreConfig>, String> {
        let parsed = Only::try_parse_from(["x"].iter().chain(flags)).map_err(|error| error.to_string())?;
        assert!(!format!("{parsed:?}").contains("secret"), "{parsed:?}");
        parsed.flags.config().map_err(|failure| format!("{failure:?}"))
    }

    #[cfg(feature = "redis")]
    #[test]
    fn a_store_has_an_address_and_a_password() {
        assert!(config(&[]).unwrap().is_none());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password").display().to_string();
        std::fs::write(&file, "secret\n").unwrap();
        let flags = ["--keyvalue", "redis://me@h/1", "--keyvalue-password-file", &file];
        let found = config(&flags).unwrap().unwrap();
        assert_eq!((&*found.shown(), found.password()), ("redis://h:6379/1", Ok(Some("secret".into()))));
        assert_eq!(config(&["--keyvalue", "redis://:secret@h"]).unwrap().unwrap().shown(), "redis://h:6379/0");
    }

    #[test]
    fn invalid_stores_are_rejected_without_their_password() {
        let none = ["--keyvalue-password-file", "none"];
        for flags in [
            &["--keyvalue", "x"][..],
            &["--keyvalue", "redis://:secret@h/x"],
            &["--keyvalue", "redis://:secret@h", none[0], none[1]],
            &["--keyvalue", "redis://h", none[0], none[1]],
            &["--keyvalue", "redis://h", "--keyvalue-cafile", "none"],
            &["--keyvalue", "rediss://h", "--keyvalue-certfile", "none"],
            &none,
            &["--keyvalue-cafile", "none"],
        ] {
            let refused = config(flags).unwrap_err();
            assert!(refused.contains("--keyvalue") && !refused.contains("secret"), "{refused}");
        }
    }
}
