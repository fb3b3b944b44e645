//! `coracle bind`: writes a typed client of a plugin from its WIT.

mod idents;
mod javascript;
mod model;
mod python;
mod rust;
mod sources;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};

use self::sources::Sources;
use crate::call;
use tools_cluster::kubeconfig::KubeconfigSource;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::{plain, print_stdout};
use tools_command::output_file;

/// Stack of the parser, whose recursion follows the text (at most [`sources::WIT_BYTES_MAX`]).
const PARSER_STACK_BYTES: usize = 256 << 20;

/// Arguments of `coracle bind`.
#[derive(Debug, Clone, Args)]
pub struct Bind {
    /// A WIT file or a folder of one package, with its dependencies in the folder deps beside it; or a plugin that runs: pod/NAME,
    /// deployment/NAME or service/NAME
    #[arg(value_name = "FILE.wit")]
    pub(crate) source: String,
    /// The client's language
    #[arg(long, env = "CORACLE_LANG", value_name = "LANG")]
    pub(crate) lang: Lang,
    /// Folder for the client's file, created if it is missing; a file of the same name is replaced
    #[arg(long, env = "CORACLE_OUT", value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    /// The world, if the file has several with exports
    #[arg(long, env = "CORACLE_WORLD", value_name = "NAME")]
    pub(crate) world: Option<String>,
    /// The namespace of a plugin that runs
    #[arg(short, long, env = "CORACLE_NAMESPACE", default_value = "default", value_name = "NS")]
    pub(crate) namespace: String,
    /// Kubeconfig of a plugin's cluster [default: the one of --data-dir, else kubectl's]
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// A language of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lang {
    /// JavaScript, an ES module
    Js,
    /// Python 3.10 or later
    Python,
    /// Rust, with the crate serde_json
    Rust,
}

impl Lang {
    fn extension(self) -> &'static str {
        match self {
            Self::Js => "mjs",
            Self::Python => "py",
            Self::Rust => "rs",
        }
    }
}

/// Writes the client and prints its path.
///
/// # Errors
/// If the WIT can't be read or has no exported functions, or the file can't be written.
pub fn run(flags: &Bind, common: &Common) -> Result<(), Failure> {
    let path = Path::new(&flags.source);
    let kubeconfig = || KubeconfigSource::choose(flags.kubeconfig.as_deref(), &DataDir::of(common)?);
    let is_file = flags.source.ends_with(".wit") || path.is_dir();
    let wit = match (is_file, call::parse_target(&flags.source)) {
        (false, Ok(target)) => Sources::text("the plugin's WIT", &call::wit(target, &flags.namespace, kubeconfig()?)?),
        _ => Sources::read(path)?,
    };
    let world = flags.world.clone();
    let parsed = std::thread::Builder::new()
        .stack_size(PARSER_STACK_BYTES)
        .spawn(move || model::read(&wit, world.as_deref()))
        .context("cannot start the parser")?;
    let model = parsed.join().map_err(|_| anyhow!("the WIT can't be read: its parser failed"))?;
    let model = model.map_err(|why| anyhow!("{}: {}", flags.source, plain(&why)))?;
    let source: String = flags.source.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect();
    let client = match flags.lang {
        Lang::Js => javascript::generate(&model, &source),
        Lang::Python => python::generate(&model, &source),
        Lang::Rust => rust::generate(&model, &source).map_err(|why| anyhow!("{}: {why}", flags.source))?,
    };
    let stem = match &model.interfaces[..] {
        [one] => idents::snake(&one.name),
        _ => "plugin".to_owned(),
    };
    let file = flags.out.join(format!("{stem}_client.{}", flags.lang.extension()));
    fs::create_dir_all(&flags.out).with_context(|| format!("cannot write {}", file.display()))?;
    output_file::write(&file, |mut file| Ok(file.write_all(client.as_bytes())?))?;
    print_stdout!("{}", file.display())?;
    Ok(())
}
