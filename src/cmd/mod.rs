//! The verbs of the command line: one file each, with its arguments. Verbs that aren't built yet are absent.

mod apiserver;
mod backup;
mod config_file;
mod config_schema;
mod controller_manager;
mod dashboard;
mod demo;
mod generate;
mod node;
mod proxy;
mod scheduler;
mod server;
mod up;
mod version;

use std::ffi::OsString;

use clap::{Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use apiserver::ApiServer;
use backup::Backup;
use config_schema::ConfigSchema;
use controller_manager::ControllerManager;
use dashboard::Dashboard;
use generate::{Completion, Man};
use node::Node;
use proxy::Proxy;
use scheduler::Scheduler;
use server::Server;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_development::bind::{self, Bind};
use tools_development::call::{self, Call};
use tools_development::demo::Demo;
use tools_development::image::{self, Images};
use tools_development::inspect::{self, Inspect};
use tools_development::new::{self, New};
use tools_development::pull::{self, Pull};
use tools_development::push::{self, Push};
use tools_development::run::{self, Run};
use tools_diagnosis::doctor::verb::{self as doctor, Doctor};
use tools_diagnosis::explain::reconcile::{self as explain_reconcile, ExplainReconcile};
use tools_diagnosis::explain::scheduling::{self as explain_scheduling, ExplainScheduling};
use tools_diagnosis::status::verb::{self as status, Status};
use tools_joining::verb::{self as token, Token};
use up::Up;

/// Kubernetes for WebAssembly in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = false,
    after_help = "Example: coracle demo"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// The verbs of `coracle`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Demonstrates a cluster: a shop of microservices with traffic, failures and limits
    #[command(after_help = "Example: coracle demo --keep")]
    Demo(Demo),
    /// Runs a whole cluster in this process, in the foreground
    #[command(
        after_help = "Example: coracle up --nodes 2\n         export KUBECONFIG=… (the path in the `ready` line); kubectl get nodes"
    )]
    Up(Box<Up>),
    /// Runs API server, scheduler and controllers in one process, in the foreground; several share an etcd cluster
    #[command(
        after_help = "Example: coracle server --data-dir /var/lib/coracle --bind 10.0.0.1 --store etcd:http://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379"
    )]
    Server(Box<Server>),
    /// Makes a token with which another machine joins the cluster
    #[command(after_help = "Example: coracle token create --control-plane")]
    Token(Token),
    /// Runs the API server alone, with its store and the built-in registry, in the foreground
    #[command(
        name = "apiserver",
        after_help = "Example: coracle apiserver --data-dir /var/lib/coracle --port 6443\n         kube-scheduler --kubeconfig /var/lib/coracle/kubeconfig"
    )]
    ApiServer(ApiServer),
    /// Runs the controllers alone, in the foreground, against the API server of a kubeconfig
    #[command(
        name = "controllers",
        visible_alias = "controller-manager",
        after_help = "Example: coracle controllers --kubeconfig /var/lib/coracle/kubeconfig --controllers '*,-job'"
    )]
    ControllerManager(Box<ControllerManager>),
    /// Runs the scheduler alone, in the foreground, against the API server of a kubeconfig
    #[command(after_help = "Example: coracle scheduler --kubeconfig /var/lib/coracle/kubeconfig")]
    Scheduler(Scheduler),
    /// Runs a node in this process, in the foreground: its pods, and Services on this machine's addresses
    #[command(
        after_help = "Example: coracle node --server https://10.0.0.1:6443 --token … --ca-hash sha256:… (the line of `coracle token create`)\n         coracle node --kubeconfig node.kubeconfig --node-name wasm-1"
    )]
    Node(Box<Node>),
    /// Runs the data plane alone, in the foreground: Services on this machine's addresses, against the API server of a
    /// kubeconfig
    #[command(after_help = "Example: coracle proxy --kubeconfig /var/lib/coracle/kubeconfig --node-ip 10.0.0.7")]
    Proxy(Proxy),
    /// Shows the node that a pod would get, and each scheduling plugin's verdict on each node
    #[command(
        after_help = "Example: coracle explain-scheduling web-1 -n shop\n         coracle explain-scheduling web-1 --record web-1.json; coracle explain-scheduling --replay web-1.json"
    )]
    ExplainScheduling(ExplainScheduling),
    /// Shows what the controllers of an object would do now, and does nothing
    #[command(
        after_help = "Example: coracle explain-reconcile deployment/web -n shop\n         coracle explain-reconcile pod/web-1 --controller taint-eviction-controller"
    )]
    ExplainReconcile(ExplainReconcile),
    /// Runs a .wasm file in the cluster of --data-dir: pushes it, makes a Deployment and a Service, waits until it is
    /// ready
    #[command(after_help = "Example: coracle run hello.wasm --port 8080 --dev")]
    Run(Run),
    /// Makes a project from a template: an HTTP service, a command, a plugin or a scheduler plugin
    #[command(after_help = "Example: coracle new http-js my-app\n         coracle new --list")]
    New(New),
    /// Pushes a .wasm file as an OCI artifact
    #[command(after_help = "Example: coracle push hello.wasm registry.local/hello:v1")]
    Push(Push),
    /// Pulls an image's module into a file
    #[command(after_help = "Example: coracle pull registry.local/hello:v1 hello.wasm")]
    Pull(Pull),
    /// Prints a module's imports, exports and requirements
    #[command(after_help = "Example: coracle inspect hello.wasm\n         coracle inspect registry.local/hello:v1")]
    Inspect(Inspect),
    /// Lists, removes, imports and exports the images of a running node
    #[command(after_help = "Example: coracle image ls\n         coracle image rm registry.local/hello:v1")]
    Image(Images),
    /// Calls a function of a plugin with WAVE arguments and prints its result
    #[command(after_help = "Example: coracle call deployment/greeter greet '\"ada\"'")]
    Call(Call),
    /// Writes a typed client of a plugin from its WIT
    #[command(
        after_help = "Example: coracle bind wit/plugin.wit --lang python\n         coracle bind deployment/greeter --lang js --out src"
    )]
    Bind(Bind),
    /// Writes the cluster's objects at one moment to a file, also while the cluster runs
    #[command(after_help = "Example: coracle backup shop.backup --data-dir /var/lib/coracle")]
    Backup(Backup),
    /// Makes a new store of a backup
    #[command(after_help = "Example: coracle restore shop.backup --data-dir /var/lib/coracle-2")]
    Restore(Backup),
    /// Shows what runs in a cluster, and what is not healthy
    #[command(
        after_help = "Example: coracle status\n         coracle status --output json --data-dir /var/lib/coracle"
    )]
    Status(Status),
    /// Checks this machine for what keeps a cluster from working well
    #[command(after_help = "Example: coracle doctor\n         coracle doctor --output json --bind 10.0.0.1")]
    Doctor(Doctor),
    /// Opens the dashboard in a browser, with the credentials of a kubeconfig, until ^C
    #[command(
        after_help = "Example: coracle dashboard\n         coracle dashboard --print --kubeconfig prod.kubeconfig"
    )]
    Dashboard(Dashboard),
    /// Prints a completion script for a shell
    #[command(after_help = "Example: source <(coracle completion bash)")]
    Completion(Completion),
    /// Writes manual pages into a folder
    #[command(after_help = "Example: coracle man /usr/local/share/man/man1")]
    Man(Man),
    /// Prints the JSON Schema of a verb's configuration file (`--config`), for editors and checks
    #[command(after_help = "Example: coracle config-schema up > up.schema.json")]
    ConfigSchema(ConfigSchema),
    /// Prints version, commit, Kubernetes version and wasmtime version
    #[command(after_help = "Example: coracle version")]
    Version,
}

