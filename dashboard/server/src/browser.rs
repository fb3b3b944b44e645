//! Opens the dashboard in the user's browser. The address has a secret, and command lines are visible to all users of a
//! machine: the browser opens a private file that leads to the address.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use machinery_env::Env;
use machinery_env::child_process::cluster_variables;
use tempfile::TempDir;
use tokio::process::Command;

/// Time in which a program reports that it found no browser. Some of them run as long as the browser.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The program that opens a file, and its first arguments.
const OPENER: (&str, &[&str]) = if cfg!(target_os = "macos") {
    ("open", &[])
} else if cfg!(windows) {
    ("rundll32", &["url.dll,FileProtocolHandler"])
} else {
    ("xdg-open", &[])
};

/// A page that leads to an address. The file is removed when this is dropped.
#[derive(Debug)]
pub struct RedirectPage {
    file: PathBuf,
    _folder: TempDir,
}

impl RedirectPage {
    /// Writes the page for `address`, readable by this user alone.
    ///
    /// # Errors
    /// If the folder for temporary files can't be written.
    pub fn write(address: &str) -> anyhow::Result<Self> {
        let failed = "cannot write the page that opens the dashboard";
        let mut private = tempfile::Builder::new();
        private.prefix("coracle-dashboard-");
        #[cfg(unix)]
        private.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let folder = private.tempdir().context(failed)?;
        let file = folder.path().join("open.html");
        // NamedTempFile has mode 0600.
        let mut page = tempfile::NamedTempFile::new_in(folder.path()).context(failed)?;
        let text = format!(
            "<!doctype html>\n<meta charset=\"utf-8\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
             <meta http-equiv=\"refresh\" content=\"0; url={address}\">\n<title>Coracle</title>\n\
             <a href=\"{address}\">Open the dashboard</a>\n"
        );
        page.write_all(text.as_bytes()).context(failed)?;
        page.persist(&file).context(failed)?;
        Ok(Self { file, _folder: folder })
    }

    /// Opens the page.
    ///
    /// # Errors
    /// Why no browser opened it.
    pub async fn open(&self, env: &Env) -> Result<(), String> {
        let (program, arguments) = OPENER;
        run(env, program, arguments, &self.file).await
    }
}

async fn run(env: &Env, program: &str, arguments: &[&str], file: &Path) -> Result<(), String> {
    let mut command = Command::new(program);
    for name in cluster_variables() {
        command.env_remove(name);
    }
    command.args(arguments).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    match env.timeout(REPORT_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) if !status.success() => Err(format!("{program} found no browser ({status})")),
        Ok(Err(error)) => Err(format!("{program}: {error}")),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_private_and_goes_with_its_owner() {
        let page = RedirectPage::write("http://127.0.0.1:1/dashboard/#token=abc").unwrap();
        let text = std::fs::read_to_string(&page.file).unwrap();
        assert!(text.contains("url=http://127.0.0.1:1/dashboard/#token=abc\""), "{text}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&page.file), mode(page.file.parent().unwrap())), (0o600, 0o700));
        }
        let file = page.file.clone();
        drop(page);
        assert!(!file.exists());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_program_that_fails_or_is_missing_is_reported() {
        let env = Env::real();
        let file = Path::new("/none");
        assert_eq!(run(&env, "true", &[], file).await, Ok(()));
        assert!(run(&env, "false", &[], file).await.unwrap_err().contains("found no browser"));
        assert!(run(&env, "/none/opener", &[], file).await.unwrap_err().contains("No such file"));
    }
}
