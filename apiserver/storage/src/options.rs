//! `--store` and the flags of an etcd cluster, with upstream's names.

use std::path::PathBuf;

use clap::Args;
use http::Uri;
use machinery_options::{OptionError, read_bytes};
use percent_encoding::percent_decode_str;

use crate::store::etcd::EtcdConfig;

/// Which store holds the objects.
#[derive(Debug, Clone, Default)]
pub enum StoreConfig {
    /// The embedded one in the data folder.
    #[default]
    DataFolder,
    /// The embedded one in another folder.
    Folder(PathBuf),
    Etcd(Box<EtcdConfig>),
}

/// Options of the store.
#[derive(Debug, Clone, Args)]
pub struct StoreOptions {
    /// Store of the objects: sled:DIR, or etcd:https://HOST:PORT,HOST:PORT,… [default: sled:DATA_DIR/store]
    #[arg(long, env = "CORACLE_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
    /// Authorities of the certificates of etcd's members (PEM)
    #[arg(long, env = "CORACLE_ETCD_CAFILE", value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Client certificate for etcd (PEM)
    #[arg(long, env = "CORACLE_ETCD_CERTFILE", value_name = "FILE", requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,
    /// Key of the client certificate for etcd (PEM)
    #[arg(long, env = "CORACLE_ETCD_KEYFILE", value_name = "FILE", requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// Prefix of all keys in etcd
    #[arg(long, env = "CORACLE_ETCD_PREFIX", value_name = "PREFIX", default_value = "/registry")]
    etcd_prefix: String,
}

impl StoreOptions {
    /// The store, with the content of the files.
    ///
    /// # Errors
    /// If the URL or the prefix is invalid, flags contradict each other, or a file can't be read.
    pub fn config(&self) -> Result<StoreConfig, OptionError> {
        let of_etcd = self.store.as_deref().and_then(|url| url.strip_prefix("etcd:"));
        if of_etcd.is_none() && (self.etcd_cafile.is_some() || self.etcd_certfile.is_some()) {
            return Err(OptionError::new("--etcd-cafile, --etcd-certfile and --etcd-keyfile need --store etcd:…"));
        }
        let Some(url) = &self.store else { return Ok(StoreConfig::DataFolder) };
        match (of_etcd, url.strip_prefix("sled:").filter(|path| !path.is_empty())) {
            (Some(members), _) => Ok(StoreConfig::Etcd(Box::new(self.etcd(members)?))),
            (None, Some(path)) => Ok(StoreConfig::Folder(path.into())),
            (None, None) => {
                Err(OptionError::new(format!("--store {url}: not a store; leave it out, or give sled:DIR or etcd:URL")))
            }
        }
    }

    fn etcd(&self, members: &str) -> Result<EtcdConfig, OptionError> {
        let (endpoints, user) = endpoints(members).map_err(|why| OptionError::new(format!("--store etcd:{why}")))?;
        let is_encrypted = endpoints.iter().any(|endpoint| endpoint.starts_with("https:"));
        if is_encrypted && self.etcd_cafile.is_none() {
            return Err(OptionError::new("--store etcd:https://…: name etcd's authority with --etcd-cafile FILE"));
        }
        if !is_encrypted && (self.etcd_cafile.is_some() || self.etcd_certfile.is_some()) {
            return Err(OptionError::new("--etcd-cafile and --etcd-certfile need --store etcd:https://…"));
        }
        let prefix = self.etcd_prefix.trim_end_matches('/');
        if !prefix.starts_with('/') {
            return Err(OptionError::new(format!(
                "--etcd-prefix {}: begins with a slash and a name",
                self.etcd_prefix
            )));
        }
        let read_optional =
            |flag, file: &Option<PathBuf>| file.as_deref().map(|file| read_bytes(flag, file)).transpose();
        let cert = read_optional("etcd-certfile", &self.etcd_certfile)?;
        let key = read_optional("etcd-keyfile", &self.etcd_keyfile)?;
        let ca = read_optional("etcd-cafile", &self.etcd_cafile)?;
        Ok(EtcdConfig { endpoints, prefix: prefix.to_owned(), ca, identity: cert.zip(key), user })
    }
}

/// The name and the password of a user.
type User = (String, String);