impl Cli {
    /// Parses a command line.
    ///
    /// # Errors
    /// If it is wrong, or requests help.
    pub(crate) fn read(line: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = numbers_are_values(Self::command());
        // Global flags are flags of each verb.
        command.build();
        let line = config_file::expand(&command, line.collect())?;
        Self::from_arg_matches(&command.try_get_matches_from(line)?)
    }
}

impl Verb {
    /// The service name of a verb that runs a component; `None` for one that ends by itself. The demo ignores the environment.
    pub(crate) fn component(&self) -> Option<&'static str> {
        match self {
            Self::Up(_) => Some("coracle"),
            Self::Server(_) => Some("coracle-server"),
            Self::ApiServer(_) => Some("coracle-apiserver"),
            Self::ControllerManager(_) => Some("coracle-controllers"),
            Self::Scheduler(_) => Some("coracle-scheduler"),
            Self::Node(_) => Some("coracle-node"),
            Self::Proxy(_) => Some("coracle-proxy"),
            _ => None,
        }
    }
}

/// Parses a negative number after a flag as its value, so that the flag's own check rejects it, and not as an unknown
/// flag.
fn numbers_are_values(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let takes = arg.get_action().takes_values() && !arg.is_allow_hyphen_values_set();
        if takes { arg.allow_negative_numbers(true) } else { arg }
    });
    command.mut_subcommands(numbers_are_values)
}

