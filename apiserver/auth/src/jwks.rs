//! OpenID discovery of the token issuer, for clients that verify tokens offline.

use machinery_api::names::TOKEN_ISSUER;
use serde_json::{Value, json};

use super::jwt::SigningKey;

/// The path of the configuration.
pub const CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";
/// The path of the keys.
pub const KEYS_PATH: &str = "/openid/v1/jwks";
/// The media type of the keys (RFC 7517 §8.5.1).
pub const KEYS_MEDIA_TYPE: &str = "application/jwk-set+json";
/// The `Cache-Control` header of both documents.
pub const CACHE_CONTROL: &str = "public, max-age=3600";

/// The configuration document of an API server at `address` (`host:port`).
#[must_use]
pub fn configuration(address: &str) -> Value {
    json!({
        "issuer": TOKEN_ISSUER,
        "jwks_uri": format!("https://{address}{KEYS_PATH}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// The key document.
#[must_use]
pub fn keys(key: &SigningKey) -> Value {
    json!({"keys": [key.jwk()]})
}
