//! A session of `coracle run`: builds and deploys; with `--dev` again at each change, and removes what it has made at its
//! end.

use std::path::Path;

use super::Target;
use super::build::Build;
use super::cluster::Cluster;
use super::tree::SourceTree;
use super::watch::WatchedFiles;
use tools_command::output::{print_stderr, print_stdout};

/// A build and the sources that it reads.
pub(super) struct Builder {
    pub(super) build: Build,
    pub(super) sources: SourceTree,
}

impl Builder {
    /// Builds, again if a source has changed meanwhile.
    async fn run(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        if self.sources.before_build().await {
            print_stderr!("coracle: there are too many files to watch; name the sources with `watch` in coracle.yaml");
        }
        loop {
            cluster.spinner.step("building".to_owned());
            let built = cluster.spinner.during(self.build.run(&cluster.env)).await;
            if !self.sources.after_build().await {
                return built;
            }
        }
    }
}

/// Builds and deploys once.
///
/// # Errors
/// One of both fails.
pub(super) async fn once(target: &mut Target, mut builder: Option<Builder>, cluster: &Cluster) -> anyhow::Result<()> {
    if let Some(builder) = &mut builder {
        cluster.spinner.step("building".to_owned());
        cluster.spinner.during(builder.build.run(&cluster.env)).await?;
    }
    cluster.spinner.during(target.deploy(cluster)).await?;
    target.print_addresses(cluster).await
}

/// Builds and deploys at each change, until it is dropped.
///
/// # Errors
/// The first version can't be deployed, and there is no build that would change it.
pub(super) async fn watch(target: &mut Target, mut builder: Option<Builder>, cluster: &Cluster) -> anyhow::Result<()> {
    let mut watched = WatchedFiles::default();
    let mut built = match &mut builder {
        Some(builder) => builder.run(cluster).await,
        None => Ok(()),
    };
    let mut first = true;
    loop {
        let still = if first { "waiting for a change".to_owned() } else { format!("{} runs on", target.running()) };
        match built {
            Ok(()) => {
                watched.mark(&target.files());
                let deployed = deploy(target, cluster, first).await;
                first &= deployed.is_err();
                match deployed {
                    Err(error) if first && builder.is_none() => return Err(error),
                    Err(error) => print_stderr!("coracle: {error:#}; {still}"),
                    Ok(()) => {}
                }
            }
            Err(error) => print_stderr!("coracle: {error:#}; {still}"),
        }
        let files = target.files();
        let still = if first { "waiting for it".to_owned() } else { format!("{} runs on", target.running()) };
        let report = |file: &Path, why: &std::io::Error| {
            print_stderr!("coracle: cannot read {}: {why}; {still}", file.display());
        };
        let changed = watched.changed(&cluster.env, &files, &report);
        built = match &mut builder {
            None => {
                changed.await;
                Ok(())
            }
            Some(builder) => {
                let of_source = tokio::select! {
                    () = changed => false,
                    () = builder.sources.changed(&cluster.env) => true,
                };
                if of_source { builder.run(cluster).await } else { Ok(()) }
            }
        };
    }
}

/// Deploys the files as they are now, and says what has changed.
async fn deploy(target: &mut Target, cluster: &Cluster, first: bool) -> anyhow::Result<()> {
    let began = cluster.env.elapsed();
    // A linker may still be writing the file, and a partial file is no module: the next change has the rest.
    let deployed = cluster.spinner.during(target.deploy(cluster)).await?;
    if deployed.changed && !first {
        let took = cluster.env.elapsed().saturating_sub(began);
        print_stdout!("{} after {} ms", deployed.summary, took.as_millis())?;
    }
    if deployed.addresses {
        target.print_addresses(cluster).await?;
    }
    Ok(())
}

/// Removes what the session has made.
pub(super) async fn clean_up(target: &Target, cluster: &Cluster) {
    match target.clean_up(cluster).await {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => print_stderr!("coracle: removed {}", removed.join(", ")),
        Err(error) => print_stderr!("coracle: cannot remove what this session has made: {error:#}"),
    }
}
