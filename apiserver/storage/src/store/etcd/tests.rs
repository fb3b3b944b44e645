//! Against real members with TLS.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;

use super::super::contract::{self, just, put, write};
use super::super::{Record, prefix_end};
use super::*;

/// A port that nothing listens on, below those that systems give to connections: a member that starts again needs it again.
fn port() -> u16 {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 400 * 25).unwrap();
    let mut ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

struct Member {
    arguments: Vec<String>,
    process: Option<Child>,
}

/// Three members with TLS on loopback.
struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    config: EtcdConfig,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|nth| self.kill(nth));
    }
}

impl Cluster {
    fn start(count: usize, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &authority).unwrap();
        fs::write(at("ca"), authority.pem()).unwrap();
        fs::write(at("cert"), cert.pem()).unwrap();
        fs::write(at("key"), key.serialize_pem()).unwrap();
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (port(), port())).collect();
        let url = |port: u16| format!("https://127.0.0.1:{port}");
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(nth, (_, peer))| format!("m{nth}={}", url(*peer))).collect();
        let members = ports.iter().enumerate().map(|(nth, (client, peer))| {
            let (client, peer) = (url(*client), url(*peer));
            let name = format!("m{nth}");
            let pairs = [
                ("name", name.as_str()),
                ("data-dir", &at(&name)),
                ("listen-client-urls", &client),
                ("advertise-client-urls", &client),
                ("listen-peer-urls", &peer),
                ("initial-advertise-peer-urls", &peer),
                ("initial-cluster", &peers.join(",")),
                ("cert-file", &at("cert")),
                ("key-file", &at("key")),
                ("trusted-ca-file", &at("ca")),
                ("client-cert-auth", "true"),
                ("peer-cert-file", &at("cert")),
                ("peer-key-file", &at("key")),
                ("peer-trusted-ca-file", &at("ca")),
                ("heartbeat-interval", "50"),
                ("election-timeout", "500"),
                ("log-level", "error"),
                ("unsafe-no-fsync", "true"),
            ];
            let arguments = pairs.map(|(flag, value)| format!("--{flag}={value}")).into_iter();
            Member { arguments: arguments.chain(more.iter().map(|&flag| flag.to_owned())).collect(), process: None }
        });
        let config = EtcdConfig {
            endpoints: ports.iter().map(|(client, _)| url(*client)).collect(),
            prefix: "/registry".into(),
            ca: Some(authority.pem().into_bytes()),
            identity: Some((cert.pem().into_bytes(), key.serialize_pem().into_bytes())),
            user: None,
        };
        let members = members.collect();
        let mut cluster = Self { folder, members, config };
        (0..count).for_each(|nth| cluster.run(nth));
        cluster
    }

    fn run(&mut self, nth: usize) {
        let log = fs::File::create(self.folder.path().join(format!("log{nth}"))).unwrap();
        let member = &mut self.members[nth];
        let mut command = Command::new("etcd");
        command.args(&member.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        member.process = Some(command.spawn().expect("etcd is in PATH: `tests/etcd` builds it"));
    }

    fn kill(&mut self, nth: usize) {
        if let Some(mut process) = self.members[nth].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn signal(&self, nth: usize, signal: rustix::process::Signal) {
        let process = self.members[nth].process.as_ref().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(process), signal).unwrap();
    }

    /// A store below a prefix of its own, once the cluster has a leader.
    async fn store(&self, prefix: &str, env: Env) -> EtcdStore {
        let config = EtcdConfig { prefix: prefix.into(), ..self.config.clone() };
        let mut last = None;
        for _ in 0..6 {
            match EtcdStore::open(&config, env.clone()).await {
                Ok(store) => return store,
                Err(error) => last = Some(error),
            }
        }
        panic!("{last:?}: {:?}", fs::read_to_string(self.folder.path().join("log0")));
    }
}

/// Keeps the newest state and every change.
#[derive(Default)]
struct Recording(Mutex<RecordingState>);

#[derive(Default)]
struct RecordingState {
    starts: Vec<Revision>,
    keys: BTreeMap<Arc<str>, Revision>,
    changes: Vec<Revision>,
    at: Revision,
    compacted: Revision,
}

