//! The node's files about images, read anew while the node runs: one of each for all agents of a process, as they share its images. A
//! file that can't be used changes nothing, and is told once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{NodeParts, Notice};
use crate::image::{Images, Registries, SignaturePolicy};

/// How often the file, and what it names, is read.
const INTERVAL: Duration = Duration::from_secs(2);

/// What a reading comes to.
#[derive(Debug, PartialEq, Eq)]
enum Reading<T> {
    /// It says what it said before.
    Same,
    /// It says something else, or can be used again.
    Use(T),
    /// It can't be used: why, where that was not told yet.
    Broken(Option<String>),
}

/// Decides by what is in use and what was told. Pure.
fn judge<T: PartialEq>(now: &T, read: Result<T, String>, told: &mut Option<String>) -> Reading<T> {
    match read {
        Ok(found) => {
            let was_broken = told.take().is_some();
            if found == *now && !was_broken { Reading::Same } else { Reading::Use(found) }
        }
        Err(why) if told.as_ref() == Some(&why) => Reading::Broken(None),
        Err(why) => {
            *told = Some(why.clone());
            Reading::Broken(Some(why))
        }
    }
}

/// Reads a file; an error is what to say of it.
type Read<T> = dyn Fn(&Path) -> Result<T, String> + Send + Sync;

/// A file, and what it is to the images.
struct Followed<T> {
    path: PathBuf,
    /// What it is called, and the event that says that it can't be used.
    what: &'static str,
    reason: &'static str,
    read: Box<Read<T>>,
    now: fn(&Images) -> T,
    configure: fn(&Images, T),
}

/// Keeps the images' registries as the file has them, until `stop`. `proxies` are the hosts of the environment's proxies.
pub async fn follow_registries(parts: NodeParts, path: PathBuf, proxies: Vec<String>, stop: CancellationToken) {
    let read = move |path: &Path| match Registries::read(path) {
        Ok(registries) => Ok(registries.beside_proxies(proxies.clone())),
        Err(error) => Err(error.to_string()),
    };
    let (what, reason) = ("file of registries", "InvalidRegistriesFile");
    let (now, configure) = (Images::registries, Images::configure);
    follow(parts, Followed { path, what, reason, read: Box::new(read), now, configure }, stop).await;
}

/// The same of the signature policy.
pub async fn follow_signature_policy(parts: NodeParts, path: PathBuf, stop: CancellationToken) {
    let read = |path: &Path| SignaturePolicy::read(path).map_err(|error| error.to_string());
    let (what, reason) = ("signature policy", "InvalidSignaturePolicyFile");
    let (now, configure) = (Images::signature_policy, Images::configure_signatures);
    follow(parts, Followed { path, what, reason, read: Box::new(read), now, configure }, stop).await;
}

async fn follow<T: PartialEq + Send + 'static>(parts: NodeParts, followed: Followed<T>, stop: CancellationToken) {
    let (followed, mut told) = (Arc::new(followed), None);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let file = followed.clone();
        let read = tokio::task::spawn_blocking(move || (file.read)(&file.path));
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        let Followed { path, what, reason, now, configure, .. } = &*followed;
        let path = path.display();
        match judge(&now(&parts.images), read, &mut told) {
            Reading::Same | Reading::Broken(None) => {}
            Reading::Use(found) => {
                tracing::info!(file = %path, what, "it is as the file has it now");
                configure(&parts.images, found);
            }
            Reading::Broken(Some(why)) => {
                tracing::warn!(file = %path, what, why, "the file cannot be used; what it said before holds");
                // Who reads events may not read the file, of which the reason may show a part.
                let message = format!(
                    "The {what} {path} can't be used, and what it said before holds: the process's log says why"
                );
                // Where no node listens there is nobody to tell.
                let _ = parts.notices.send(Notice { reason, message });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_is_told_once_and_changes_nothing() {
        let now = Registries::default();
        let other = Registries::default().beside_proxies(vec!["p".into()]);
        let mut told = None;
        let mut read = |read: Result<&Registries, &str>| judge(&now, read.cloned().map_err(Into::into), &mut told);
        assert_eq!(read(Ok(&now)), Reading::Same);
        assert_eq!(read(Err("half")), Reading::Broken(Some("half".into())));
        assert_eq!(read(Err("half")), Reading::Broken(None));
        assert_eq!(read(Err("gone")), Reading::Broken(Some("gone".into())));
        assert_eq!(read(Ok(&now)), Reading::Use(now.clone()), "mended: that is told");
        assert_eq!(read(Ok(&now)), Reading::Same);
        assert_eq!(read(Ok(&other)), Reading::Use(other.clone()));
    }
}
