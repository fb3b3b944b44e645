//! Keys are types: what stands where in a storage key, an object's name or an `apiVersion` is known in one file. A second place
//! that takes them apart is one that is wrong for the next name with an odd character in it.

use super::check;
use super::shipped::shipped_files;

/// Where keys are read and written; their home is `machinery/api/src/key/`.
const FOLDERS: &[&str] = &[
    "apiserver/storage/src/",
    "apiserver/admission/src/",
    "apiserver/auth/src/",
    "apiserver/server/src/bootstrap/",
    "apiserver/catalog/src/",
    "apiserver/server/src/registry/",
    "apiserver/server/src/server.rs",
    "apiserver/webhook/src/",
    "controllers/src/",
    "apiserver/schema/src/",
    "machinery/client/src/",
    "scheduler/src/",
];

/// What takes a key apart, or puts one together.
const SIGNS: &[&str] = &["split('/')", "split_once('/')", "matches('/')", "match_indices('/')", "}/{", "\"/registry"];

/// Files with such lines, a part of each line, and what it is about, which is no key.
const OTHERS: &[(&str, &str, &str)] = &[
    ("apiserver/admission/src/matching.rs", "resource.split_once", "a rule's resource and subresource"),
    ("apiserver/admission/src/node_restriction.rs", "label.split_once", "a label's domain"),
    ("apiserver/auth/src/attributes.rs", "request.subresource", "a resource and subresource as rules name them"),
    ("apiserver/auth/src/impersonate.rs", "domain, path", "the domain of a header's key"),
    ("apiserver/auth/src/rbac.rs", "go_quoted(&format!", "a sentence of upstream's"),
    ("apiserver/auth/src/rules.rs", "split_once", "a rule's resource and subresource"),
    ("apiserver/auth/src/tokens.rs", "has been", "a sentence of upstream's"),
    ("apiserver/server/src/bootstrap/cidr_migration.rs", "text.split_once", "a block of addresses"),
    ("apiserver/server/src/bootstrap/cidr_migration.rs", "self.address(", "a block of addresses"),
    ("apiserver/catalog/src/discovery.rs", "std::env::consts::OS", "a platform"),
    ("apiserver/catalog/src/discovery.rs", "subresource.name", "a subresource as discovery names it"),
    ("apiserver/catalog/src/discovery.rs", "Sha256::digest", "a hash of a kind's names"),
    ("apiserver/catalog/src/openapi.rs", "apis/{group}", "a path"),
    ("apiserver/catalog/src/operations.rs", "{root}/", "a path"),
    ("apiserver/catalog/src/operations.rs", "{within}/", "a path"),
    ("apiserver/server/src/registry/body.rs", "pointer.rsplit_once", "a pointer into JSON"),
    ("apiserver/server/src/registry/page.rs", "start.split", "a client's token, refused as upstream refuses it"),
    ("apiserver/webhook/src/client.rs", "path.trim_matches", "a path"),
    ("apiserver/storage/src/options.rs", "", "the prefix of keys, as the flag has it"),
    ("controllers/src/garbage_collector.rs", "ownerRef [{}/{}", "a sentence of upstream's"),
    ("controllers/src/podautoscaler/compute.rs", "unable to get", "a sentence of upstream's"),
    ("controllers/src/podautoscaler/metrics.rs", "", "paths of requests"),
    ("controllers/src/scale.rs", "", "paths of requests"),
    ("apiserver/schema/src/apply/patch.rs", "text(\"namespace\")", "a sentence of upstream's"),
    ("apiserver/schema/src/patch/json.rs", "path.split", "a pointer into JSON"),
    ("machinery/client/src/object.rs", "", "paths of requests"),
    ("machinery/client/src/request.rs", "{subresource}", "a path"),
    ("machinery/client/src/simulate/patch.rs", "path.rsplit_once", "a pointer into JSON"),
    ("scheduler/src/configuration/extenders.rs", "name.split_once", "a resource's domain"),
    ("scheduler/src/extender/client.rs", "url_prefix", "a path"),
];

#[test]
fn keys_are_taken_apart_at_home() {
    let mut problems = Vec::new();
    let mut used = vec![false; OTHERS.len()];
    for (path, text) in shipped_files() {
        let concerns = FOLDERS.iter().any(|folder| path.starts_with(folder));
        if !concerns {
            continue;
        }
        for line in text.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign))) {
            match OTHERS.iter().position(|(file, part, _)| *file == path && line.contains(part)) {
                Some(at) => used[at] = true,
                None => problems.push(format!("{path}: {}; keys are types (machinery/api/src/key/)", line.trim())),
            }
        }
    }
    let unused = OTHERS.iter().zip(used).filter(|(_, used)| !used);
    problems
        .extend(unused.map(|((file, part, _), _)| format!("{file} {part:?} is an exception that is no longer needed")));
    check(&problems);
}
