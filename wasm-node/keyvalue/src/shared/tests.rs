//! Against a real server: what it may do to a node, and what other clients may do to its data.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use redis::Commands as _;
use runtime_api::keyvalue::{KeyvalueStore as _, VALUE_BYTES_MAX, Write, Written};
use rustix::process::Signal;

use super::server::{Server, port, stores};
use super::*;
use crate::QUOTA;
use crate::contract::owned;

async fn set(store: &SharedStore, key: &str, value: &[u8]) -> Result<Written, StoreError> {
    store.write(Write::Set { bucket: "default".into(), pairs: vec![(key.into(), value.into())] }).await
}

async fn add(store: &SharedStore) -> Result<Written, StoreError> {
    store.write(Write::Increment { bucket: "default".into(), key: "n".into(), delta: 1 }).await
}

/// Repeats a call until it succeeds, within 20 s.
async fn eventually(store: &SharedStore) -> Written {
    let env = Env::real();
    let tries = async {
        loop {
            match add(store).await {
                Ok(written) => return written,
                Err(StoreError::NotAnswering) => env.sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    env.timeout(Duration::from_secs(20), tries).await.expect("the store answers again")
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_soon_without_a_server_and_work_when_it_returns() {
    let mut server = Server::start(&[]);
    let all = stores(&server.url(), QUOTA);
    let store = all.of(&owned("a", "1")).unwrap();
    assert_eq!(add(&store).await, Ok(Written::Number(1)));
    server.kill();
    let env = Env::real();
    let began = env.elapsed();
    let mut failed = 0;
    while failed < 20 {
        failed += u32::from(add(&store).await == Err(StoreError::NotAnswering));
    }
    assert!(env.elapsed() - began < connection::CONNECT_TIMEOUT * 2, "{:?}", env.elapsed() - began);
    server.restart(&[]);
    assert_eq!(eventually(&store).await, Written::Number(1), "an empty server has started again");
    // A call at once after a restart finds the connection lost or works: it does not stay broken.
    server.restart(&[]);
    eventually(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_given_up_and_taken_up_again() {
    let server = Server::start(&[]);
    let all = stores(&server.url(), QUOTA);
    let store = all.of(&owned("a", "1")).unwrap();
    add(&store).await.unwrap();
    server.signal(Signal::STOP);
    let env = Env::real();
    let began = env.elapsed();
    let calls = (0..CONTAINER_CALLS_MAX * 3).map(|_| add(&store));
    let results = futures::future::join_all(calls).await;
    assert!(results.iter().all(Result::is_err), "{results:?}");
    let bound = TURN_TIMEOUT + connection::CONNECT_TIMEOUT + connection::ANSWER_TIMEOUT + Duration::from_secs(2);
    assert!(env.elapsed() - began < bound, "{:?}", env.elapsed() - began);
    // Ended callers hold nothing for long.
    drop(Box::pin(add(&store)));
    server.signal(Signal::CONT);
    eventually(&store).await;
    let all_units = IN_FLIGHT_BYTES_MAX / IN_FLIGHT_UNIT_BYTES;
    let all_free = async {
        while all.in_flight.available_permits() < all_units {
            env.sleep(Duration::from_millis(5)).await;
        }
    };
    env.timeout(Duration::from_secs(20), all_free).await.expect("every turn is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_speaks_or_talks_nonsense_is_no_store() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://:hunter2@{}/3", listener.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let answers: [&[u8]; 5] = [
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"-ERR hunter2\r\n-ERR x\r\n",
            b"*999999999\r\n",
            b"$9999999999\r\nx",
            b"",
        ];
        for nth in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answers[nth % answers.len()];
            tokio::spawn(async move {
                let _ = stream.write_all(answer).await;
                let mut sink = [0; 1024];
                while stream.read(&mut sink).await.is_ok_and(|bytes| bytes > 0) {}
            });
        }
    });
    let all = stores(&url, QUOTA);
    let store = all.of(&owned("a", "1")).unwrap();
    for _ in 0..3 {
        assert_eq!(add(&store).await, Err(StoreError::NotAnswering));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_other_clients_is_an_error_and_not_read() {
    let server = Server::start(&[]);
    let all = stores(&server.url(), QUOTA);
    let store = all.of(&owned("a", "1")).unwrap();
    set(&store, "k", b"1").await.unwrap();
    let mut client = server.client();
    let key = |kind: &str| format!("coracle:{{cluster-1}}:1:{kind}");
    let large = vec![b'7'; VALUE_BYTES_MAX * 8];
    client.hset::<_, _, _, ()>(key("values"), "default\0large", &large).unwrap();
    for (name, value) in [("short", "1"), ("odd", "no-revision-here value")] {
        client.hset::<_, _, _, ()>(key("values"), format!("default\0{name}"), value).unwrap();
    }
    for name in ["large", "short", "odd"] {
        assert_eq!(store.get("default", name).await, Err(StoreError::Foreign), "{name}");
    }
    assert_eq!(store.get_many("default", &["k".into(), "large".into()]).await, Err(StoreError::BatchTooLarge));
    let swap = Write::Swap { bucket: "default".into(), key: "large".into(), seen: None, value: vec![] };
    assert_eq!(store.write(swap).await, Err(StoreError::Foreign));
    set(&store, "large", b"2").await.unwrap();
    assert_eq!(store.get("default", "large").await.unwrap().unwrap().bytes, b"2", "it may be replaced");
    client.zadd::<_, _, _, ()>(key("names"), [b"default\0".to_vec(), large].concat(), 0).unwrap();
    assert_eq!(store.list("default", None).await, Err(StoreError::Foreign));
    client.zadd::<_, _, _, ()>(key("names"), b"other\0\xff", 0).unwrap();
    assert_eq!(store.list("other", None).await, Err(StoreError::Foreign));
    for kind in ["values", "names", "usage"] {
        client.del::<_, ()>(key(kind)).unwrap();
        client.set::<_, _, ()>(key(kind), "text").unwrap();
        assert_eq!(set(&store, "k", b"3").await, Err(StoreError::Foreign), "{kind}");
        assert_eq!(client.get::<_, String>(key(kind)).unwrap(), "text", "nothing was written");
        client.del::<_, ()>(key(kind)).unwrap();
    }
    client.hset::<_, _, _, ()>(key("usage"), "bytes", "many").unwrap();
    assert_eq!(set(&store, "k", b"3").await, Err(StoreError::Foreign));
    client.del::<_, ()>(key("usage")).unwrap();
    // The server forgets the scripts.
    redis::cmd("SCRIPT").arg("FLUSH").query::<()>(&mut client).unwrap();
    set(&store, "k", b"3").await.unwrap();
    assert_eq!(store.get("default", "k").await.unwrap().unwrap().bytes, b"3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_growth_and_takes_deletions() {
    let server = Server::start(&[]);
    let all = stores(&server.url(), QUOTA);
    let store = all.of(&owned("a", "1")).unwrap();
    set(&store, "k", &vec![7; VALUE_BYTES_MAX]).await.unwrap();
    let mut client = server.client();
    let mut limit = |bytes: &str| {
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).query::<()>(&mut client).unwrap();
    };
    limit("1mb");
    assert_eq!(set(&store, "j", b"1").await, Err(StoreError::SharedFull));
    assert_eq!(add(&store).await, Err(StoreError::SharedFull));
    assert_eq!(store.exists("default", "k").await, Ok(true));
    let delete = Write::Delete { bucket: "default".into(), keys: vec!["k".into()] };
    assert_eq!(store.write(delete).await, Ok(Written::Done));
    limit("100mb");
    assert_eq!(add(&store).await, Ok(Written::Number(1)));
    assert_eq!(store.list("default", None).await.unwrap().keys, ["n"]);
    // A replica takes no writes: another server may be behind the name.
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg("1").query::<()>(&mut client).unwrap();
    assert_eq!(add(&store).await, Err(StoreError::SharedRefused("READONLY".into())));
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").query::<()>(&mut client).unwrap();
    eventually(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_share_a_server_and_nothing_else() {
    let server = Server::start(&[]);
    let (all, others) = (stores(&server.url(), QUOTA), stores(&server.url(), QUOTA));
    let theirs = KeyvalueOwner { cluster: Some("cluster-2".into()), ..owned("a", "1") };
    let (ours, their) = (all.of(&owned("a", "1")).unwrap(), others.of(&theirs).unwrap());
    set(&ours, "k", b"1").await.unwrap();
    set(&their, "k", b"2").await.unwrap();
    set(&all.of(&owned("b", "2")).unwrap(), "k", b"3").await.unwrap();
    let mut client = server.client();
    client.set::<_, _, ()>("coracle:other", "4").unwrap();
    client
        .sadd::<_, _, ()>("coracle:{cluster-1}:namespaces", vec!["x".repeat(200), "no-dot".into(), "../a.1".into()])
        .unwrap();
    let mut found = all.owners("cluster-1").await.unwrap();
    found.sort();
    assert_eq!(found, [owned("a", "1"), owned("b", "2")]);
    assert_eq!(others.owners("cluster-1").await, Ok(vec![]), "it is another node's turn");
    assert_eq!(others.owners("cluster-2").await, Ok(vec![theirs]));
    for _ in 0..2 {
        all.remove(&owned("a", "1")).await.unwrap();
    }
    assert_eq!(ours.get("default", "k").await, Err(StoreError::Removed));
    assert_eq!(their.get("default", "k").await.unwrap().unwrap().bytes, b"2");
    let mut left: Vec<String> = client.keys("*").unwrap();
    left.sort();
    let tombstone = "coracle:{cluster-1}:1:removed";
    assert!(left.iter().filter(|key| key.starts_with("coracle:{cluster-1}:1:")).eq([tombstone]), "{left:?}");
    let expires: i64 = client.ttl(tombstone).unwrap();
    assert!((3500..=3600).contains(&expires), "{expires}");
    assert_eq!(client.get::<_, String>("coracle:other").unwrap(), "4");
    for wrong in [None, Some(""), Some("a b"), Some("{}")] {
        let owner = KeyvalueOwner { cluster: wrong.map(Into::into), ..owned("a", "1") };
        assert!(all.of(&owner).is_err(), "{owner:?}");
        assert_eq!(all.remove(&owner).await, Err(StoreError::NoCluster));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_read_again_and_databases_are_apart() {
    let server = Server::start(&["--requirepass", "one"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let files = SharedStoreFiles { password: Some(file.clone()), ..SharedStoreFiles::default() };
    let config = SharedStoreConfig::new(&format!("{}/2", server.url()), files).unwrap();
    let all = SharedStores::new(config, QUOTA, &Env::real(), &Handle::current());
    let store = all.of(&owned("a", "1")).unwrap();
    assert_eq!(add(&store).await, Err(StoreError::NotAnswering));
    std::fs::write(&file, "one\n").unwrap();
    assert_eq!(eventually(&store).await, Written::Number(1));
    let with_user = stores(&format!("redis://default:one@127.0.0.1:{}/3", server.port), QUOTA);
    assert_eq!(add(&with_user.of(&owned("a", "1")).unwrap()).await, Ok(Written::Number(1)), "another database");
}

/// The user of docs/shared-stores.md has the rights for every script.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_user_has_the_needed_rights() {
    let server = Server::start(&[]);
    let rights = "SETUSER coracle on >one ~coracle:* +@connection +@scripting +@hash +@sortedset +@set +@string +exists +unlink +info";
    let mut command = redis::cmd("ACL");
    rights.split(' ').for_each(|word| {
        command.arg(word);
    });
    command.query::<()>(&mut server.client()).unwrap();
    let all = stores(&format!("redis://coracle:one@127.0.0.1:{}/1", server.port), QUOTA);
    let store = all.of(&owned("a", "1")).unwrap();
    set(&store, "k", b"1").await.unwrap();
    assert_eq!(add(&store).await, Ok(Written::Number(1)));
    assert_eq!(store.list("default", None).await.unwrap().keys, ["k", "n"]);
    assert_eq!(store.get_many("default", &["k".into()]).await, Ok(vec![Some(b"1".to_vec())]));
    store.write(Write::Delete { bucket: "default".into(), keys: vec!["k".into()] }).await.unwrap();
    assert_eq!(store.exists("default", "k").await, Ok(false));
    assert_eq!(all.owners("cluster-1").await, Ok(vec![owned("a", "1")]));
    all.remove(&owned("a", "1")).await.unwrap();
    let elsewhere = KeyvalueOwner { cluster: Some("cluster-2".into()), ..owned("a", "1") };
    assert_eq!(add(&all.of(&elsewhere).unwrap()).await, Ok(Written::Number(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_checks_the_server_and_shows_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "server");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &authority).unwrap();
    let file = |name: &str, pem: String| {
        std::fs::write(folder.path().join(name), pem).unwrap();
        folder.path().join(name).display().to_string()
    };
    let (ca_file, cert_file) = (file("ca", authority.pem()), file("cert", cert.pem()));
    let (key_file, tls_port) = (file("key", key.serialize_pem()), port().to_string());
    let _server = Server::start(&[
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        &cert_file,
        "--tls-key-file",
        &key_file,
        "--tls-ca-cert-file",
        &ca_file,
    ]);
    let of = |ca_pem: Option<String>, with_identity: bool| {
        let files = SharedStoreFiles {
            password: None,
            ca_pem: ca_pem.map(String::into_bytes),
            identity_pem: with_identity.then(|| (cert.pem().into(), key.serialize_pem().into())),
        };
        let config = SharedStoreConfig::new(&format!("rediss://127.0.0.1:{tls_port}"), files).unwrap();
        SharedStores::new(config, QUOTA, &Env::real(), &Handle::current()).of(&owned("a", "1")).unwrap()
    };
    eventually(&of(Some(authority.pem()), true)).await;
    let other = CertifiedIssuer::self_signed(CertificateParams::default(), KeyPair::generate().unwrap()).unwrap();
    for (store, what) in [
        (of(Some(other.pem()), true), "another authority"),
        (of(None, true), "public authorities"),
        (of(Some(authority.pem()), false), "no client certificate"),
    ] {
        assert_eq!(add(&store).await, Err(StoreError::NotAnswering), "{what}");
    }
}
