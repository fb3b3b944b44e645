//! Reloads the image configuration files of a process, once for all its agents. An invalid file changes nothing, and is
//! reported once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use images::{Images, Registries, SignaturePolicy};
use tokio_util::sync::CancellationToken;

use super::{NodeWarning, SharedNodeParts};

/// The poll interval of a file and of the files that it names.
const INTERVAL: Duration = Duration::from_secs(2);

/// The result of a poll.
#[derive(Debug, PartialEq, Eq)]
enum Reload<T> {
    /// The content is unchanged.
    Unchanged,
    /// The content has changed, or is valid again.
    Changed(T),
    /// The file is invalid; with the error, unless it was already reported.
    Invalid(Option<String>),
}

/// Compares a reading with the current value and the last reported error. Pure.
fn evaluate<T: PartialEq>(now: &T, read: Result<T, String>, reported_error: &mut Option<String>) -> Reload<T> {
    match read {
        Ok(found) => {
            let was_invalid = reported_error.take().is_some();
            if found == *now && !was_invalid { Reload::Unchanged } else { Reload::Changed(found) }
        }
        Err(why) if reported_error.as_ref() == Some(&why) => Reload::Invalid(None),
        Err(why) => {
            *reported_error = Some(why.clone());
            Reload::Invalid(Some(why))
        }
    }
}

/// Parses a file; the error is the text for the log.
type Read<T> = dyn Fn(&Path) -> Result<T, String> + Send + Sync;

/// A configuration file and its accessors in the image store.
struct ReloadedFile<T> {
    path: PathBuf,
    /// The file's name in messages, and the event reason for an invalid file.
    what: &'static str,
    reason: &'static str,
    read: Box<Read<T>>,
    now: fn(&Images) -> T,
    configure: fn(&Images, T),
}

/// Reloads the registries' configuration until `stop`. `proxies` are the hosts of the environment's proxies.
pub async fn reload_registries(parts: SharedNodeParts, path: PathBuf, proxies: Vec<String>, stop: CancellationToken) {
    let read = move |path: &Path| match Registries::read(path) {
        Ok(registries) => Ok(registries.with_proxies(proxies.clone())),
        Err(error) => Err(error.to_string()),
    };
    let (what, reason) = ("file of registries", "InvalidRegistriesFile");
    let (now, configure) = (Images::registries, Images::configure);
    reload(parts, ReloadedFile { path, what, reason, read: Box::new(read), now, configure }, stop).await;
}

/// Reloads the signature policy until `stop`.
pub async fn reload_signature_policy(parts: SharedNodeParts, path: PathBuf, stop: CancellationToken) {
    let read = |path: &Path| SignaturePolicy::read(path).map_err(|error| error.to_string());
    let (what, reason) = ("signature policy", "InvalidSignaturePolicyFile");
    let (now, configure) = (Images::signature_policy, Images::configure_signatures);
    reload(parts, ReloadedFile { path, what, reason, read: Box::new(read), now, configure }, stop).await;
}

async fn reload<T: PartialEq + Send + 'static>(
    parts: SharedNodeParts,
    config: ReloadedFile<T>,
    stop: CancellationToken,
) {
    let (config, mut reported_error) = (Arc::new(config), None);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = parts.env.sleep(INTERVAL) => {}
        }
        let file = config.clone();
        let read = tokio::task::spawn_blocking(move || (file.read)(&file.path));
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        let ReloadedFile { path, what, reason, now, configure, .. } = &*config;
        let path = path.display();
        match evaluate(&now(&parts.images), read, &mut reported_error) {
            Reload::Unchanged | Reload::Invalid(None) => {}
            Reload::Changed(found) => {
                tracing::info!(file = %path, what, "the changed file was applied");
                configure(&parts.images, found);
            }
            Reload::Invalid(Some(why)) => {
                tracing::warn!(file = %path, what, why, "the file cannot be used; the previous version stays in effect");
                // The error may quote the file, which readers of events may not be allowed to read.
                let message = format!(
                    "The {what} {path} can't be used, and the previous version stays in effect: the process's log has the reason"
                );
                // An error means that no node listens.
                let _ = parts.node_warnings.send(NodeWarning { reason, message });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_is_reported_once_and_changes_nothing() {
        let now = Registries::default();
        let other = Registries::default().with_proxies(vec!["p".into()]);
        let mut reported_error = None;
        let mut read =
            |read: Result<&Registries, &str>| evaluate(&now, read.cloned().map_err(Into::into), &mut reported_error);
        assert_eq!(read(Ok(&now)), Reload::Unchanged);
        assert_eq!(read(Err("half")), Reload::Invalid(Some("half".into())));
        assert_eq!(read(Err("half")), Reload::Invalid(None));
        assert_eq!(read(Err("gone")), Reload::Invalid(Some("gone".into())));
        assert_eq!(read(Ok(&now)), Reload::Changed(now.clone()), "mended: that is told");
        assert_eq!(read(Ok(&now)), Reload::Unchanged);
        assert_eq!(read(Ok(&other)), Reload::Changed(other.clone()));
    }
}
