//! `coracle run`: deploys a module or the manifests of an application, and prints their addresses; with `--dev`, again on
//! every change.

mod build;
mod cluster;
mod dev;
mod logs;
mod manifests;
mod module;
pub(crate) mod objects;
mod readiness;
mod settings;
mod stack;
mod tree;
mod watch;

use std::path::{Path, PathBuf};

use clap::Args;

use self::build::Build;
use self::cluster::Cluster;
use self::dev::Builder;
use self::module::ModuleApp;
use self::objects::AppFlags;
use self::settings::PodFlags;
use self::stack::Stack;
use self::tree::SourceTree;
use crate::project::Project;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::runtime;
use tools_command::signals::StopSignals;

/// Arguments of `coracle run`.
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// The module or component [default: that of ./coracle.yaml, after its build]
    #[arg(value_name = "FILE.wasm")]
    pub(crate) file: Option<PathBuf>,
    /// Manifests of Kubernetes objects instead of a module. An image that begins with ./ or ../ is a .wasm file
    #[arg(short = 'f', long, env = "CORACLE_FILENAME", value_name = "FILE", conflicts_with_all = ["file", "name", "env", "secret", "memory", "cpu", "volume", "grant", "annotation", "arguments"])]
    pub(crate) filename: Option<PathBuf>,
    /// Name of the Deployment, the Service and the image [default: the file's]
    #[arg(long, env = "CORACLE_NAME", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The namespace, which must exist
    #[arg(short, long, env = "CORACLE_NAMESPACE", default_value = "default", value_name = "NS")]
    pub(crate) namespace: String,
    /// Port of the Service, if the module serves HTTP
    #[arg(long, env = "CORACLE_SERVICE_PORT", default_value_t = 8080, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// Number of pods
    #[arg(long, env = "CORACLE_REPLICAS", default_value_t = 1, value_name = "N")]
    pub(crate) replicas: u16,
    #[command(flatten)]
    pub(crate) pod: PodFlags,
    /// Command that makes the .wasm files from the sources in this folder [default: that of ./coracle.yaml, without a file]
    #[arg(long, env = "CORACLE_BUILD", value_name = "COMMAND")]
    pub(crate) build: Option<String>,
    /// Shows the output of builds that succeed, too
    #[arg(short, long, env = "CORACLE_VERBOSE")]
    pub(crate) verbose: bool,
    /// Watches the sources or files, builds and deploys each change and shows the logs, until it is stopped; then removes
    /// what it has made
    #[arg(long, env = "CORACLE_DEV")]
    pub(crate) dev: bool,
    /// With --dev: leaves everything in the cluster at the end
    #[arg(long, env = "CORACLE_KEEP", requires = "dev")]
    pub(crate) keep: bool,
    /// Arguments of the module, after --
    #[arg(last = true, value_name = "ARG")]
    pub(crate) arguments: Vec<String>,
}

impl Run {
    /// What to deploy, and how it is built.
    fn target(&self) -> Result<(Target, Option<Builder>), Failure> {
        if let Some(file) = &self.filename {
            let stack = Target::Stack(Stack::new(file.clone(), self.dev));
            return Ok((stack, self.builder(PathBuf::from("."), vec![".".into()], &[])));
        }
        let (file, builder, pod) = match &self.file {
            Some(file) => {
                (file.clone(), self.builder(".".into(), vec![".".into()], std::slice::from_ref(file)), self.pod.clone())
            }
            None => {
                let project = Project::find(Path::new("."))?.ok_or_else(|| {
                    let why = "nothing to run: give a FILE.wasm, manifests with -f, or a coracle.yaml in this folder";
                    Failure::Usage(why.to_owned())
                })?;
                let Project { build, module, watch, grant, folder } = project;
                let command = self.build.clone().unwrap_or(build);
                let builder = self.build_of(command, folder, watch, std::slice::from_ref(&module));
                (module, Some(builder), self.pod.clone().with_grants(&grant))
            }
        };
        let name = match &self.name {
            Some(name) if objects::is_label(name) => name.clone(),
            Some(name) => return Err(Failure::Usage(format!("--name {name}: lower-case letters, digits and dashes"))),
            None => objects::name_of(&file)
                .ok_or_else(|| Failure::Usage(format!("{}: no name can be made of it, give --name", file.display())))?,
        };
        pod.check().map_err(Failure::Usage)?;
        let Self { port, replicas, dev, .. } = *self;
        let flags = AppFlags { port, replicas, dev, arguments: self.arguments.clone(), pod };
        Ok((Target::Module(Box::new(ModuleApp::new(file, name, flags))), builder))
    }

