//! Providers that respond, hang, write too much or fail: each is the system's shell under another name.
#![cfg(unix)]

use std::path::Path;

use machinery_env::child_process::cluster_variables;
use tokio::io::AsyncReadExt as _;

use super::super::account::Account;
use super::*;

const ANSWER: &str = r#"read request
echo "$request" >> "$OUT"
printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","cacheDuration":"%s","auth":{"a.io":{"username":"u","password":"hidden"},"a.io/x":{"username":"x","password":"hidden"}}}' "$HELD"
"#;
const BOUNDS: CallLimits = CallLimits { time: Duration::from_secs(30), bytes: 1 << 16 };

/// Creates a provider for each script, named by its number.
fn providers(dir: &Path, scripts: &[&str], held: &str, bounds: CallLimits) -> Providers {
    with_tokens(dir, scripts, held, bounds, &serde_json::Value::Null)
}

/// Like `providers`, with `tokenAttributes`.
fn with_tokens(
    dir: &Path,
    scripts: &[&str],
    held: &str,
    bounds: CallLimits,
    attributes: &serde_json::Value,
) -> Providers {
    let list: Vec<String> = (0..scripts.len())
        .map(|n| {
            std::os::unix::fs::symlink("/bin/sh", dir.join(n.to_string())).unwrap();
            serde_json::json!({
                "name": n.to_string(), "matchImages": ["a.io"], "defaultCacheDuration": "0s",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": ["-c", scripts[n]],
                "tokenAttributes": attributes, "env": [{"name": "OUT", "value": dir.join("out")}, {"name": "HELD", "value": held}],
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
async fn a_provider_is_called_once_while_its_response_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &[ANSWER], "1h", BOUNDS);
    let first = join_all((0..8).map(|_| providers.credentials("a.io/x", "n", None))).await;
    let names = |found: &[TrackedCredential]| -> Vec<String> {
        found.iter().map(|tracked| tracked.credential.username.clone()).collect()
    };
    assert!(first.iter().all(|found| names(found) == ["x", "u"]), "{first:?}");
    assert!(first[0].iter().all(|tracked| tracked.secret.is_none()), "they are the node's");
    assert_eq!(names(&providers.credentials("a.io/y", "n", None).await), ["u"]);
    assert!(providers.credentials("b.io/x", "n", None).await.is_empty());
    let requests = lines(dir.path());
    assert_eq!(requests.len(), 1, "one call for all: {requests:?}");
    let request: serde_json::Value = serde_json::from_str(&requests[0]).unwrap();
    assert_eq!((&request["kind"], &request["image"]), (&"CredentialProviderRequest".into(), &"a.io/x".into()));
}

/// The attacker reads the logs of a provider, which may print its environment. No test can change the environment of its own
/// process, so the test starts itself again with these variables.
#[tokio::test]
async fn a_provider_gets_no_variable_of_the_cluster() {
    const NAME: &str = "providers::tests::a_provider_gets_no_variable_of_the_cluster";
    if cluster_variables().is_empty() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", NAME]).env("CORACLE_TOKEN", "secret").env("KUBECONFIG", "/secret").env("OTHER", "1");
        let output = again.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &["env > \"$OUT\""], "1h", BOUNDS);
    providers.credentials("a.io/x", "n", None).await;
    let got = lines(dir.path());
    assert!(["OTHER=1", "HELD=1h"].iter().all(|wanted| got.iter().any(|line| line == wanted)), "{got:?}");
    assert!(!got.iter().any(|line| line.starts_with("CORACLE_") || line.starts_with("KUBECONFIG")), "{got:?}");
}

#[tokio::test]
async fn an_uncached_response_serves_its_waiters() {
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &[ANSWER], "0s", BOUNDS);
    let all = join_all((0..8).map(|_| providers.credentials("a.io/x", "n", None))).await;
    assert!(all.iter().all(|found| found.len() == 2));
    assert_eq!(lines(dir.path()).len(), 1);
    providers.credentials("a.io/x", "n", None).await;
    assert_eq!(lines(dir.path()).len(), 2, "asked again");
    assert_eq!(providers.all[0].calls.lock().unwrap().len(), 1, "calls that are over are forgotten");
}

#[tokio::test]
async fn a_failing_provider_gives_nothing_and_blocks_no_pull() {
    for broken in ["echo garbage", "echo why >&2; exit 3", "cat /dev/zero", "cat /dev/zero >&2", ":", "kill -9 $$"] {
        let dir = tempfile::tempdir().unwrap();
        let providers = providers(dir.path(), &[broken, ANSWER], "1h", BOUNDS);
        assert_eq!(providers.credentials("a.io/x", "n", None).await.len(), 2, "{broken}");
        assert!(providers.all[0].run("a.io/x", None).await.is_err(), "{broken}");
        let figures = providers.metrics();
        let failed = u64::from(!matches!(broken, "echo garbage" | ":"));
        let reported: Vec<_> =
            figures.calls.iter().map(|(name, calls, errors)| (&name[..], calls.count(), *errors)).collect();
        // An invalid response is not a failed call, as upstream counts.
        assert_eq!(reported, [("0", 2, 2 * failed), ("1", 1, 0)], "{broken}");
        assert!(figures.config_hash.is_some_and(|hash| hash.starts_with("sha256:")));
    }
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &["echo why >&2; exit 3"], "1h", BOUNDS);
    std::fs::remove_file(dir.path().join("0")).unwrap();
    assert!(matches!(providers.all[0].run("a.io/x", None).await, Err(ProviderError::Run(RunError::Io(_)))));
}

