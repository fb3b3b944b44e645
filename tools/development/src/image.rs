//! `coracle image`: manages the images of a running node.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use images::{ImageClient, ImageKind, ListedImage};
use jiff::Timestamp;
use machinery_env::Env;

use crate::registry;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::format::Format;
use tools_command::output::{columns, print_stdout, result};
use tools_command::output_file;
use tools_command::progress::Progress;
use tools_command::runtime;

/// Displayed digits of a digest.
const DIGEST_CHARS: usize = 12;

/// Arguments of `coracle image`. (A missing verb is reported in one line, as all wrong usage.)
#[derive(Debug, Clone, Args)]
#[command(arg_required_else_help = false)]
pub struct Images {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What is done with images.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Verb {
    /// Lists the images on the node
    #[command(after_help = "Example: coracle image ls -o json")]
    Ls {
        /// Output format
        #[arg(
            short = 'o',
            long,
            alias = "output",
            env = "CORACLE_FORMAT",
            default_value = "table",
            value_name = "FORMAT"
        )]
        format: Format,
    },
    /// Removes images that no pod uses
    #[command(after_help = "Example: coracle image rm quay.io/team/app:v1")]
    Rm {
        /// Names, as `coracle image ls` shows them
        #[arg(value_name = "REF", required = true)]
        references: Vec<String>,
    },
    /// Imports images from an archive: an OCI layout as a tar, or the output of `docker save`
    #[command(
        after_help = "Example: skopeo copy docker://quay.io/team/app:v1 oci-archive:app.tar:quay.io/team/app:v1\n         coracle image import app.tar"
    )]
    Import {
        /// The archive
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Name of the image [default: the archive's]
        #[arg(long, alias = "name", env = "CORACLE_REFERENCE", value_name = "REF")]
        reference: Option<String>,
    },
    /// Writes an image as an archive, an OCI layout as a tar
    #[command(
        after_help = "Example: coracle image export quay.io/team/app:v1 -o app.tar\n         skopeo inspect oci-archive:app.tar"
    )]
    Export {
        /// Its name
        #[arg(value_name = "REF")]
        reference: String,
        /// Output file; an existing file is replaced
        #[arg(short, long, env = "CORACLE_OUTPUT", value_name = "FILE")]
        output: PathBuf,
    },
}

/// Performs the verb and prints its result.
///
/// # Errors
/// If no cluster runs, or the node rejects the request.
pub fn run(flags: &Images, common: &Common) -> Result<(), Failure> {
    let env = Env::real();
    let images = ImageClient::new(&env, registry::access(&DataDir::of(common)?)?);
    let runtime = runtime::single_threaded()?;
    let progress = Progress::stderr();
    match &flags.verb {
        Verb::Ls { format } => {
            let all = runtime.block_on(images.list())?;
            match format {
                Format::Json => {
                    print_stdout!("{}", serde_json::to_string_pretty(&all).context("cannot print the images")?)?
                }
                Format::Table => result(format_args!("{}", table(&all, env.now())))?,
            }
        }
        Verb::Rm { references } => {
            let mut failed = Vec::new();
            for reference in references {
                match runtime.block_on(images.remove(reference)) {
                    Ok(removed) => print_stdout!("{} removed ({} came free)", removed.name, size(removed.freed_bytes))?,
                    Err(error) => failed.push(error.to_string()),
                }
            }
            if !failed.is_empty() {
                return Err(anyhow::anyhow!("{}", failed.join("; ")).into());
            }
        }
        Verb::Import { file, reference } => {
            progress.doing(&format!("importing {}", file.display()));
            let kept = runtime.block_on(images.import(file, reference.as_deref()));
            progress.done();
            for image in kept.with_context(|| format!("cannot import {}", file.display()))? {
                print_stdout!("{} ({})", image.name, kind_label(image.kind))?;
            }
        }
        Verb::Export { reference, output } => {
            progress.doing(&format!("exporting {reference}"));
            let bytes = output_file::write(output, |beside| Ok(runtime.block_on(images.export(reference, beside))?));
            progress.done();
            print_stdout!("{} ({})", output.display(), size(bytes?))?;
        }
    }
    Ok(())
}

fn kind_label(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Module => "module",
        ImageKind::Volume => "volume",
    }
}

fn table(images: &[ListedImage], now: Timestamp) -> String {
    let head = ["IMAGE", "DIGEST", "SIZE", "KIND", "READY", "CREATED", "LAST USED"].map(str::to_owned).to_vec();
    let ago = |at: Option<Timestamp>| at.map_or_else(|| "<unknown>".into(), |at| age(now.duration_since(at).as_secs()));
    let row = |image: &ListedImage| {
        let digest = image.image_id.rsplit_once("sha256:").map_or("", |(_, hex)| hex);
        let used = if image.in_use { "in use".into() } else { ago(image.last_used_at) };
        vec![
            image.name.clone(),
            digest.chars().take(DIGEST_CHARS).collect(),
            size(image.size_bytes),
            kind_label(image.kind).into(),
            if image.prepared { "yes" } else { "no" }.into(),
            ago(image.created_at),
            used,
        ]
    };
    columns(&[head].into_iter().chain(images.iter().map(row)).collect::<Vec<_>>())
}

fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..1_000_000 => format!("{:.1}kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}MB", bytes as f64 / 1e6),
        _ => format!("{:.1}GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_table() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| Some(Timestamp::from_second(1_000_000 - seconds).unwrap());
        let image = |name: &str, kind, in_use, used| ListedImage {
            name: name.into(),
            image_id: format!("a.io/b@sha256:{}", "0123456789abcdef".repeat(4)),
            size_bytes: 1_234_567,
            kind,
            prepared: in_use,
            in_use,
            created_at: at(7200),
            last_used_at: used,
        };
        let all =
            [image("a.io/b:v1", ImageKind::Module, true, at(0)), image("c", ImageKind::Volume, false, at(200_000))];
        let wanted = "IMAGE       DIGEST         SIZE    KIND     READY   CREATED   LAST USED\n\
                      a.io/b:v1   0123456789ab   1.2MB   module   yes     2h        in use\n\
                      c           0123456789ab   1.2MB   volume   no      2h        2d\n";
        assert_eq!(table(&all, now), wanted);
        assert_eq!(["999B", "1.0kB", "1.0GB"], [size(999), size(1000), size(1_000_000_000)]);
        assert_eq!(age(-5), "0s");
    }
}
