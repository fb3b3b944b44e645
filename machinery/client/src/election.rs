//! Leader election over a Lease, with client-go's record and timing: one of several replicas is active.

mod term;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::events::Recorder;
use crate::object::Kind;
use crate::plan::EventRecord;
use crate::request::{ApiClient, status_code};
use machinery_api::ObjectKey;
use machinery_env::Env;

pub use term::Term;

/// Configuration of an election.
#[derive(Debug, Clone)]
pub struct Election {
    /// The Lease, such as `kube-system/kube-controller-manager`.
    pub lease: ObjectKey,
    /// The candidate's identity: unique per replica.
    pub identity: String,
    /// Time without renewal after which others may take over.
    pub lease_duration: Duration,
    /// Time without renewal after which the leader gives up.
    pub renew_deadline: Duration,
    /// Interval between attempts.
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

/// The leadership was lost: the leader must exit, since another may be active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the leadership is lost")]
pub struct LeadershipLost;

/// The last observed record, with the time by the local clock: other replicas' clocks are not used.
#[derive(Debug, Default)]
struct ObservedRecord {
    spec: Option<LeaseSpec>,
    at: Duration,
}

/// Decision about the record: pure.
#[derive(Debug, PartialEq)]
enum ElectionStep {
    /// Write this record.
    Write(Box<LeaseSpec>),
    /// Another candidate leads.
    Wait,
}

fn step(election: &Election, observed: &ObservedRecord, now: Timestamp, elapsed: Duration) -> ElectionStep {
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
    let Some(spec) = &observed.spec else { return ElectionStep::Write(Box::new(next)) };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let transitions = spec.lease_transitions.unwrap_or(0);
    if holder == election.identity {
        next.acquire_time = spec.acquire_time.clone();
        next.lease_transitions = Some(transitions);
        return ElectionStep::Write(Box::new(next));
    }
    let valid = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
    if !holder.is_empty() && observed.at.saturating_add(valid) > elapsed {
        return ElectionStep::Wait;
    }
    next.lease_transitions = Some(transitions.saturating_add(1));
    ElectionStep::Write(Box::new(next))
}

/// Runs for election until `stop`: waits for the leadership, then runs `lead`. The token of the [`Term`] passed to `lead`
/// ends with the leadership, and its clients send nothing after it. At `stop` the record is released, so that another
/// candidate needn't wait.
///
/// The leader has stopped before another may start: the leadership ends `renew_deadline` after the last successful
/// renewal was *sent*, whatever attempts are in flight. Others count the longer `lease_duration` from their
/// observation. `lead` is dropped with this future: tasks that it spawned must end with it.
///
/// # Errors
/// If the leadership was lost.
pub async fn run<F>(
    client: Client,
    env: Env,
    election: Election,
    stop: CancellationToken,
    lead: impl FnOnce(Term) -> F,
) -> Result<(), LeadershipLost>
where
    F: Future<Output = ()>,
{
    let mut record = LeaseRecord { client, env, election, observed: ObservedRecord::default(), lease: None };
    let renewed = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        renewed = record.acquire() => renewed,
    };
    record.announce(&stop);
    let leading = stop.child_token();
    let deadline = record.election.renew_deadline;
    let term = Term::new(&record.env, leading.clone(), renewed + deadline);
    let work = lead(term.clone());
    let mut work = std::pin::pin!(work);
    let ended = tokio::select! {
        biased;
        () = &mut work => true,
        () = stop.cancelled() => {
            // The lease isn't renewed during shutdown: the rest of its duration bounds the work, as in upstream's
            // processes.
            let _ = record.env.timeout(deadline, &mut work).await;
            true
        }
        () = record.renew_until_lost(&term, renewed) => false,
    };
    leading.cancel();
    if !ended {
        return Err(LeadershipLost);
    }
    record.release().await;
    Ok(())
}

/// The Lease on the server with its last observed state.
struct LeaseRecord {
    client: Client,
    env: Env,
    election: Election,
    observed: ObservedRecord,
    lease: Option<Lease>,
}

impl LeaseRecord {
    /// Whether another candidate holds the record.
    fn is_held_by_other(&self) -> bool {
        let holder = self.observed.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
        !holder.is_empty() && holder != self.election.identity
    }

    /// Waits for the leadership. Returns when the successful attempt began.
    async fn acquire(&mut self) -> Duration {
        loop {
            let (began, env) = (self.env.elapsed(), self.env.clone());
            let attempt = env.timeout(self.election.renew_deadline, self.attempt()).await;
            if attempt.unwrap_or(false) {
                return began;
            }
            let jitter_ms = self.env.below(self.election.retry_period.as_millis() as u64 * 12 / 10);
            self.env.sleep(self.election.retry_period + Duration::from_millis(jitter_ms)).await;
        }
    }

