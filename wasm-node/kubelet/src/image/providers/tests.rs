//! Providers that answer, hang, talk too much or fail: each is the system's shell under another name.
#![cfg(unix)]

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::*;

const ANSWER: &str = r#"read request
echo "$request" >> "$OUT"
printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","cacheDuration":"%s","auth":{"a.io":{"username":"u","password":"hidden"},"a.io/x":{"username":"x","password":"hidden"}}}' "$HELD"
"#;
const BOUNDS: Bounds = Bounds { time: Duration::from_secs(30), bytes: 1 << 16 };

/// A provider of each script, by its number.
fn providers(dir: &Path, scripts: &[&str], held: &str, bounds: Bounds) -> Providers {
    let list: Vec<String> = (0..scripts.len())
        .map(|n| {
            std::os::unix::fs::symlink("/bin/sh", dir.join(n.to_string())).unwrap();
            serde_json::json!({
                "name": n.to_string(), "matchImages": ["a.io"], "defaultCacheDuration": "0s",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": ["-c", scripts[n]],
                "env": [{"name": "OUT", "value": dir.join("out")}, {"name": "HELD", "value": held}],
            })
            .to_string()
        })
        .collect();
    let config = format!(
        r#"{{"kind":"CredentialProviderConfig","apiVersion":"kubelet.config.k8s.io/v1","providers":[{}]}}"#,
        list.join(",")
    );
    std::fs::write(dir.join("config.json"), config).unwrap();
    let configs = CredentialProviders::read(&dir.join("config.json"), dir).unwrap();
    Providers::bounded(configs, &Env::real(), bounds)
}

fn lines(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("out")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_provider_is_asked_once_for_what_its_answer_holds_for() {
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &[ANSWER], "1h", BOUNDS);
    let first = join_all((0..8).map(|_| providers.credentials("a.io/x", "n"))).await;
    let names = |found: &[TrackedCredential]| -> Vec<String> {
        found.iter().map(|tracked| tracked.credential.username.clone()).collect()
    };
    assert!(first.iter().all(|found| names(found) == ["x", "u"]), "{first:?}");
    assert!(first[0].iter().all(|tracked| tracked.secret.is_none()), "they are the node's");
    assert_eq!(names(&providers.credentials("a.io/y", "n").await), ["u"]);
    assert!(providers.credentials("b.io/x", "n").await.is_empty());
    let asked = lines(dir.path());
    assert_eq!(asked.len(), 1, "one call for all: {asked:?}");
    let request: serde_json::Value = serde_json::from_str(&asked[0]).unwrap();
    assert_eq!((&request["kind"], &request["image"]), (&"CredentialProviderRequest".into(), &"a.io/x".into()));
}

#[tokio::test]
async fn an_answer_that_is_not_kept_serves_those_who_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &[ANSWER], "0s", BOUNDS);
    let all = join_all((0..8).map(|_| providers.credentials("a.io/x", "n"))).await;
    assert!(all.iter().all(|found| found.len() == 2));
    assert_eq!(lines(dir.path()).len(), 1);
    providers.credentials("a.io/x", "n").await;
    assert_eq!(lines(dir.path()).len(), 2, "asked again");
    assert_eq!(providers.all[0].calls.lock().unwrap().len(), 1, "calls that are over are forgotten");
}

#[tokio::test]
async fn who_fails_gives_nothing_and_keeps_nobody() {
    for broken in ["echo garbage", "echo why >&2; exit 3", "cat /dev/zero", "cat /dev/zero >&2", ":", "kill -9 $$"] {
        let dir = tempfile::tempdir().unwrap();
        let providers = providers(dir.path(), &[broken, ANSWER], "1h", BOUNDS);
        assert_eq!(providers.credentials("a.io/x", "n").await.len(), 2, "{broken}");
        assert!(providers.all[0].run("a.io/x").await.is_err(), "{broken}");
    }
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &["echo why >&2; exit 3"], "1h", BOUNDS);
    std::fs::remove_file(dir.path().join("0")).unwrap();
    assert!(matches!(providers.all[0].run("a.io/x").await, Err(ProviderError::Run(RunError::Io(_)))));
}

#[tokio::test]
async fn who_hangs_is_killed_with_all_that_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let short = Bounds { time: Duration::from_millis(100), ..BOUNDS };
    let hanging = providers(dir.path(), &["sleep 600"], "1h", short);
    let error = hanging.all[0].run("a.io/x").await.unwrap_err();
    assert!(matches!(error, ProviderError::Run(RunError::Time(_))), "{error}");
    // As long as the shell's child lives, it holds a pipe open.
    let script = "mkfifo \"$OUT\"; (exec 3> \"$OUT\"; echo >&3; sleep 600) & wait";
    let dir = tempfile::tempdir().unwrap();
    let starting = providers(dir.path(), &[script], "1h", BOUNDS);
    let pipe = dir.path().join("out");
    let opened = async {
        while !pipe.exists() {
            tokio::task::yield_now().await;
        }
        let mut file = tokio::fs::File::open(&pipe).await.unwrap();
        file.read_u8().await.unwrap();
        file
    };
    let mut file = tokio::select! {
        given = starting.credentials("a.io/x", "n") => panic!("{given:?}"),
        file = opened => file,
    };
    // Nobody waits for it any more.
    let ended = tokio::time::timeout(Duration::from_secs(60), file.read_to_end(&mut Vec::new())).await;
    assert_eq!(ended.expect("what it started lives").unwrap(), 0);
}
