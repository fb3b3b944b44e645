//! Addresses of names, by the pod's own DNS settings.

use std::net::IpAddr;

use machinery_serve::net::DialError;
use runtime_api::ledger::Resource;

use crate::limits::LOOKUP_TIMEOUT;
use crate::{SocketContext, SocketError};

/// Maximum length of a DNS name, with its dot (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 254;

/// The addresses of a name in order of preference; of an address itself.
///
/// # Errors
/// If the name is none, doesn't exist, or isn't answered in time; if the container's lookups and connections are used up.
pub async fn lookup(context: SocketContext, name: String) -> Result<Vec<IpAddr>, SocketError> {
    if let Ok(ip) = name.parse() {
        return Ok(vec![ip]);
    }
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_name) {
        return Err(SocketError::InvalidArgument);
    }
    let exceeded = |_| SocketError::TemporaryResolverFailure;
    let _held = context.ledger.hold(Resource::Connections, 1).map_err(exceeded)?;
    match context.env.timeout(LOOKUP_TIMEOUT, context.dial.resolve(&context.caller, &name)).await {
        Ok(Ok(resolved)) if resolved.addresses.is_empty() => Err(SocketError::NameUnresolvable),
        Ok(Ok(resolved)) => Ok(resolved.addresses),
        Ok(Err(DialError::NameNotFound(_))) => Err(SocketError::NameUnresolvable),
        Ok(Err(DialError::Denied(_))) => Err(SocketError::AccessDenied),
        Ok(Err(_)) | Err(_) => Err(SocketError::TemporaryResolverFailure),
    }
}