#[tokio::test]
async fn a_hanging_provider_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let short = CallLimits { time: Duration::from_millis(100), ..BOUNDS };
    let hanging = providers(dir.path(), &["sleep 600"], "1h", short);
    let error = hanging.all[0].run("a.io/x", None).await.unwrap_err();
    assert!(matches!(error, ProviderError::Run(RunError::Time(_))), "{error}");
    // The shell's child holds a pipe open as long as it lives.
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
        given = starting.credentials("a.io/x", "n", None) => panic!("{given:?}"),
        file = opened => file,
    };
    // The call was dropped.
    let ended = Env::real().timeout(Duration::from_secs(60), file.read_to_end(&mut Vec::new())).await;
    assert_eq!(ended.expect("what it started lives").unwrap(), 0);
}

/// A pod with a fixed ServiceAccount.
struct FixedAccount {
    account: Account,
    token: &'static str,
}

#[async_trait::async_trait]
impl PodAccount for FixedAccount {
    async fn account(&self) -> Result<Account, String> {
        if self.token.is_empty() { Err("not there".into()) } else { Ok(self.account.clone()) }
    }

    async fn token(&self, audience: &str, account: &AccountIdentity) -> Result<String, String> {
        assert_eq!((audience, account), ("registry.test", &self.account.identity));
        Ok(self.token.to_owned())
    }
}

fn played(namespace: &str, uid: &str, token: &'static str, annotations: &[(&str, &str)]) -> FixedAccount {
    let identity = AccountIdentity { namespace: namespace.into(), name: "robot".into(), uid: uid.into() };
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    FixedAccount { account: Account { identity, annotations }, token }
}

fn attributes(cache_type: &str, require: bool, required: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "serviceAccountTokenAudience": "registry.test", "cacheType": cache_type, "requireServiceAccount": require,
        "requiredServiceAccountAnnotationKeys": required, "optionalServiceAccountAnnotationKeys": ["a.io/more"],
    })
}

