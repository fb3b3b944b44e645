//! The group `storage.k8s.io`: storage classes, drivers, and attachments.

pub(crate) mod csidrivers;
pub(crate) mod csinodes;
pub(crate) mod csistoragecapacities;
pub(crate) mod storageclasses;
pub(crate) mod volumeattachments;
pub(crate) mod volumeattributesclasses;

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::read::{entries, text};
use crate::rules;

const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 << 10;
const DRIVER_NAME_BYTES_MAX: usize = 63;

/// The name of a provisioner, in which upper case is allowed.
fn provisioner(errors: &mut ErrorList, object: &Value, key: &str) {
    let (name, at) = (text(object, key), Path::root(key));
    if name.is_empty() {
        return errors.required(&at, "");
    }
    let lower = name.to_lowercase();
    errors.invalid_each(&at, &lower, rules::label_key(&lower));
}

fn parameters(errors: &mut ErrorList, object: &Value, may_be_empty: bool) {
    const AT: Path<'static> = Path::root("parameters");
    let (mut count, mut bytes) = (0, 0);
    let list = || entries(object, "parameters");
    if list().count() > PARAMETERS_MAX {
        return errors.too_long(&AT, PARAMETERS_MAX);
    }
    for (key, value) in list() {
        count += 1;
        bytes += key.len() + value.as_str().map_or(0, str::len);
        if key.is_empty() {
            errors.invalid(&AT, "", "field can not be empty.");
        }
    }
    if bytes > PARAMETERS_BYTES_MAX {
        errors.too_long(&AT, PARAMETERS_BYTES_MAX);
    }
    if count == 0 && !may_be_empty {
        errors.required(&AT, "must contain at least one key/value pair");
    }
}

/// The name of a CSI driver, in a field that refers to one.
pub(crate) fn driver_name(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    if name.len() > DRIVER_NAME_BYTES_MAX {
        errors.too_long(path, DRIVER_NAME_BYTES_MAX);
    }
    errors.invalid_each(path, name, rules::dns_subdomain(&name.to_lowercase()));
}