impl Recording {
    /// Waits until the state is as required.
    async fn until(&self, what: &str, mut holds: impl FnMut(&RecordingState) -> bool) {
        let (env, deadline) = (Env::real(), Duration::from_secs(30));
        let wait = async {
            while !holds(&lock(&self.0)) {
                env.sleep(Duration::from_millis(5)).await;
            }
        };
        env.timeout(deadline, wait).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"));
    }
}

impl Sink for Recording {
    fn start(&self, state: Vec<Entry>, revision: Revision) {
        let mut this = lock(&self.0);
        this.starts.push(revision);
        this.keys = state.into_iter().map(|entry| (entry.key, entry.modified)).collect();
        this.at = revision;
    }

    fn commit(&self, changes: &[Change]) {
        let mut this = lock(&self.0);
        for change in changes {
            assert!(change.revision > this.at || this.changes.last() == Some(&change.revision), "again: {change:?}");
            this.at = change.revision;
            this.changes.push(change.revision);
            match &change.entry {
                Some(entry) => this.keys.insert(change.key.clone(), entry.modified),
                None => this.keys.remove(&change.key),
            };
        }
    }

    fn progress(&self, revision: Revision) {
        let mut this = lock(&self.0);
        assert!(revision > this.at);
        this.at = revision;
    }