#[tokio::test]
async fn credentials_of_a_service_account_are_for_that_account() {
    for (cache_type, for_another_token) in [("ServiceAccount", 0), ("Token", 1)] {
        let dir = tempfile::tempdir().unwrap();
        let providers = with_tokens(dir.path(), &[ANSWER], "1h", BOUNDS, &attributes(cache_type, true, &["a.io/role"]));
        assert!(providers.uses_service_account("a.io/x") && !providers.uses_service_account("b.io/x"));
        let role = [("a.io/role", "r"), ("a.io/other", "hidden-annotation")];
        let counts = async |pod: &FixedAccount| {
            let before = lines(dir.path()).len();
            let found = providers.credentials("a.io/x", &pod.account.identity.namespace, Some(pod)).await;
            let own = Some(pod.account.identity.clone());
            assert!(found.iter().all(|tracked| tracked.account == own && tracked.secret.is_none()), "{found:?}");
            (found.len(), lines(dir.path()).len() - before)
        };
        let first = played("n", "1", "token-one", &role);
        assert_eq!(counts(&first).await, (2, 1));
        assert_eq!(counts(&first).await, (2, 0), "it holds");
        assert_eq!(counts(&played("n", "1", "token-two", &role)).await, (2, for_another_token), "{cache_type}");
        let more = [role[0], ("a.io/more", "m")];
        for other in [
            played("n", "2", "token-one", &role),
            played("m", "1", "token-one", &role),
            played("n", "1", "token-one", &[("a.io/role", "another")]),
            played("n", "1", "token-one", &more),
        ] {
            assert_eq!(counts(&other).await, (2, 1), "{:?}", other.account);
        }
        let request: serde_json::Value = serde_json::from_str(lines(dir.path()).last().unwrap()).unwrap();
        assert_eq!(request["serviceAccountToken"], "token-one");
        assert_eq!(request["serviceAccountAnnotations"], serde_json::json!({"a.io/role": "r", "a.io/more": "m"}));
        // Pods that didn't opt in, have no ServiceAccount, or an unavailable one.
        assert_eq!(counts(&played("n", "1", "token-one", &[])).await, (0, 0));
        assert_eq!(counts(&played("n", "1", "", &role)).await, (0, 0));
        assert!(providers.credentials("a.io/x", "n", None).await.is_empty());
        assert!(
            !format!("{:?}", providers.all[0].calls.lock().unwrap().keys()).contains("token-"),
            "no token is shown"
        );
    }
}

#[tokio::test]
async fn a_provider_may_do_without_a_service_account_and_not_with_the_token_itself() {
    let dir = tempfile::tempdir().unwrap();
    let plain = with_tokens(dir.path(), &[ANSWER], "1h", BOUNDS, &attributes("Token", false, &[]));
    let found = plain.credentials("a.io/x", "n", None).await;
    assert!(found.len() == 2 && found.iter().all(|tracked| tracked.account.is_none()));
    let request: serde_json::Value = serde_json::from_str(&lines(dir.path())[0]).unwrap();
    assert!(request.get("serviceAccountToken").is_none() && request.get("serviceAccountAnnotations").is_none());
    // A token in stderr is redacted.
    let dir = tempfile::tempdir().unwrap();
    let telling = with_tokens(dir.path(), &["cat >&2; exit 3"], "1h", BOUNDS, &attributes("Token", true, &[]));
    let pod = played("n", "1", "token-one", &[]);
    let request_account = telling.all[0].config.token.as_ref().unwrap().call_mode(Some(&pod)).await;
    let Ok(CallMode::WithAccount(request_account)) = request_account else { panic!("it is not asked") };
    let error = telling.all[0].run("a.io/x", Some(&request_account)).await.unwrap_err().to_string();
    assert!(error.contains("serviceAccountToken") && !error.contains("token-one"), "{error}");
    // The script's password.
    for (cache_type, given) in [("ServiceAccount", 0), ("Token", 2)] {
        let dir = tempfile::tempdir().unwrap();
        let echoing = with_tokens(dir.path(), &[ANSWER], "1h", BOUNDS, &attributes(cache_type, true, &[]));
        let pod = played("n", "1", "hidden", &[]);
        assert_eq!(echoing.credentials("a.io/x", "n", Some(&pod)).await.len(), given, "{cache_type}");
    }
}
