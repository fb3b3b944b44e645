//! The authorizer library: builds an authorization check step by step. The host performs it (trait [`Authorizer`]), so
//! the crate has no authorizer of its own.

use super::{Call, Implementation};
use crate::error::EvalError;
use crate::value::{Decision, Opaque, PathCheck, Res, ResourceCheck, Value};

/// An authorization check of a path or a resource, for the requesting user or a service account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthorizationRequest {
    /// The user name of a service account; `None` for the requesting user.
    pub user: Option<String>,
    pub verb: String,
    /// A non-resource path.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: Option<String>,
    pub label_selector: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthorizationDecision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// The host's authorizer. An evaluation blocks on it, so a slow host precomputes its decisions.
pub trait Authorizer: Sync {
    fn check(&self, request: &AuthorizationRequest) -> AuthorizationDecision;
}

pub(super) fn find(function: &str) -> Option<Implementation> {
    Some(match function {
        "path" => path,
        "group" => |call| {
            let Opaque::Authorizer(user) = opaque(call)? else { return Err(EvalError::no_such_overload()) };
            let check =
                ResourceCheck { user: user.clone(), group: call.text(1)?.to_owned(), ..ResourceCheck::default() };
            Ok(Value::opaque(Opaque::GroupCheck(check)))
        },
        "serviceAccount" => service_account,
        "resource" => |call| {
            let Opaque::GroupCheck(check) = opaque(call)? else { return Err(EvalError::no_such_overload()) };
            if call.text(1)?.is_empty() {
                return Err(EvalError::new("resource must not be empty"));
            }
            let check = ResourceCheck { resource: call.text(1)?.to_owned(), ..check.clone() };
            Ok(Value::opaque(Opaque::ResourceCheck(check)))
        },
        "subresource" => |call| narrowed(call, |check, text| check.subresource = text),
        "namespace" => |call| narrowed(call, |check, text| check.namespace = text),
        "name" => |call| narrowed(call, |check, text| check.name = text),
        "fieldSelector" => |call| narrowed(call, |check, text| check.field_selector = Some(text)),
        "labelSelector" => |call| narrowed(call, |check, text| check.label_selector = Some(text)),
        "check" => check,
        "errored" => |call| Ok(Value::Bool(decision(call)?.error.is_some())),
        "error" => |call| Ok(Value::text(decision(call)?.error.clone().unwrap_or_default())),
        "allowed" => |call| Ok(Value::Bool(decision(call)?.allowed)),
        "reason" => |call| Ok(Value::text(decision(call)?.reason.clone())),
        _ => return None,
    })
}

fn opaque<'c>(call: &'c Call<'_, '_, '_>) -> Res<&'c Opaque> {
    match call.arg(0)? {
        Value::Opaque(opaque) => Ok(opaque),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn decision<'c>(call: &'c Call<'_, '_, '_>) -> Res<&'c Decision> {
    match opaque(call)? {
        Opaque::Decision(decision) => Ok(decision),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn path<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let Opaque::Authorizer(user) = opaque(call)? else { return Err(EvalError::no_such_overload()) };
    let path = call.text(1)?.trim();
    if path.is_empty() {
        return Err(EvalError::new("path must not be empty"));
    }
    Ok(Value::opaque(Opaque::PathCheck(PathCheck { user: user.clone(), path: path.to_owned() })))
}

fn service_account<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let Opaque::Authorizer(_) = opaque(call)? else { return Err(EvalError::no_such_overload()) };
    let (namespace, name) = (call.text(1)?, call.text(2)?);
    if !is_dns(name, 253) {
        return Err(EvalError::new("Invalid service account name"));
    }
    if namespace.contains('.') || !is_dns(namespace, 63) {
        return Err(EvalError::new("Invalid service account namespace"));
    }
    Ok(Value::opaque(Opaque::Authorizer(Some(format!("system:serviceaccount:{namespace}:{name}")))))
}

fn is_dns(text: &str, most: usize) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let label = |label: &str| {
        let plain = label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        plain && edge(label.bytes().next()) && edge(label.bytes().last())
    };
    text.len() <= most && text.split('.').all(label)
}

fn narrowed<'d>(call: &mut Call<'_, 'd, '_>, set: impl FnOnce(&mut ResourceCheck, String)) -> Res<Value<'d>> {
    let Opaque::ResourceCheck(check) = opaque(call)? else { return Err(EvalError::no_such_overload()) };
    let mut check = check.clone();
    set(&mut check, call.text(1)?.to_owned());
    Ok(Value::opaque(Opaque::ResourceCheck(check)))
}

fn check<'d>(call: &mut Call<'_, 'd, '_>) -> Res<Value<'d>> {
    let verb = call.text(1)?.to_owned();
    let request = match opaque(call)? {
        Opaque::PathCheck(check) => AuthorizationRequest {
            user: check.user.clone(),
            verb,
            path: Some(check.path.clone()),
            ..AuthorizationRequest::default()
        },
        Opaque::ResourceCheck(check) => {
            let check = check.clone();
            AuthorizationRequest {
                user: check.user,
                verb,
                path: None,
                group: check.group,
                resource: check.resource,
                subresource: check.subresource,
                namespace: check.namespace,
                name: check.name,
                field_selector: check.field_selector,
                label_selector: check.label_selector,
            }
        }
        _ => return Err(EvalError::no_such_overload()),
    };
    let decided = match call.authorizer {
        Some(authorizer) => authorizer.check(&request),
        None => AuthorizationDecision { error: Some("no authorizer".to_owned()), ..AuthorizationDecision::default() },
    };
    let AuthorizationDecision { allowed, reason, error } = decided;
    Ok(Value::opaque(Opaque::Decision(Decision { allowed, reason, error })))
}