    fn compact(&self, revision: Revision) {
        lock(&self.0).compacted = revision;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let cluster = Arc::new(Cluster::start(3, &[]));
    let number = Arc::new(AtomicU64::new(0));
    contract::distributed(&|env| {
        let (cluster, prefix) = (cluster.clone(), format!("/t{}", number.fetch_add(1, Ordering::Relaxed)));
        Box::pin(async move { Arc::new(cluster.store(&prefix, env).await) as Arc<dyn Store> })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_has_every_change_once_while_members_are_lost() {
    let mut cluster = Cluster::start(3, &[]);
    let store = Arc::new(cluster.store("/registry", Env::real()).await);
    write(&*store, just(put("/registry/k/before", "1"))).await;
    let recording = Arc::new(Recording::default());
    store.feed(recording.clone()).await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers = (0..4).map(|writer| {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut acknowledged, mut number) = (Vec::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let key = format!("/registry/k/{writer}-{number}");
                // A write without an answer may have taken effect.
                if let Ok(Outcome::Committed(at)) = store.txn(just(put(&key, "1"))).await {
                    acknowledged.push((key, at));
                }
            }
            acknowledged
        })
    });
    let writers: Vec<_> = writers.collect();
    let more = async |count: usize| {
        let now = lock(&recording.0).changes.len();
        recording.until("more changes", |state| state.changes.len() > now + count).await;
    };
    for nth in 0..3 {
        more(50).await;
        cluster.kill(nth);
        more(50).await;
        cluster.run(nth);
        more(50).await;
    }
    cluster.signal(0, rustix::process::Signal::STOP);
    more(50).await;
    cluster.signal(0, rustix::process::Signal::CONT);
    more(50).await;
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    let Current::WaitFor(newest) = store.current() else { panic!() };
    let newest = newest.await.unwrap();
    recording.until("the newest revision", |state| state.at >= newest).await;
    let stored = store.range("/", &prefix_end("/"), None, 0).await.unwrap();
    let stored: BTreeMap<Arc<str>, Revision> = stored.entries.into_iter().map(|e| (e.key, e.modified)).collect();
    let state = lock(&recording.0);
    assert_eq!(state.keys, stored, "the feed and etcd differ");
    assert_eq!(state.starts.len(), 1);
    for (key, at) in &acknowledged {
        assert_eq!(state.keys.get(&**key), Some(at), "{key} was acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_expire_and_readers_wait_for_revisions_of_others() {
    let cluster = Cluster::start(1, &[]);
    let (store, other) = (cluster.store("/registry", Env::real()).await, cluster.store("/other", Env::real()).await);
    let recording = Arc::new(Recording::default());
    store.feed(recording.clone()).await.unwrap();
    for key in ["/registry/events/a", "/registry/events/b"] {
        let ttl = Some(Duration::from_secs(2));
        write(&store, just(Op::Put { key: key.into(), record: Record::plain(b"{}"), ttl })).await;
    }
    recording.until("both events", |state| state.keys.len() == 2).await;
    recording.until("no event", |state| state.keys.is_empty()).await;
    // A write below another prefix is no change here, and takes a revision.
    let at = write(&other, just(put("/registry/k/a", "1"))).await;
    let Current::WaitFor(newest) = store.current() else { panic!() };
    assert_eq!(newest.await.unwrap(), at);
    recording.until("the other's revision", |state| state.at == at).await;
    let reads = (0..2 * TURN_MAX).map(async |_| {
        let Current::WaitFor(newest) = store.current() else { panic!() };
        newest.await.unwrap()
    });
    let reads = futures::future::join_all(reads).await;
    assert!(reads.iter().all(|newest| *newest == at), "{reads:?}");
    // Readers that never pause don't keep each other waiting.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let readers = async {
        let mut at = at;
        while !stop.load(Ordering::Relaxed) {
            at = write(&other, just(put("/registry/k/a", "1"))).await;
            let Current::WaitFor(newest) = store.current() else { panic!() };
            assert!(newest.await.unwrap() >= at);
        }
        at
    };
    let watching = async {
        recording.until("a later revision", |state| state.at > at + 20).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (at, ()) = tokio::join!(readers, watching);
    recording.until("the other's last revision", |state| state.at == at).await;
    // A transaction that changes nothing is no change, either.
    write(&other, just(put("/registry/k/a", "2"))).await;
    let at = write(&store, just(Op::Delete { key: "/registry/k/none".into() })).await;
    recording.until("the revision of no change", |state| state.at == at).await;
    store.compact(at).await.unwrap();
    recording.until("compaction", |state| state.compacted == at).await;
    drop(store);
    // A value of another program stops a start, and is named.
    let foreign = Cluster::store(&cluster, "/registry", Env::real()).await;
    set(&foreign, "/registry/pods/a", b"k8s\0".to_vec()).await;
    let error = foreign.feed(Arc::new(Recording::default())).await.unwrap_err();
    assert!(error.to_string().contains("/registry/pods/a was not written by Coracle"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_starts_again_when_its_changes_are_compacted() {
    let cluster = Cluster::start(1, &[]);
    let store = cluster.store("/registry", Env::real()).await;
    let position = write(&store, just(put("/registry/k/a", "1"))).await;
    write(&store, just(put("/registry/k/a", "2"))).await;
    let last = write(&store, just(Op::Delete { key: "/registry/k/a".into() })).await;
    let kept = write(&store, just(put("/registry/k/b", "1"))).await;
    store.compact(last).await.unwrap();
    let recording = Arc::new(Recording::default());
    let (etcd, sink) = (store.cluster.clone(), recording.clone());
    let (wanted, compacted) = (store.wanted.subscribe(), store.compacted.subscribe());
    tokio::spawn(Follower::new(etcd, sink, position, wanted, compacted).run());
    recording.until("a start", |state| state.starts == [kept]).await;
    let next = write(&store, just(put("/registry/k/c", "1"))).await;
    recording.until("the next change", |state| state.changes == [next]).await;
    let keys: Vec<Arc<str>> = lock(&recording.0).keys.keys().cloned().collect();
    assert_eq!(keys, ["/registry/k/b".into(), "/registry/k/c".into()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_quorum_and_a_full_quota_fail_writes_until_they_end() {
    let mut cluster = Cluster::start(3, &["--quota-backend-bytes=4000000"]);
    let store = cluster.store("/registry", Env::real()).await;
    (0..2).for_each(|nth| cluster.kill(nth));
    let lost = store.txn(just(put("/registry/k/a", "1"))).await;
    assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
    let Current::WaitFor(newest) = store.current() else { panic!() };
    assert!(newest.await.is_err(), "a read of the newest revision needs the quorum");
    (0..2).for_each(|nth| cluster.run(nth));
    let store = cluster.store("/registry", Env::real()).await;
    let large = "x".repeat(1024 * 1024);
    let mut full = None;
    for number in 0..20 {
        match store.txn(just(put(&format!("/registry/k/{number}"), &large))).await {
            Ok(_) => {}
            Err(error) => {
                full = Some(error);
                break;
            }
        }
    }
    assert_eq!(full, Some(StoreError::OverQuota));
    assert!(store.get("/registry/k/0", None).await.unwrap().is_some(), "reads continue");
}

/// Copies the files of a member that is stopped.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => assert!(fs::copy(entry.path(), to).is_ok()),
        }
    }
}

/// etcd returns with older disks, below and above the revision that two stores have seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_start_again_when_etcd_goes_back_in_time() {
    for more in [0, 40] {
        let mut cluster = Cluster::start(1, &[]);
        let store = cluster.store("/registry", Env::real()).await;
        let kept = write(&store, just(put("/registry/k/kept", "1"))).await;
        write(&store, just(put("/registry/k/changed", "1"))).await;
        cluster.kill(0);
        let (disk, old) = (cluster.folder.path().join("m0"), cluster.folder.path().join("old"));
        copy(&disk, &old);
        cluster.run(0);
        let other = cluster.store("/registry", Env::real()).await;
        let stores = [&store, &other];
        let recordings = [(); 2].map(|()| Arc::new(Recording::default()));
        for (store, recording) in stores.into_iter().zip(&recordings) {
            while store.feed(recording.clone()).await.is_err() {}
        }
        write(&store, just(put("/registry/k/changed", "2"))).await;
        let mut seen = 0;
        for number in 0..9 {
            seen = write(&store, just(put(&format!("/registry/k/gone{number}"), "1"))).await;
        }
        for recording in &recordings {
            recording.until("the last change", |state| state.at == seen).await;
        }
        cluster.kill(0);
        fs::remove_dir_all(&disk).unwrap();
        copy(&old, &disk);
        cluster.run(0);
        // Writes of another program may pass the revision that the stores have seen.
        let foreign = Mapping::new("/registry", 0);
        let client = Client::new(&cluster.config, Env::real()).unwrap();
        for number in 0..more {
            let key = foreign.key(&format!("/registry/k/new{number}")).unwrap();
            let request = messages::PutRequest { key, value: keys::value(&Record::plain(b"{}")).into(), lease: 0 };
            let _: messages::WriteResponse =
                client.call("/etcdserverpb.KV/Put", request, Repeat::Unsent).await.unwrap();
        }
        let expected = 2 + more;
        for (store, recording) in stores.into_iter().zip(&recordings) {
            let again = |state: &RecordingState| state.starts.len() > 1 && state.keys.len() == expected;
            recording.until("a second start", again).await;
            let at = lock(&recording.0).at;
            assert_eq!(store.replaced_histories(), Some(1));
            assert!(at > seen + 1_000_000, "clients' revisions are all in the past: {at}");
            assert!(matches!(store.get("/registry/k/kept", Some(seen)).await, Err(StoreError::Compacted(_))));
            let stale = Compare { key: "/registry/k/kept".into(), modified: kept };
            let stale = Txn { compares: vec![stale], ops: vec![put("/registry/k/kept", "2")] };
            assert!(matches!(store.txn(stale).await.unwrap(), Outcome::Conflict(_)));
        }
        let next = write(&store, just(put("/registry/k/next", "1"))).await;
        for recording in &recordings {
            recording
                .until("the next change at all stores", |state| state.at >= next && state.keys.len() > expected)
                .await;
            assert!(lock(&recording.0).keys.contains_key("/registry/k/next"));
        }
    }
}

/// Without its record a prefix may have lost all objects: nothing is served, so that no pod ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_etcd_is_not_served() {
    let mut cluster = Cluster::start(1, &[]);
    let store = cluster.store("/registry", Env::real()).await;
    let recording = Arc::new(Recording::default());
    store.feed(recording.clone()).await.unwrap();
    let at = write(&store, just(put("/registry/k/a", "1"))).await;
    recording.until("a change", |state| state.at == at).await;
    cluster.kill(0);
    fs::remove_dir_all(cluster.folder.path().join("m0")).unwrap();
    cluster.run(0);
    let (env, mut ended) = (Env::real(), store.cluster.ended.subscribe());
    env.timeout(Duration::from_secs(30), ended.wait_for(|ended| *ended > 0)).await.unwrap().unwrap();
    let Current::WaitFor(newest) = store.current() else { panic!() };
    let refused = newest.await.unwrap_err().to_string();
    assert!(refused.contains("etcd went back in time"), "{refused}");
    assert!(store.txn(just(put("/registry/k/b", "1"))).await.is_err());
    assert_eq!(lock(&recording.0).starts.len(), 1);
}

/// A request of etcd's authentication.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Names {
    #[prost(string, tag = "1")]
    first: String,
    #[prost(string, tag = "2")]
    second: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_authenticated_with_a_password() {
    let mut cluster = Cluster::start(1, &[]);
    let anonymous = cluster.store("/registry", Env::real()).await;
    for (method, first, second) in [
        ("/etcdserverpb.Auth/RoleAdd", "root", ""),
        ("/etcdserverpb.Auth/UserAdd", "root", "p@ss"),
        ("/etcdserverpb.Auth/UserGrantRole", "root", "root"),
        ("/etcdserverpb.Auth/AuthEnable", "", ""),
    ] {
        let request = Names { first: first.into(), second: second.into() };
        let done: Result<messages::WriteResponse, _> =
            anonymous.cluster.client.call(method, request, Repeat::Unsent).await;
        done.unwrap_or_else(|error| panic!("{method}: {error}"));
    }
    let refused = anonymous.txn(just(put("/registry/k/a", "1"))).await.unwrap_err();
    assert!(refused.to_string().contains("etcd"), "{refused}");
    cluster.config.user = Some(("root".into(), "wrong".into()));
    let refused = EtcdStore::open(&cluster.config, Env::real()).await.err().expect("a wrong password");
    assert!(refused.to_string().contains("authentication failed"), "{refused}");
    cluster.config.user = Some(("root".into(), "p@ss".into()));
    let store = cluster.store("/registry", Env::real()).await;
    let recording = Arc::new(Recording::default());
    store.feed(recording.clone()).await.unwrap();
    let first = write(&store, just(put("/registry/k/a", "1"))).await;
    recording.until("a change", |state| state.changes == [first]).await;
    // A member that starts again knows no token of before.
    cluster.kill(0);
    cluster.run(0);
    let (env, key) = (Env::real(), "/registry/k/b");
    while store.get(key, None).await.is_err() {
        env.sleep(Duration::from_millis(50)).await;
    }
    let second = write(&store, just(put(key, "1"))).await;
    recording.until("the next change", |state| state.changes == [first, second]).await;
    // A dead member doesn't keep the user from another one, whichever comes first.
    cluster.config.endpoints.insert(0, "https://127.0.0.1:1".into());
    for _ in 0..8 {
        EtcdStore::open(&cluster.config, Env::real()).await.unwrap();
    }
}

/// Sets a key of etcd to a value, as another program would.
async fn set(store: &EtcdStore, key: &str, value: Vec<u8>) {
    let request = messages::PutRequest { key: key.as_bytes().into(), value: value.into(), lease: 0 };
    let done: messages::WriteResponse =
        store.cluster.client.call("/etcdserverpb.KV/Put", request, Repeat::Unsent).await.unwrap();
    assert_eq!(done, messages::WriteResponse {});
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_restored_at_higher_revisions_into_either_store() {
    let cluster = Cluster::start(1, &[]);
    let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
    let at = |prefix: &str| EtcdConfig { prefix: prefix.into(), ..cluster.config.clone() };
    let store = cluster.store("/registry", env.clone()).await;
    // More than one transaction by count and by size, and a key that expires.
    for number in 0..300 {
        write(&store, just(put(&format!("/registry/k/{number:03}"), &format!("{number}")))).await;
    }
    for number in 0..3 {
        write(&store, just(put(&format!("/registry/large/{number}"), &"x".repeat(1_500_000)))).await;
    }
    let ttl = Some(Duration::from_secs(100));
    write(&store, just(Op::Put { key: "/registry/events/a".into(), record: Record::plain(b"{}"), ttl })).await;
    write(&store, just(Op::Delete { key: "/registry/k/007".into() })).await;
    let everything = async |store: &dyn Store| {
        let entries = store.range("/", &prefix_end("/"), None, 0).await.unwrap().entries;
        let bodies = entries.into_iter().map(|entry| (entry.key.to_string(), entry.record.body().to_vec()));
        bodies.collect::<Vec<_>>()
    };
    let before = everything(&store).await;
    let file = folder.path().join("a");
    write(&store, just(put("/registry/live/a", "1"))).await;
    let saved = backup::backup(&at("/registry"), &env, &file, None, "/registry/live/").await.unwrap();
    let old = saved.revision;
    assert_eq!(saved.keys, 303);

    let restored = backup::restore(&at("/two"), &env, &file, None).await.unwrap();
    assert_eq!(restored.keys, 303);
    assert!(restored.revision > old + 1_000_000);
    let two = cluster.store("/two", env.clone()).await;
    assert_eq!(everything(&two).await, before);
    for revision in [1, old] {
        assert!(matches!(two.get("/registry/k/000", Some(revision)).await, Err(StoreError::Compacted(_))));
        assert!(matches!(two.watch("/registry/k/", revision).await, Err(StoreError::Compacted(_))));
    }
    let stale = Compare { key: "/registry/k/000".into(), modified: old };
    let op = put("/registry/k/000", "stale");
    let Outcome::Conflict(seen) = two.txn(Txn { compares: vec![stale], ops: vec![op.clone()] }).await.unwrap() else {
        panic!()
    };
    let current = seen[0].as_ref().unwrap().modified;
    assert!(current > old && current <= restored.revision, "{current}");
    let next = write(&two, contract::when("/registry/k/000", current, op)).await;
    assert!(next > restored.revision);
    assert_eq!(two.get("/registry/k/000", Some(next)).await.unwrap().unwrap().modified, next);
    let expiring = RangeRequest { key: b"/two/events/a".into(), ..RangeRequest::default() };
    assert_ne!(two.cluster.range_in(&two.cluster.era(), expiring).await.unwrap().kvs[0].lease, 0, "it expires");
    let taken = backup::restore(&at("/two"), &env, &file, None).await.unwrap_err();
    assert!(taken.to_string().contains("etcd has keys below /two"), "{taken}");
    assert_eq!(everything(&two).await.len(), 303);

    // From etcd to a folder and back: revisions rise again.
    let (again, local) = (folder.path().join("b"), folder.path().join("store"));
    let saved = backup::backup(&at("/two"), &env, &again, None, "/none/").await.unwrap();
    assert_eq!(saved.revision, next);
    super::super::embedded::backup::restore(&again, &local, None).unwrap();
    let third = folder.path().join("c");
    super::super::embedded::backup::backup(&local, &third, None).unwrap();
    let restored = backup::restore(&at("/three"), &env, &third, None).await.unwrap();
    assert!(restored.revision > next + 1_000_000);
    assert_eq!(everything(&cluster.store("/three", env.clone()).await).await.len(), 303);
    let none = backup::backup(&at("/none"), &env, &folder.path().join("d"), None, "/none/").await.unwrap_err();
    assert!(none.to_string().contains("no keys below /none"), "{none}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_restore_and_a_newer_format_stop_a_start() {
    let cluster = Cluster::start(1, &[]);
    let store = cluster.store("/registry", Env::real()).await;
    write(&store, just(put("/registry/k/a", "1"))).await;
    let open = async || EtcdStore::open(&cluster.config, Env::real()).await.err().map(|error| error.to_string());
    assert_eq!(open().await, None);
    set(&store, "/registry", br#"{"format": 2, "later": true}"#.to_vec()).await;
    assert!(open().await.is_some_and(|why| why.contains("says format 2, this program reads up to 1")));
    set(&store, "/registry", format::StoreRecord::restoring(5).value()).await;
    let why = open().await.unwrap();
    assert!(why.contains("a restore has not ended"), "{why}");
    let folder = tempfile::tempdir().unwrap();
    let refused =
        backup::backup(&cluster.config, &Env::real(), &folder.path().join("a"), None, "/none/").await.unwrap_err();
    assert_eq!(refused.to_string(), why);
}
