//! Resolves the parameter objects that a binding supplies to its policy.

use std::sync::Arc;

use machinery_api::GroupVersion;
use machinery_api::selector::LabelSelector;
use serde_json::Value;

use super::compile::{Binding, Policy};
use crate::Context;
use apiserver_catalog::Catalog;

/// Returns the parameters, one per invocation of the policy. A policy without parameters gets a single null.
pub(super) fn collect(
    policy: &Policy,
    binding: &Binding,
    context: &Context<'_>,
    catalog: &Catalog,
) -> Result<Vec<Arc<Value>>, String> {
    let Some((api_version, kind)) = &policy.param_kind else { return Ok(vec![Arc::default()]) };
    let reference = &binding.params;
    if reference.is_null() {
        return Ok(vec![Arc::default()]);
    }
    let GroupVersion { group, version } = GroupVersion::parse(api_version);
    let served = catalog
        .resources()
        .iter()
        .find(|row| &*row.group == group && &*row.version == version && &*row.kind == kind && row.prefix.is_some());
    let row = served
        .ok_or_else(|| format!("paramKind kind `&ParamKind{{APIVersion:{api_version},Kind:{kind},}}` not known"))?;
    let given = reference["namespace"].as_str().unwrap_or_default();
    let namespace = match (row.namespaced, given, context.request.namespace) {
        (false, "", _) => "",
        (false, ..) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
        (true, "", "") => {
            let why = "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.into());
        }
        (true, "", own) => own,
        (true, given, _) => given,
    };
    let stored = row.stored();
    let (group, plural) = (&*stored.group, &*stored.plural);
    let found = match reference["name"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => context.objects.get(group, plural, namespace, name).into_iter().collect(),
        None => {
            let selector =
                LabelSelector::from_value(Some(&reference["selector"])).map_err(|error| error.to_string())?;
            let within = row.namespaced.then_some(namespace);
            let mut all = context.objects.list(group, plural, within);
            all.retain(|object| selector.matches_object(object));
            all
        }
    };
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found)
}
