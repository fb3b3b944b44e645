//! `certificatesigningrequest-signing-controller`: issues certificates for approved requests of Kubernetes' own
//! signers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, Context, Controller, Input, ObjectCache, Plan};
use machinery_options::duration::some_time;

use super::{ACCOUNT, APPROVED, BACK_OFF, DENIED, FAILED, conditions, has, issued, requested, usages, wanted_usages};
use crate::Settings;
use crate::authority::CertificateTemplate;

/// How far `notBefore` lies in the past, for machines whose clocks are slow.
const BACKDATE: Duration = Duration::from_mins(5);
/// Below this lifetime the end counts from now; above it, from `notBefore`.
const SHORT: Duration = Duration::from_hours(8);
const LIFE_MIN: Duration = Duration::from_mins(10);
/// The longest lifetime, unless an option says otherwise (upstream's).
pub(crate) const LIFE_MAX: Duration = Duration::from_hours(365 * 24);

/// The authority for approved requests.
#[derive(Debug, Clone, Args)]
pub struct SigningOptions {
    /// Certificate of the authority that signs approved certificates, as PEM [default: none is signed]
    #[arg(long, env = "CORACLE_CLUSTER_SIGNING_CERT_FILE", value_name = "FILE", requires = "cluster_signing_key_file")]
    cluster_signing_cert_file: Option<PathBuf>,
    /// Key of that authority, as PEM: PKCS #8, or RSA in PKCS #1
    #[arg(long, env = "CORACLE_CLUSTER_SIGNING_KEY_FILE", value_name = "FILE", requires = "cluster_signing_cert_file")]
    cluster_signing_key_file: Option<PathBuf>,
    /// Maximum life of signed certificates; a request may ask for less [default: 8760h]
    #[arg(long, env = "CORACLE_CLUSTER_SIGNING_DURATION", value_name = "DURATION", value_parser = some_time)]
    cluster_signing_duration: Option<Duration>,
}

impl SigningOptions {
    /// The files of the authority's certificate and key, if it is given.
    #[must_use]
    pub fn files(&self) -> Option<(&Path, &Path)> {
        Some((self.cluster_signing_cert_file.as_deref()?, self.cluster_signing_key_file.as_deref()?))
    }

    /// The maximum lifetime of a certificate.
    #[must_use]
    pub fn life_max(&self) -> Duration {
        self.cluster_signing_duration.unwrap_or(LIFE_MAX)
    }
}

/// The key is a request's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "certificatesigningrequest-signing-controller",
    account: ACCOUNT,
    workers: 5,
    back_off: BACK_OFF,
    inputs: &[Input::of::<CertificateSigningRequest>(own_key)],
    reconcile,
};

fn has_failed(csr: &CertificateSigningRequest) -> bool {
    conditions(csr).iter().any(|c| c.type_ == FAILED && (c.status.is_empty() || c.status == "True"))
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(csr) = view.get::<CertificateSigningRequest>(key) else { return Plan::nothing() };
    let going = csr.metadata.deletion_timestamp.is_some();
    if going || issued(csr).is_some() || !has(csr, APPROVED) || has(csr, DENIED) || has_failed(csr) {
        return Plan::nothing();
    }
    let authority = &context.settings.authority;
    let Some(request) = requested(csr).filter(|_| authority.signs_certificates()) else { return Plan::nothing() };
    let why = match usages::check(&csr.spec.signer_name, &request, wanted_usages(csr)) {
        None => return Plan::nothing(),
        Some(Err(why)) => why,
        Some(Ok(())) => {
            let (not_before, not_after) = life(csr.spec.expiration_seconds, context);
            let template = CertificateTemplate { request: &request, usages: wanted_usages(csr), not_before, not_after };
            let Some(signed) = authority.sign_certificate(&template) else { return Plan::nothing() };
            match signed {
                Ok(pem) => {
                    let mut signed = csr.clone();
                    signed.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
                    return vec![Action::update_status(&signed)].into();
                }
                Err(why) => why,
            }
        }
    };
    vec![Action::update_status(&failed(csr, &why, context.now))].into()
}

fn life(requested_seconds: Option<i32>, context: &Context<'_, Settings>) -> (Timestamp, Timestamp) {
    let most = context.settings.certificate_life;
    let requested = requested_seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let life = requested.map_or(most, |requested| requested.max(LIFE_MIN).min(most));
    let now = context.now;
    let end = if life < SHORT { life } else { life.saturating_sub(BACKDATE) };
    (now.saturating_sub(BACKDATE).unwrap_or(now), now.saturating_add(end).unwrap_or(Timestamp::MAX))
}

fn failed(csr: &CertificateSigningRequest, why: &str, now: Timestamp) -> CertificateSigningRequest {
    let mut failed = csr.clone();
    failed.status.get_or_insert_default().conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: FAILED.into(),
        status: "True".into(),
        reason: Some("SignerValidationFailure".into()),
        message: Some(why.into()),
        last_update_time: Some(Time(now)),
        ..CertificateSigningRequestCondition::default()
    });
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requested_lifetime_is_bounded() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let settings = Settings::default();
        let context = Context {
            now,
            elapsed: Duration::ZERO,
            settings: &settings,
            pass: &Default::default(),
            reconciler_cache: &Default::default(),
        };
        let ends = |requested| life(requested, &context).1.to_string();
        assert_eq!(life(None, &context).0.to_string(), "2025-12-31T23:55:00Z");
        assert_eq!(ends(None), "2026-12-31T23:55:00Z");
        assert_eq!(ends(Some(600)), "2026-01-01T00:10:00Z");
        assert_eq!(ends(Some(-1)), "2026-01-01T00:10:00Z");
        assert_eq!(ends(Some(9 * 3600)), "2026-01-01T08:55:00Z");
        assert_eq!(ends(Some(i32::MAX)), "2026-12-31T23:55:00Z");
    }
}