    /// The build of `--build`.
    fn builder(&self, folder: PathBuf, roots: Vec<PathBuf>, modules: &[PathBuf]) -> Option<Builder> {
        Some(self.build_of(self.build.clone()?, folder, roots, modules))
    }

    fn build_of(&self, command: String, folder: PathBuf, roots: Vec<PathBuf>, modules: &[PathBuf]) -> Builder {
        // Scans name files by their roots, as `./a.wasm` and `a.wasm`.
        let modules: Vec<PathBuf> =
            modules.iter().flat_map(|module| [module.clone(), Path::new(".").join(module)]).collect();
        let build = Build { command, folder, verbose: self.verbose };
        Builder { build, sources: SourceTree::new(roots, &modules) }
    }
}

/// Deploys the module or the manifests.
///
/// # Errors
/// If a file can't be read or is no module, there is no running cluster, or the pods don't become ready.
pub fn run(flags: &Run, common: &Common) -> Result<(), Failure> {
    let data = DataDir::of(common)?;
    let (mut target, builder) = flags.target()?;
    let runtime = runtime::single_threaded()?;
    let done: anyhow::Result<()> = runtime.block_on(async {
        let mut stops = StopSignals::install();
        let cluster = Cluster::connect(&data, &flags.namespace).await?;
        let session = async {
            if !flags.dev {
                return dev::once(&mut target, builder, &cluster).await;
            }
            tokio::select! {
                ended = dev::watch(&mut target, builder, &cluster) => ended,
                () = logs::follow(&cluster) => Ok(()),
            }
        };
        let done: anyhow::Result<()> = tokio::select! {
            done = session => done,
            () = stops.next() => Ok(()),
        };
        if flags.dev && !flags.keep {
            // A second signal ends at once.
            tokio::select! {
                () = dev::clean_up(&target, &cluster) => {}
                () = stops.next() => {}
            }
        }
        done
    });
    // A pending file read must not delay the exit.
    runtime.shutdown_background();
    Ok(done?)
}

/// Result of a deployment.
#[derive(Debug)]
struct Deployed {
    /// What runs now.
    summary: String,
    /// Whether it differs from the last one.
    changed: bool,
    /// Whether the addresses are new.
    addresses: bool,
}

/// What is deployed.
enum Target {
    Module(Box<ModuleApp>),
    Stack(Stack),
}

impl Target {
    async fn deploy(&mut self, cluster: &Cluster) -> anyhow::Result<Deployed> {
        match self {
            Self::Module(app) => app.deploy(cluster).await,
            Self::Stack(stack) => stack.deploy(cluster).await,
        }
    }

    async fn print_addresses(&self, cluster: &Cluster) -> anyhow::Result<()> {
        match self {
            Self::Module(app) => app.print_addresses(cluster).await,
            Self::Stack(stack) => stack.print_addresses(cluster).await,
        }
    }

    async fn clean_up(&self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Module(app) => app.clean_up(cluster).await,
            Self::Stack(stack) => stack.clean_up(cluster).await,
        }
    }

    /// The files whose change is deployed.
    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Module(app) => vec![app.file.clone()],
            Self::Stack(stack) => stack.files(),
        }
    }

    /// What keeps running when a change is not deployed.
    fn running(&self) -> String {
        match self {
            Self::Module(app) => app.running().unwrap_or(&app.name).to_owned(),
            Self::Stack(_) => "the last version".to_owned(),
        }
    }
}
