//! The folders of the services that the packages install (docs/install.md), for messages that name the next step.

use std::path::{Path, PathBuf};

/// Parent of the services' data folders.
const STATE: &str = "/var/lib/coracle";
/// Folders below it that a cluster or a node runs in, and their units.
const UNITS: [(&str, &str); 3] = [("up", "coracle"), ("server", "coracle-server"), ("node", "coracle-node")];

/// The systemd unit of a data folder.
pub fn unit_of(folder: &Path) -> Option<&'static str> {
    let name = folder.strip_prefix(STATE).ok()?;
    UNITS.iter().find(|(folder, _)| name == Path::new(folder)).map(|(_, unit)| *unit)
}

/// Says that no cluster has run in a folder, and what to do.
pub fn no_cluster(folder: &Path) -> String {
    no_cluster_but(folder, other_service(folder).as_deref())
}

/// The data folder of a service of this machine, other than `folder`.
pub fn other_service(folder: &Path) -> Option<PathBuf> {
    let mut services = UNITS.iter().map(|(name, _)| Path::new(STATE).join(name));
    services.find(|service| service != folder && service.exists())
}

fn no_cluster_but(folder: &Path, service: Option<&Path>) -> String {
    let of_service = service.map(|service| {
        let service = service.display();
        format!("; that of this machine's service is in {service}: `sudo coracle … --data-dir {service}`")
    });
    let folder = folder.display();
    let of_service = of_service.unwrap_or_default();
    format!(
        "no cluster has run in {folder}: start one with `coracle up`, or name its folder with --data-dir{of_service}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_services_have_units() {
        assert_eq!(unit_of(Path::new("/var/lib/coracle/up")), Some("coracle"));
        assert_eq!(unit_of(Path::new("/var/lib/coracle/node")), Some("coracle-node"));
        assert_eq!(unit_of(Path::new("/var/lib/coracle/up/store")), None);
        assert_eq!(unit_of(Path::new("/srv/up")), None);
    }

    #[test]
    fn the_folder_of_a_service_is_named() {
        let text = no_cluster_but(Path::new("/home/ada/c"), Some(Path::new("/var/lib/coracle/up")));
        assert!(text.starts_with("no cluster has run in /home/ada/c: start one with `coracle up`"), "{text}");
        assert!(text.ends_with("`sudo coracle … --data-dir /var/lib/coracle/up`"), "{text}");
        assert!(no_cluster_but(Path::new("/c"), None).ends_with("with --data-dir"));
    }
}
