//! Values of Kubernetes' CEL libraries: quantities, URLs, addresses, versions, authorizer checks.

use std::net::IpAddr;

use machinery_api::quantity::Quantity;

/// A network: the address as written, and the prefix length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) bits: u8,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PathCheck {
    pub(crate) user: Option<String>,
    pub(crate) path: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceCheck {
    pub(crate) user: Option<String>,
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) field_selector: Option<String>,
    pub(crate) label_selector: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
    pub(crate) error: Option<String>,
}

#[derive(Clone, Debug)]
pub enum Opaque {
    Quantity(Quantity),
    Url(super::Url),
    Ip(IpAddr),
    Cidr(Cidr),
    Semver(semver::Version),
    /// A named format.
    Format(&'static str),
    /// An authorizer, and the user it decides for (`None`: the requesting user).
    Authorizer(Option<String>),
    PathCheck(PathCheck),
    /// A check of a group, until a resource is set.
    GroupCheck(ResourceCheck),
    ResourceCheck(ResourceCheck),
    Decision(Decision),
}

impl Opaque {
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Opaque::Quantity(_) => "kubernetes.Quantity",
            Opaque::Url(_) => "kubernetes.URL",
            Opaque::Ip(_) => "net.IP",
            Opaque::Cidr(_) => "net.CIDR",
            Opaque::Semver(_) => "kubernetes.Semver",
            Opaque::Format(_) => "kubernetes.NamedFormat",
            Opaque::Authorizer(_) => "kubernetes.authorization.Authorizer",
            Opaque::PathCheck(_) => "kubernetes.authorization.PathCheck",
            Opaque::GroupCheck(_) => "kubernetes.authorization.GroupCheck",
            Opaque::ResourceCheck(_) => "kubernetes.authorization.ResourceCheck",
            Opaque::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    /// The number of bytes of an address or of a network's prefix; 1 for values without a size.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Opaque::Ip(IpAddr::V4(_)) => 4,
            Opaque::Ip(_) => 16,
            Opaque::Cidr(cidr) => u64::from(cidr.bits).div_ceil(8),
            _ => 1,
        }
    }
}

impl PartialEq for Opaque {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a.cmp(b).is_eq(),
            (Opaque::Url(a), Opaque::Url(b)) => a == b,
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a), Opaque::Cidr(b)) => a == b,
            (Opaque::Semver(a), Opaque::Semver(b)) => a.cmp_precedence(b).is_eq(),
            (Opaque::Format(a), Opaque::Format(b)) => a == b,
            (Opaque::Authorizer(a), Opaque::Authorizer(b)) => a == b,
            (Opaque::PathCheck(a), Opaque::PathCheck(b)) => a == b,
            (Opaque::GroupCheck(a), Opaque::GroupCheck(b)) => a == b,
            (Opaque::ResourceCheck(a), Opaque::ResourceCheck(b)) => a == b,
            (Opaque::Decision(a), Opaque::Decision(b)) => a == b,
            _ => false,
        }
    }
}
