//! The optional host interfaces that a pod's annotation grants to a container. Unknown names are errors.

/// The optional interfaces that a container's annotation grants, and whether it runs the node's own toolbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    names: Vec<String>,
    toolbox: bool,
}

/// An annotation that grants unknown interfaces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node offers no optional host interface {}{}", .unknown.join(", "), offered_text(.offered))]
pub struct GrantError {
    /// Names that the runtime doesn't have.
    pub unknown: Vec<String>,
    /// Names that could be granted.
    pub offered: Vec<String>,
}

fn offered_text(names: &[String]) -> String {
    if names.is_empty() {
        " (this version has no optional ones)".into()
    } else {
        format!(" (it has {})", names.join(", "))
    }
}

impl Grants {
    /// Whether an optional interface is granted.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.names.iter().any(|granted| granted == name)
    }

    /// Parses the value of `host.coracle.dev/<container>`: comma-separated names of interfaces that the runtime offers
    /// ([`Runtime::optional_interfaces`](super::Runtime::optional_interfaces)).
    ///
    /// # Errors
    /// A name that isn't offered.
    pub fn parse(value: &str, offered: &[&str]) -> Result<Self, GrantError> {
        let names = value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
        let (mut granted, unknown): (Vec<String>, Vec<String>) =
            names.partition(|name| offered.contains(&name.as_str()));
        if !unknown.is_empty() {
            return Err(GrantError { unknown, offered: offered.iter().map(|name| (*name).to_owned()).collect() });
        }
        granted.sort_unstable();
        granted.dedup();
        Ok(Self { names: granted, toolbox: false })
    }

    /// Sets whether the program is the node's own toolbox.
    #[must_use]
    pub fn toolbox(self, is_toolbox: bool) -> Self {
        Self { toolbox: is_toolbox, ..self }
    }

    /// Whether the program is the node's own toolbox.
    #[must_use]
    pub fn is_toolbox(&self) -> bool {
        self.toolbox
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_grants_are_named() {
        let offered = ["answer"];
        assert_eq!(Grants::parse(" , ", &offered).unwrap(), Grants::default());
        let error = Grants::parse("keyvalue, blobstore", &offered).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this node offers no optional host interface keyvalue, blobstore (it has answer)"
        );
        assert!(Grants::parse("answer, answer", &offered).unwrap().contains("answer"));
        assert!(!Grants::default().contains("answer") && !Grants::parse("answer", &offered).unwrap().is_toolbox());
    }
}
