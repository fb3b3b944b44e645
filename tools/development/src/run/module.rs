//! Deploys one module: its image, a Deployment, and a Service if it serves HTTP.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use images::delete_pushed;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use machinery_api::ObjectKey;
use machinery_client::request::{PatchType, status_code};
use machinery_client::{Api, Kind};

use super::Deployed;
use super::cluster::Cluster;
use super::objects::{self, App, AppFlags, MANAGER};
use super::readiness::Workload;
use crate::module_file;
use tools_command::output::print_stdout;

/// A module and its names.
pub(super) struct ModuleApp {
    pub(super) file: PathBuf,
    pub(super) name: String,
    pub(super) flags: AppFlags,
    /// What runs.
    running: Option<App>,
}

impl ModuleApp {
    pub(super) fn new(file: PathBuf, name: String, flags: AppFlags) -> Self {
        Self { file, name, flags, running: None }
    }

    /// What keeps running when a change is not deployed.
    pub(super) fn running(&self) -> Option<&str> {
        self.running.as_ref().map(|app| app.image.as_str())
    }

    /// Reads, pushes and deploys the module, and waits until it runs.
    pub(super) async fn deploy(&mut self, cluster: &Cluster) -> anyhow::Result<Deployed> {
        let module = read(&self.file, self.flags.dev).await?;
        let pushed = cluster.push(&self.file, module, &self.name).await?;
        let parts = (pushed.digest.as_str(), pushed.inspection.exports.as_slice());
        let app = App::new(&self.name, &cluster.namespace, parts, &self.flags);
        cluster.spinner.step(format!("waiting for {}", self.name));
        let changed = self.apply(cluster, &app).await?;
        cluster.wait_ready(&[workload(&app)]).await?;
        if !app.serves {
            // Only now: the old server responds until the new one runs.
            self.delete_service(cluster).await?;
        }
        let does = if app.serves { "serves" } else { "runs" };
        let summary = format!("{} {does} {}", app.name, app.image);
        let before = self.running.replace(app.clone());
        let addresses = before.as_ref().is_none_or(|before| before.serves != app.serves);
        if let Some(before) = before.filter(|before| before.image != app.image) {
            // Delete old images: a day's changes would fill the disk.
            let _ = delete_pushed(&cluster.env, &before.name, before.digest(), &cluster.registry).await;
        }
        Ok(Deployed { summary, changed, addresses })
    }

    /// Prints the addresses of a server.
    pub(super) async fn print_addresses(&self, cluster: &Cluster) -> anyhow::Result<()> {
        match &self.running {
            Some(app) if app.serves => cluster.print_addresses(&app.namespace, &app.name).await,
            _ => print_stdout!("deployment/{} runs; its output: kubectl logs deployment/{}", self.name, self.name),
        }
    }

    /// Deletes what sessions of `--dev` have made: the objects, and the image.
    pub(super) async fn clean_up(&self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        let mut removed = Vec::new();
        let services: Api<Service> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let service = services.get_opt(&self.name).await?;
        if service.is_some_and(|there| objects::ends_with_session(&there.metadata)) {
            services.delete(&self.name).await?;
            removed.push(format!("service/{}", self.name));
        }
        let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let deployment = deployments.get_opt(&self.name).await?;
        if deployment.is_some_and(|there| objects::ends_with_session(&there.metadata)) {
            deployments.delete(&self.name).await?;
            removed.push(format!("deployment/{}", self.name));
            if let Some(app) = &self.running {
                let _ = delete_pushed(&cluster.env, &app.name, app.digest(), &cluster.registry).await;
            }
        }
        Ok(removed)
    }

    /// Creates the objects, or updates those of an earlier `coracle run`. Returns whether the Deployment has changed.
    async fn apply(&self, cluster: &Cluster, app: &App) -> anyhow::Result<bool> {
        let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let services: Api<Service> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        // Checked before any object is created.
        let service = services.get_opt(&app.name).await?;
        let ours = service.as_ref().is_none_or(|there| objects::is_ours(&there.metadata));
        if app.serves && !ours {
            bail!("there is a Service {:?} that `coracle run` has not made: give another name with --name", app.name)
        }
        let (deployments, services) = (deployments.managed_by(MANAGER), services.managed_by(MANAGER));
        let wanted = app.deployment();
        let changed = match deployments.get_opt(&app.name).await? {
            None => {
                deployments.create(&objects::new_of(wanted)).await?;
                true
            }
            Some(there) if !objects::is_ours(&there.metadata) => {
                bail!(
                    "there is a Deployment {:?} that `coracle run` has not made: give another name with --name",
                    app.name
                )
            }
            Some(there) => {
                let before = there.metadata.generation;
                let patch = objects::patch_of_deployment(wanted, &there);
                let now = deployments.patch(&app.name, PatchType::Merge, &patch).await?;
                now.metadata.generation != before
            }
        };
        match service {
            _ if !app.serves => {}
            Some(_) => drop(services.patch(&app.name, PatchType::Merge, &objects::patch_of(app.service(None))).await?),
            None => create_service(&services, app).await?,
        }
        Ok(changed)
    }

    /// Deletes a server's Service of an earlier `coracle run`.
    async fn delete_service(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let services: Api<Service> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let there = services.get_opt(&self.name).await?;
        if there.is_some_and(|there| objects::is_ours(&there.metadata)) {
            services.delete(&self.name).await?;
        }
        Ok(())
    }
}

/// Creates a Service with the NodePort of its name, or with another one if that is taken or not allowed.
async fn create_service(services: &Api<Service>, app: &App) -> anyhow::Result<()> {
    let wanted = objects::node_port(&app.namespace, &app.name);
    match services.create(&objects::new_of(app.service(Some(wanted)))).await {
        Err(error) if status_code(&error) == 422 => {
            services.create(&objects::new_of(app.service(None))).await?;
        }
        created => drop(created?),
    }
    Ok(())
}

fn workload(app: &App) -> Workload {
    let kind = Kind::of::<Deployment>();
    let key = ObjectKey::new(&*app.namespace, &*app.name);
    Workload { kind, key, selector: format!("app={}", app.name), images: vec![app.image.clone()] }
}

/// Reads a module. What is watched has to be a file: a device or a pipe never ends.
pub(super) async fn read(file: &Path, watched: bool) -> anyhow::Result<Vec<u8>> {
    let path = file.to_owned();
    let read = move || {
        if watched && !path.metadata()?.is_file() {
            return Err(std::io::Error::other("it is no file, and what is watched has to be one"));
        }
        module_file::read(&path)
    };
    let cannot = || format!("cannot read {}; give the path of a .wasm file", file.display());
    tokio::task::spawn_blocking(read).await?.with_context(cannot)
}
