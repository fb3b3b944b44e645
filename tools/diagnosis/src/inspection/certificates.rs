//! The certificates of a data folder, and when they end.

use std::path::Path;

use apiserver_auth::own_certificates::{Validity, validity};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use serde::Serialize;
use serde_json::Value;

use super::amounts::SECONDS_PER_DAY;
use tools_command::data_dir::DataDir;

/// Certificates with less remaining time need attention: a running process renews its own with less than 90 days left.
const SOON_DAYS: i64 = 30;
/// Far above any chain of certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Maximum number of files: a folder of keys has a dozen.
const FILES_MAX: usize = 64;

/// A certificate of a data folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CertificateEnd {
    /// Its file, relative to the data folder.
    pub(crate) file: String,
    /// The start of its validity.
    pub(crate) not_before: Timestamp,
    /// The end of its validity.
    pub(crate) not_after: Timestamp,
    /// Whole days to its end; negative after it.
    pub(crate) days_left: i64,
    /// Whether its start is in the future.
    #[serde(skip)]
    pub(crate) begins_later: bool,
}

impl CertificateEnd {
    fn new(file: String, Validity { not_before, not_after }: Validity, now: Timestamp) -> Self {
        let seconds_per_day = SECONDS_PER_DAY.cast_signed();
        let days_left = (not_after.as_second() - now.as_second()).div_euclid(seconds_per_day);
        Self { file, not_before, not_after, days_left, begins_later: now < not_before }
    }

    /// Whether its end has passed.
    pub(crate) fn has_expired(&self) -> bool {
        self.days_left < 0
    }

    /// Whether its validity begins later: the clock was ahead at its issue, or is behind now.
    pub(crate) fn begins_later(&self) -> bool {
        self.begins_later
    }

    /// Whether it is not valid, or not for long.
    pub(crate) fn needs_attention(&self) -> bool {
        self.begins_later() || self.ends_soon()
    }

    /// Whether its end is near or has passed.
    pub(crate) fn ends_soon(&self) -> bool {
        self.days_left < SOON_DAYS
    }

    /// Whether it is the cluster's authority, which isn't renewed by itself.
    fn is_authority(&self) -> bool {
        self.file == "pki/ca.crt"
    }

    /// What is wrong with one that needs attention.
    pub(crate) fn warning(&self) -> String {
        let (file, end) = (&self.file, self.not_after);
        if self.begins_later() {
            format!("the certificate {file} is not valid before {}", self.not_before)
        } else if self.has_expired() {
            format!("the certificate {file} has expired ({end})")
        } else {
            format!("the certificate {file} ends in {} days ({end})", self.days_left)
        }
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        if self.begins_later() && self.is_authority() {
            "set this machine's clock, or begin a new cluster if the authority was made by a clock that was ahead"
        } else if self.begins_later() {
            "set this machine's clock (date, timedatectl), then start the process of this data folder: it issues its certificates \
             again"
        } else if self.is_authority() {
            "begin a new cluster before the end and move the workloads: an authority is never replaced (docs/nodes.md, \
             \"Certificates\")"
        } else {
            "start the process of this data folder: it renews its certificates; if it runs, see its log"
        }
    }
}

/// The certificates of a data folder, in the order of their files. Files that can't be read are left out.
pub(crate) fn of_folder(data: &DataDir, now: Timestamp) -> Vec<CertificateEnd> {
    let mut found = Vec::new();
    if let Ok(entries) = std::fs::read_dir(data.pki()) {
        for entry in entries.flatten().take(FILES_MAX) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if (name.ends_with(".crt") || name.ends_with(".pem"))
                && let Some(valid) = read(&entry.path()).and_then(|text| validity(&text))
            {
                found.push(CertificateEnd::new(format!("pki/{name}"), valid, now));
            }
        }
    }
    found.sort_by(|a, b| a.file.cmp(&b.file));
    if let Some(valid) = read(&data.kubeconfig()).and_then(|text| in_kubeconfig(&text)) {
        found.push(CertificateEnd::new("kubeconfig".to_owned(), valid, now));
    }
    found
}

fn read(path: &Path) -> Option<String> {
    let size = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?.len();
    if size > FILE_BYTES_MAX { None } else { std::fs::read_to_string(path).ok() }
}

/// The first client certificate that is inside a kubeconfig.
fn in_kubeconfig(text: &str) -> Option<Validity> {
    let file: Value = machinery_api::yaml::read(text).ok()?;
    file["users"].as_array()?.iter().find_map(|user| {
        let data = &user["user"]["client-certificate-data"];
        let bytes = serde_json::from_value::<ByteString>(data.clone()).ok()?;
        validity(std::str::from_utf8(&bytes.0).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use apiserver_auth::pki::{Pki, kubeconfig};
    use machinery_env::Env;

    use super::*;

    #[test]
    fn the_certificates_of_a_folder_have_their_ends() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().to_owned());
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (env, _) = Env::seeded(1, start);
        assert_eq!(of_folder(&data, start), []);
        let pki = Pki::open_or_create(&data.pki(), &env, &[]).unwrap();
        let text = kubeconfig("https://127.0.0.1:6443", pki.ca_pem(), "coracle", pki.admin());
        std::fs::write(data.kubeconfig(), text).unwrap();
        std::fs::write(data.pki().join("broken.crt"), "x").unwrap();
        let found = of_folder(&data, start);
        let files: Vec<&str> = found.iter().map(|one| one.file.as_str()).collect();
        assert_eq!(files, ["pki/admin.crt", "pki/apiserver.crt", "pki/ca.crt", "kubeconfig"]);
        assert_eq!(found[0].days_left, 365);
        assert!(found[2].is_authority() && found.iter().all(|one| !one.ends_soon()));
        let later = "2026-12-15T00:00:00Z".parse().unwrap();
        let soon: Vec<bool> = of_folder(&data, later).iter().map(CertificateEnd::ends_soon).collect();
        assert_eq!(soon, [true, true, false, true]);
        assert!(found[2].remedy().contains("new cluster") && found[0].remedy().contains("renews"));
        let after = of_folder(&data, "2027-01-02T00:00:00Z".parse().unwrap());
        assert!(after[0].warning().contains("pki/admin.crt has expired (2027-01-01T00:00:00Z)"), "{after:?}");
        assert!(after[0].has_expired() && !after[2].has_expired(), "{after:?}");
    }
}
