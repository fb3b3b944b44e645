//! The node's file of registries, read anew while the node runs: one for all agents of a process, as they share its images. A file that
//! can't be used changes nothing, and is told once.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{NodeParts, Notice};
use crate::image::Registries;

/// How often the file, and what it names, is read.
const INTERVAL: Duration = Duration::from_secs(2);

/// What a reading comes to.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    /// It says what it said before.
    Same,
    /// It says something else, or can be used again.
    Use(Registries),
    /// It can't be used: why, where that was not told yet.
    Broken(Option<String>),
}

/// Decides by what is in use and what was told. Pure.
fn judge(now: &Registries, read: Result<Registries, String>, told: &mut Option<String>) -> Reading {
    match read {
        Ok(registries) => {
            let was_broken = told.take().is_some();
            if registries == *now && !was_broken { Reading::Same } else { Reading::Use(registries) }
        }
        Err(why) if told.as_ref() == Some(&why) => Reading::Broken(None),
        Err(why) => {
            *told = Some(why.clone());
            Reading::Broken(Some(why))
        }
    }
}

/// Keeps the images' registries as the file has them, until `stop`. `proxies` are the hosts of the environment's proxies.
pub async fn follow_registries(parts: NodeParts, path: PathBuf, proxies: Vec<String>, stop: CancellationToken) {
    let mut told = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || Registries::read(&file).map_err(|error| error.to_string()));
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        let read = read.map(|registries| registries.beside_proxies(proxies.clone()));
        match judge(&parts.images.registries(), read, &mut told) {
            Reading::Same | Reading::Broken(None) => {}
            Reading::Use(registries) => {
                tracing::info!(file = %path.display(), "the registries are as the file has them now");
                parts.images.configure(registries);
            }
            Reading::Broken(Some(why)) => {
                tracing::warn!(file = %path.display(), why, "the file of registries cannot be used; what it said before holds");
                // Who reads events may not read the file, of which the reason may show a part.
                let path = path.display();
                let message = format!(
                    "The file of registries {path} can't be used, and what it said before holds: the process's log says why"
                );
                // Where no node listens there is nobody to tell.
                let _ = parts.notices.send(Notice { reason: "InvalidRegistriesFile", message });
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
