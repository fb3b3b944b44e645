//! Leader election over a Lease, with client-go's record and timing: of several replicas one acts.

use std::time::Duration;

use http::{Method, Request, header::CONTENT_TYPE};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use tokio_util::sync::CancellationToken;

use super::events::Recorder;
use super::object::{Kind, value_of};
use super::plan::Note;
use crate::api::ObjectKey;
use crate::env::Env;

/// How a leader is elected.
#[derive(Debug, Clone)]
pub struct Election {
    /// The Lease, such as `kube-system/kube-controller-manager`.
    pub lease: ObjectKey,
    /// Who takes part: unique per replica.
    pub identity: String,
    /// After how long without renewal others may take over.
    pub lease_duration: Duration,
    /// After how long without renewal the leader gives up.
    pub renew_deadline: Duration,
    /// How often to try.
    pub retry_period: Duration,
}

impl Election {
    /// Upstream's timing: 15 s, 10 s, 2 s.
    pub fn new(lease: ObjectKey, identity: impl Into<String>) -> Self {
        Self {
            lease,
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// The leadership was lost: whoever led must end, as another may act by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the leadership is lost")]
pub struct LeadershipLost;

/// What was seen of the record, and when by our own clock: other replicas' clocks don't matter.
#[derive(Debug, Default)]
struct Observed {
    spec: Option<LeaseSpec>,
    at: Duration,
}

/// What to do about the record: pure.
#[derive(Debug, PartialEq)]
enum Step {
    /// Write this one.
    Write(Box<LeaseSpec>),
    /// Another leads.
    Wait,
}

fn step(election: &Election, observed: &Observed, now: Timestamp, elapsed: Duration) -> Step {
    let stamp = MicroTime(now);
    let duration = i32::try_from(election.lease_duration.as_secs()).unwrap_or(i32::MAX);
    let mut next = LeaseSpec {
        holder_identity: Some(election.identity.clone()),
        lease_duration_seconds: Some(duration),
        acquire_time: Some(stamp.clone()),
        renew_time: Some(stamp),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    };
    let Some(spec) = &observed.spec else { return Step::Write(Box::new(next)) };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let transitions = spec.lease_transitions.unwrap_or(0);
    if holder == election.identity {
        next.acquire_time = spec.acquire_time.clone();
        next.lease_transitions = Some(transitions);
        return Step::Write(Box::new(next));
    }
    let valid = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    if !holder.is_empty() && observed.at.saturating_add(valid) > elapsed {
        return Step::Wait;
    }
    next.lease_transitions = Some(transitions.saturating_add(1));
    Step::Write(Box::new(next))
}

/// Takes part until `stop`: waits for the leadership, then runs `lead`. Its token ends when the leadership does; at
/// `stop` the record is released so that another needn't wait.
///
/// # Errors
/// When the leadership was lost.
pub async fn run<F>(
    client: Client,
    env: Env,
    election: Election,
    stop: CancellationToken,
    lead: impl FnOnce(CancellationToken) -> F,
) -> Result<(), LeadershipLost>
where
    F: Future<Output = ()>,
{
    let mut record = Record { client, env, election, observed: Observed::default(), lease: None };
    while !record.attempt().await {
        let jitter_ms = record.env.below(record.election.retry_period.as_millis() as u64 * 12 / 10);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(record.election.retry_period + Duration::from_millis(jitter_ms)) => {}
        }
    }
    record.announce(&stop);
    let leading = stop.child_token();
    let work = lead(leading.clone());
    let mut work = std::pin::pin!(work);
    let mut renewed = record.env.elapsed();
    let lost = loop {
        tokio::select! {
            () = &mut work => break false,
            () = stop.cancelled() => {
                (&mut work).await;
                break false;
            }
            () = tokio::time::sleep(record.election.retry_period) => {}
        }
        let attempt = tokio::time::timeout(record.election.renew_deadline, record.attempt());
        let ours = tokio::select! {
            () = &mut work => break false,
            ours = attempt => ours.unwrap_or(false),
        };
        let now = record.env.elapsed();
        if ours {
            renewed = now;
        } else if now.saturating_sub(renewed) >= record.election.renew_deadline || record.taken() {
            break true;
        }
    };
    leading.cancel();
    if lost {
        return Err(LeadershipLost);
    }
    record.release().await;
    Ok(())
}

/// The record on the server, as far as it is known.
struct Record {
    client: Client,
    env: Env,
    election: Election,
    observed: Observed,
    lease: Option<Lease>,
}

impl Record {
    /// Whether another holds the record.
    fn taken(&self) -> bool {
        let holder = self.observed.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
        !holder.is_empty() && holder != self.election.identity
    }

    /// Tries to take or renew the record.
    async fn attempt(&mut self) -> bool {
        let path = Kind::of::<Lease>().path(&self.election.lease);
        // A leader knows the record: it renews without reading, and reads where that conflicts.
        if self.lease.is_none() || self.taken() {
            match self.send::<()>(Method::GET, &path, None).await {
                Ok(lease) => self.observe(Some(lease)),
                Err(kube::Error::Api(status)) if status.code == 404 => self.observe(None),
                Err(error) => {
                    tracing::debug!(%error, "the lease cannot be read");
                    return false;
                }
            }
        }
        let Step::Write(spec) = step(&self.election, &self.observed, self.env.now(), self.env.elapsed()) else {
            return false;
        };
        self.write(*spec).await
    }

    async fn write(&mut self, spec: LeaseSpec) -> bool {
        let kind = Kind::of::<Lease>();
        let key = &self.election.lease;
        let written = match self.lease.clone() {
            Some(mut lease) => {
                lease.spec = Some(spec);
                self.send(Method::PUT, &kind.path(key), Some(&lease)).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(key.name.clone()),
                    namespace: Some(key.namespace.clone()),
                    ..ObjectMeta::default()
                };
                let lease = Lease { metadata, spec: Some(spec) };
                self.send(Method::POST, &kind.collection_path(&key.namespace), Some(&lease)).await
            }
        };
        match written {
            Ok(lease) => {
                self.observe(Some(lease));
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the lease cannot be written");
                // Read it anew before the next try.
                self.lease = None;
                false
            }
        }
    }

    fn observe(&mut self, lease: Option<Lease>) {
        let spec = lease.as_ref().and_then(|l| l.spec.clone());
        if spec != self.observed.spec {
            self.observed = Observed { spec, at: self.env.elapsed() };
        }
        self.lease = lease;
    }

    /// Gives the record back: held by nobody, valid for a second.
    async fn release(&mut self) {
        let Some(spec) = self.observed.spec.clone() else { return };
        let now = MicroTime(self.env.now());
        let released = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: spec.lease_transitions,
            ..LeaseSpec::default()
        };
        let _ = tokio::time::timeout(self.election.retry_period, self.write(released)).await;
    }

