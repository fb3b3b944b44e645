//! The kubeconfig of a verb.

use std::path::{Path, PathBuf};

use kube::Config;
use kube::config::{KubeConfigOptions, KubeconfigError};
use machinery_client::{ClientError, read_kubeconfig};
use tools_command::data_dir::DataDir;
use tools_command::environment::paths_of;
use tools_command::packaged;

/// Why a kubeconfig can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeconfigSourceError {
    /// A file that this program has the path of.
    #[error(transparent)]
    File(#[from] ClientError),
    /// Those that kubectl uses.
    #[error(transparent)]
    Kubectl(#[from] KubeconfigError),
}

/// Where a kubeconfig is.
#[derive(Debug, Clone)]
pub enum KubeconfigSource {
    /// The file in a data folder: the server is of this machine.
    Folder(PathBuf),
    /// Another file.
    File(PathBuf),
    /// The files in the variable KUBECONFIG, else kubectl's default.
    Variable,
}

impl KubeconfigSource {
    /// The file of a flag, else that of the data folder, else those that kubectl uses.
    ///
    /// # Errors
    /// If there is none.
    pub fn choose(flag: Option<&Path>, data: &DataDir) -> anyhow::Result<Self> {
        let of_home = || directories::BaseDirs::new().is_some_and(|dirs| dirs.home_dir().join(".kube/config").exists());
        let has_kubectls = !paths_of("KUBECONFIG").is_empty() || of_home();
        match flag {
            Some(file) => Ok(Self::File(file.to_owned())),
            None if data.kubeconfig().exists() => Ok(Self::Folder(data.kubeconfig())),
            None if has_kubectls => Ok(Self::Variable),
            None => anyhow::bail!("{}, or a kubeconfig with --kubeconfig", packaged::no_cluster(data.path())),
        }
    }
    /// Reads it: the address and credentials of its current context. A program that makes credentials blocks its thread.
    ///
    /// # Errors
    /// If there is no such file, or it can't be used.
    pub(crate) async fn read(self) -> Result<Config, KubeconfigSourceError> {
        match self {
            Self::Folder(file) => {
                let mut config = read_kubeconfig(file).await?;
                // The server is local: no proxy.
                config.proxy_url = None;
                Ok(config)
            }
            Self::File(file) => Ok(read_kubeconfig(file).await?),
            Self::Variable => Ok(Config::from_kubeconfig(&KubeConfigOptions::default()).await?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_precedes_the_data_folder() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().to_owned());
        std::fs::write(data.kubeconfig(), "").unwrap();
        let of = |flag: Option<&str>| format!("{:?}", KubeconfigSource::choose(flag.map(Path::new), &data).unwrap());
        assert!(of(Some("/other")).starts_with("File(") && of(None).starts_with("Folder("));
    }
}
