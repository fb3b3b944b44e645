//! The name of a namespace's store. A namespace is identified by its uid, so that a recreated one finds no data of its
//! predecessor.

use runtime_api::KeyvalueOwner;

/// `NAMESPACE.UID.redb`: neither name contains a dot.
pub(crate) fn file_name(owner: &KeyvalueOwner) -> Option<String> {
    let plain = |name: &str| {
        let letters = name.bytes().all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        letters && !name.is_empty() && name.len() <= 63
    };
    (plain(&owner.namespace) && plain(&owner.uid)).then(|| format!("{}.{}.redb", owner.namespace, owner.uid))
}

/// The owner of a file.
pub(crate) fn owner(file_name: &str) -> Option<KeyvalueOwner> {
    let (namespace, uid) = file_name.strip_suffix(".redb")?.split_once('.')?;
    let owner = KeyvalueOwner { namespace: namespace.into(), uid: uid.into(), cluster: None };
    self::file_name(&owner).map(|_| owner)
}