/// Runs the verb.
///
/// # Errors
/// See [`Failure`].
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    match cli.verb {
        Verb::Demo(flags) => demo::run(&flags),
        Verb::Up(flags) => up::run(&flags, &cli.common),
        Verb::Server(flags) => server::run(&flags, &cli.common),
        Verb::ApiServer(flags) => apiserver::run(&flags, &cli.common),
        Verb::ControllerManager(flags) => controller_manager::run(&flags),
        Verb::Scheduler(flags) => scheduler::run(&flags),
        Verb::Node(flags) => node::run(&flags, &cli.common),
        Verb::Proxy(flags) => proxy::run(&flags),
        Verb::ExplainScheduling(flags) => explain_scheduling::run(&flags, &cli.common),
        Verb::ExplainReconcile(flags) => explain_reconcile::run(&flags, &cli.common),
        Verb::Run(flags) => run::run(&flags, &cli.common),
        Verb::New(flags) => new::run(&flags),
        Verb::Push(flags) => push::run(&flags, &cli.common),
        Verb::Pull(flags) => pull::run(&flags, &cli.common),
        Verb::Inspect(flags) => inspect::run(&flags, &cli.common),
        Verb::Image(flags) => image::run(&flags, &cli.common),
        Verb::Call(flags) => call::run(&flags, &cli.common),
        Verb::Bind(flags) => bind::run(&flags, &cli.common),
        Verb::Backup(flags) => backup::save(&flags, &cli.common),
        Verb::Restore(flags) => backup::load(&flags, &cli.common),
        Verb::Token(flags) => token::run(&flags, &cli.common),
        Verb::Status(flags) => status::run(&flags, &cli.common, &version::program()),
        Verb::Doctor(flags) => doctor::run(&flags, &cli.common, &version::program()),
        Verb::Dashboard(flags) => dashboard::run(&flags, &cli.common),
        Verb::Completion(flags) => generate::completion(&flags),
        Verb::Man(flags) => generate::man(&flags),
        Verb::ConfigSchema(flags) => config_schema::run(&flags),
        Verb::Version => version::run(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory as _;

    use super::Cli;

    /// Maps each variable to its value's form, for a verb and its subverbs.
    fn variables(command: &clap::Command, found: &mut BTreeMap<String, BTreeMap<String, String>>) {
        for flag in command.get_arguments() {
            if let Some(variable) = flag.get_env().and_then(|name| name.to_str()) {
                // One variable can't set two flags with different defaults, such as two ports.
                let values = format!("{:?} {:?}", flag.get_value_names(), flag.get_default_values());
                let of = format!("{} {}", command.get_name(), flag.get_id());
                found.entry(variable.to_owned()).or_default().insert(values, of);
            }
        }
        command.get_subcommands().for_each(|below| variables(below, found));
    }

    #[test]
    fn every_verb_of_a_component_has_feature_gates() {
        for verb in Cli::command().get_subcommands() {
            let is_component =
                ["up", "apiserver", "controllers", "scheduler", "node", "proxy", "server"].contains(&verb.get_name());
            let has = verb.get_arguments().any(|arg| arg.get_long() == Some("feature-gates") && !arg.is_hide_set());
            assert_eq!(has, is_component, "{}", verb.get_name());
        }
    }

    #[test]
    fn a_variable_has_the_same_meaning_for_each_verb() {
        let mut found = BTreeMap::new();
        variables(&Cli::command(), &mut found);
        assert!(found.contains_key("CORACLE_DATA_DIR") && found.len() > 20, "{found:?}");
        for (variable, meanings) in found {
            assert_eq!(meanings.len(), 1, "{variable} stands for different things: {meanings:?}");
        }
    }
}