/// The URLs of the members, and the user with its password: `https://[USER:PASSWORD@]HOST:PORT,HOST:PORT`. Later members
/// have the first one's scheme unless they name one.
fn endpoints(text: &str) -> Result<(Vec<String>, Option<User>), String> {
    let (mut scheme, mut user, mut endpoints) = (None, None, Vec::new());
    for member in text.split(',') {
        // Without what a password might be part of.
        let shown = member.rsplit('@').next().unwrap_or_default();
        let invalid = || format!("…{shown}: each member is http://HOST:PORT or https://HOST:PORT");
        let url = match &scheme {
            Some(scheme) if !member.contains("://") => format!("{scheme}://{member}"),
            _ => member.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let (own, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(invalid)?;
        if !matches!(own, "http" | "https") || authority.port_u16().is_none() || !matches!(uri.path(), "" | "/") {
            return Err(invalid());
        }
        let address = match authority.as_str().rsplit_once('@') {
            Some((credentials, address)) => {
                let (name, password) = credentials.split_once(':').ok_or_else(invalid)?;
                let plain = |text| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| invalid());
                user = Some((plain(name)?, plain(password)?));
                address
            }
            None => authority.as_str(),
        };
        endpoints.push(format!("{own}://{address}"));
        scheme = Some(own.to_owned());
    }
    Ok((endpoints, user))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        flags: StoreOptions,
    }

    fn config(flags: &[&str]) -> Result<StoreConfig, String> {
        let parsed = Only::try_parse_from(["x"].iter().chain(flags)).map_err(|error| error.to_string())?;
        parsed.flags.config().map_err(|failure| format!("{failure:?}"))
    }

    fn etcd(flags: &[&str]) -> EtcdConfig {
        match config(flags) {
            Ok(StoreConfig::Etcd(etcd)) => *etcd,
            other => panic!("{flags:?}: {other:?}"),
        }
    }

    #[test]
    fn members_share_a_scheme_and_a_user() {
        let found = etcd(&["--store", "etcd:http://a:2379,b:2379,[::1]:2379"]);
        assert_eq!(found.endpoints, ["http://a:2379", "http://b:2379", "http://[::1]:2379"]);
        assert_eq!((&*found.prefix, found.user), ("/registry", None));
        let found = etcd(&["--store", "etcd:http://me:p%40ss:@a:1", "--etcd-prefix", "/shop/"]);
        assert_eq!((&*found.endpoints[0], &*found.prefix), ("http://a:1", "/shop"));
        assert_eq!(found.user, Some(("me".into(), "p@ss:".into())));
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            std::fs::write(folder.path().join(name), name).unwrap();
            folder.path().join(name).display().to_string()
        };
        let (ca, cert, key) = (file("ca"), file("cert"), file("key"));
        let url = ["--store", "etcd:https://a:1", "--etcd-cafile", &ca];
        assert_eq!(etcd(&url).ca.as_deref(), Some(&b"ca"[..]));
        let pair = ["--etcd-certfile", &cert, "--etcd-keyfile", &key];
        assert_eq!(etcd(&[&url[..], &pair[..]].concat()).identity, Some((b"cert".into(), b"key".into())));
    }

    #[test]
    fn invalid_stores_are_rejected_without_their_password() {
        assert!(matches!(config(&[]), Ok(StoreConfig::DataFolder)));
        assert!(matches!(config(&["--store", "sled:s"]), Ok(StoreConfig::Folder(path)) if path == Path::new("s")));
        for flags in [
            &["--store", "x"][..],
            &["--store", "sled:"],
            &["--store", "etcd:"],
            &["--store", "etcd:a:2379"],
            &["--store", "etcd:http://a"],
            &["--store", "etcd:http://a:1/b"],
            &["--store", "etcd:ftp://a:1"],
            &["--store", "etcd:http://a:1,"],
            &["--store", "etcd:http://secret@a:1"],
            &["--store", "etcd:https://a:1"],
            &["--store", "etcd:http://a:1", "--etcd-cafile", "x"],
            &["--store", "etcd:https://a:1", "--etcd-cafile", "/none"],
            &["--store", "etcd:http://a:1", "--etcd-prefix", "x"],
            &["--store", "etcd:http://a:1", "--etcd-prefix", "/"],
            &["--etcd-cafile", "x"],
            &["--etcd-certfile", "x"],
            &["--store", "etcd:http://me:secret@a:1/b"],
        ] {
            let refused = config(flags).unwrap_err();
            assert!(!refused.contains("secret"), "{refused}");
        }
    }
}