    fn announce(&self, stop: &CancellationToken) {
        tracing::info!(lease = %self.election.lease, identity = %self.election.identity, "leading");
        let Some(lease) = &self.lease else { return };
        let recorder = Recorder::start(self.client.clone(), self.env.clone(), "leader-election", stop);
        recorder.record(Note::normal(lease, "LeaderElection", format!("{} became leader", self.election.identity)));
    }

    async fn send<T: serde::Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&T>,
    ) -> Result<Lease, kube::Error> {
        let body = body.map(|b| value_of(b).to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str) -> Observed {
        let spec = LeaseSpec {
            holder_identity: Some(by.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        };
        Observed { spec: Some(spec), at: Duration::from_secs(100) }
    }

    #[test]
    fn a_record_is_taken_over_only_when_it_ran_out_by_our_own_clock() {
        let me = Election::new(ObjectKey::new("kube-system", "x"), "me");
        let at = |seconds| step(&me, &held("other"), Timestamp::UNIX_EPOCH, Duration::from_secs(seconds));
        assert_eq!(at(114), Step::Wait);
        let Step::Write(taken) = at(115) else { panic!("it ran out") };
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(4)));
        let Step::Write(renewed) = step(&me, &held("me"), Timestamp::UNIX_EPOCH, Duration::from_secs(101)) else {
            panic!("one's own is renewed")
        };
        assert_eq!(renewed.lease_transitions, Some(3));
    }
}