    /// Renews until the deadline has passed, or another candidate holds the record. `renewed`: when the last successful
    /// attempt began.
    async fn renew_until_lost(&mut self, term: &Term, mut renewed: Duration) {
        loop {
            let left = (renewed + self.election.renew_deadline).saturating_sub(self.env.elapsed());
            let (retry_period, env) = (self.election.retry_period, self.env.clone());
            let attempt = async {
                env.sleep(retry_period).await;
                let began = env.elapsed();
                self.attempt().await.then_some(began)
            };
            match env.timeout(left, attempt).await {
                Ok(Some(began)) => {
                    renewed = began;
                    term.extend(renewed + self.election.renew_deadline);
                }
                Ok(None) if self.is_held_by_other() => return,
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Tries to acquire or renew the record.
    async fn attempt(&mut self) -> bool {
        let api = ApiClient::from(self.client.clone());
        // The leader renews with its cached record; it reads only after a conflict.
        if self.lease.is_none() || self.is_held_by_other() {
            match api.get(&Kind::of::<Lease>(), &self.election.lease).await {
                Ok(lease) => self.observe(Some(lease)),
                Err(error) if status_code(&error) == 404 => self.observe(None),
                Err(error) => {
                    tracing::debug!(%error, "the lease cannot be read");
                    return false;
                }
            }
        }
        let ElectionStep::Write(spec) = step(&self.election, &self.observed, self.env.now(), self.env.elapsed()) else {
            return false;
        };
        self.write(*spec).await
    }

    async fn write(&mut self, spec: LeaseSpec) -> bool {
        let kind = Kind::of::<Lease>();
        let key = &self.election.lease;
        let api = ApiClient::from(self.client.clone());
        let written = match self.lease.clone() {
            Some(mut lease) => {
                lease.spec = Some(spec);
                api.update(&kind, key, None, &lease).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(key.name.clone()),
                    namespace: Some(key.namespace.clone()),
                    ..ObjectMeta::default()
                };
                let lease = Lease { metadata, spec: Some(spec) };
                api.create(&kind, &key.namespace, &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.observe(Some(lease));
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the lease cannot be written");
                // Read again before the next try.
                self.lease = None;
                false
            }
        }
    }

    fn observe(&mut self, lease: Option<Lease>) {
        let spec = lease.as_ref().and_then(|l| l.spec.clone());
        if spec != self.observed.spec {
            self.observed = ObservedRecord { spec, at: self.env.elapsed() };
        }
        self.lease = lease;
    }

    /// Releases the record: no holder, valid for one second.
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
        let (retry_period, env) = (self.election.retry_period, self.env.clone());
        let _ = env.timeout(retry_period, self.write(released)).await;
    }

    fn announce(&self, stop: &CancellationToken) {
        tracing::info!(lease = %self.election.lease, identity = %self.election.identity, "leading");
        let Some(lease) = &self.lease else { return };
        let recorder = Recorder::start(self.client.clone(), self.env.clone(), "leader-election", stop);
        recorder.record(EventRecord::normal(
            lease,
            "LeaderElection",
            format!("{} became leader", self.election.identity),
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use http::{Method, Request, Response};
    use http_body_util::Full;
    use serde_json::{Value, json};

    use super::*;
    use machinery_env::{Clock as _, TokioClock};

    fn held(by: &str) -> ObservedRecord {
        let spec = LeaseSpec {
            holder_identity: Some(by.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        };
        ObservedRecord { spec: Some(spec), at: Duration::from_secs(100) }
    }

    /// A server of one Lease with scripted faults, on tokio's clock, which a test may pause.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<Mutex<Option<Value>>>,
        /// The fault of a write at a time since the start.
        fault: Option<fn(Duration) -> Fault>,
        requests: Arc<AtomicUsize>,
    }

    enum Fault {
        None,
        Refused,
        Silence,
    }

    impl Server {
        fn client(&self, clock: &Arc<TokioClock>) -> Client {
            let (this, clock) = (self.clone(), clock.clone());
            let service = tower::service_fn(move |request: Request<kube::client::Body>| {
                let (this, clock) = (this.clone(), clock.clone());
                async move {
                    this.requests.fetch_add(1, Ordering::Relaxed);
                    let (head, body) = request.into_parts();
                    match this.fault.map_or(Fault::None, |fault| fault(clock.elapsed())) {
                        Fault::None => {}
                        Fault::Refused => return Ok(answer(500, &json!({"kind": "Status", "code": 500}))),
                        Fault::Silence => std::future::pending::<()>().await,
                    }
                    let sent = body.collect_bytes().await.unwrap();
                    let mut lease = this.lease.lock().unwrap();
                    if head.method != Method::GET {
                        *lease = serde_json::from_slice(&sent).unwrap();
                    }
                    Ok::<_, Infallible>(match &*lease {
                        Some(lease) => answer(200, lease),
                        None => answer(404, &json!({"kind": "Status", "code": 404})),
                    })
                }
            });
            crate::in_process(&Env::real(), service, |request| request)
        }

        fn holder(&self) -> Value {
            self.lease.lock().unwrap().as_ref().map_or(Value::Null, |lease| lease["spec"]["holderIdentity"].clone())
        }
    }

    fn answer(code: u16, body: &Value) -> Response<Full<Bytes>> {
        Response::builder().status(code).body(Full::new(Bytes::from(body.to_string()))).unwrap()
    }

    /// Two leaders for five seconds were possible when each attempt had the whole renew deadline: failures until
    /// shortly before it, then an attempt that hangs.
    #[tokio::test(start_paused = true)]
    async fn the_leadership_ends_in_time_while_an_attempt_hangs() {
        let (env, clock) = TokioClock::env(1);
        let fault = |at: Duration| match at.as_secs() {
            0..5 => Fault::None,
            5..11 => Fault::Refused,
            _ => Fault::Silence,
        };
        let server = Server { fault: Some(fault), ..Server::default() };
        let election = Election::new(ObjectKey::new("kube-system", "x"), "me");
        let lead = |term: Term| async move { term.ended.cancelled().await };
        let stop = CancellationToken::new();
        let result = run(server.client(&clock), env, election, stop, lead).await;
        assert_eq!(result, Err(LeadershipLost));
        // Last renewed at +4 s: others may take over from +19 s on.
        assert_eq!(clock.elapsed().as_secs(), 14);
    }

    /// A leader that goes on after its lease ran out, as after a SIGSTOP, sends nothing.
    #[tokio::test(start_paused = true)]
    async fn a_leader_sends_nothing_after_its_term() {
        let (env, clock) = TokioClock::env(1);
        let fault = |at: Duration| if at.as_secs() < 5 { Fault::None } else { Fault::Refused };
        let server = Server { fault: Some(fault), ..Server::default() };
        let election = Election::new(ObjectKey::new("kube-system", "x"), "me");
        let client = server.client(&clock);
        let (sent, seen) = tokio::sync::oneshot::channel();
        let lead = |term: Term| async move {
            // Not dropped with the leadership, as in a process that was stopped.
            let _ = sent.send(term);
            std::future::pending().await
        };
        let running = tokio::spawn(run(client.clone(), env.clone(), election, CancellationToken::new(), lead));
        let term = seen.await.unwrap();
        let fenced = term.client(&client);
        let refused = || async {
            let api = ApiClient::from(fenced.clone());
            let answered = api.get::<Lease>(&Kind::of::<Lease>(), &ObjectKey::new("kube-system", "x")).await;
            answered.is_err_and(|error| format!("{error:?}").contains("LeadershipLost"))
        };
        env.sleep(Duration::from_secs(10)).await;
        assert!(!refused().await, "the server answers within the term");
        running.await.unwrap().unwrap_err();
        assert!(term.ended.is_cancelled());
        let count = server.requests.load(Ordering::Relaxed);
        assert!(refused().await);
        assert_eq!(server.requests.load(Ordering::Relaxed), count, "nothing was sent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_first_attempt_times_out_and_stops() {
        let (env, clock) = TokioClock::env(1);
        let server = Server { fault: Some(|_| Fault::Silence), ..Server::default() };
        let election = Election::new(ObjectKey::new("kube-system", "x"), "me");
        let stop = CancellationToken::new();
        let work = |_: Term| std::future::pending();
        let task = tokio::spawn(run(server.client(&clock), env.clone(), election, stop.clone(), work));
        while server.requests.load(Ordering::Relaxed) < 2 {
            env.sleep(Duration::from_secs(1)).await;
        }
        assert!(
            clock.elapsed() < Duration::from_secs(20),
            "the second attempt follows within the deadline and a pause"
        );
        stop.cancel();
        assert_eq!(env.timeout(Duration::from_secs(1), task).await.unwrap().unwrap(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_keeps_the_record_and_gives_it_back() {
        let (env, clock) = TokioClock::env(1);
        let server = Server::default();
        let election = Election::new(ObjectKey::new("kube-system", "x"), "me");
        let stop = CancellationToken::new();
        let lead = |term: Term| async move { term.ended.cancelled().await };
        let task = tokio::spawn(run(server.client(&clock), env.clone(), election, stop.clone(), lead));
        env.sleep(Duration::from_secs(60)).await;
        assert_eq!(server.holder(), "me");
        assert!(server.requests.load(Ordering::Relaxed) > 25, "renewed every 2 s");
        stop.cancel();
        assert_eq!(task.await.unwrap(), Ok(()));
        assert_eq!(server.holder(), "", "nobody needs to wait for it");
    }

    #[test]
    fn a_record_is_taken_over_only_when_it_ran_out_by_our_own_clock() {
        let me = Election::new(ObjectKey::new("kube-system", "x"), "me");
        let at = |seconds| step(&me, &held("other"), Timestamp::UNIX_EPOCH, Duration::from_secs(seconds));
        assert_eq!(at(114), ElectionStep::Wait);
        let ElectionStep::Write(taken) = at(115) else { panic!("it ran out") };
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(4)));
        let ElectionStep::Write(renewed) = step(&me, &held("me"), Timestamp::UNIX_EPOCH, Duration::from_secs(101))
        else {
            panic!("one's own is renewed")
        };
        assert_eq!(renewed.lease_transitions, Some(3));
    }
}
