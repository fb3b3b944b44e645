//! The place of storage keys in a store that others use, too.

use super::StorageKey;

/// The keys below a prefix: `/registry/pods/default/web` is `/shop/pods/default/web` below `/shop`.
#[derive(Debug, Clone)]
pub struct KeySpace {
    /// Without a slash at the end.
    prefix: String,
}

impl KeySpace {
    /// The end of all keys: the slash at the end of [`StorageKey::ROOT`] is followed by this character.
    const AFTER_SLASH: &'static str = "0";

    /// Below `prefix`, which begins with a slash.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// The prefix, without a slash at the end: no key's name.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of a storage key here; none: it isn't one.
    #[must_use]
    pub fn place(&self, key: &str) -> Option<String> {
        let below = key.strip_prefix(StorageKey::ROOT).filter(|below| !below.is_empty())?;
        Some(format!("{}/{below}", self.prefix))
    }

    /// A bound of a range of storage keys here. Bounds around all keys are moved to the prefix.
    #[must_use]
    pub fn bound(&self, bound: &str) -> String {
        match bound.strip_prefix(StorageKey::ROOT) {
            Some(below) => format!("{}/{below}", self.prefix),
            None if bound < StorageKey::ROOT => format!("{}/", self.prefix),
            None => format!("{}{}", self.prefix, Self::AFTER_SLASH),
        }
    }

    /// The bounds of all keys here.
    #[must_use]
    pub fn all(&self) -> (String, String) {
        (format!("{}/", self.prefix), format!("{}{}", self.prefix, Self::AFTER_SLASH))
    }

    /// The storage key of a name here; none: it isn't below the prefix.
    #[must_use]
    pub fn key_at(&self, place: &[u8]) -> Option<String> {
        let below = std::str::from_utf8(place).ok()?.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        Some(format!("{}{below}", StorageKey::ROOT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_same_names_below_the_prefix() {
        let keys = KeySpace::new("/clusters/a/");
        assert_eq!(keys.place("/registry/pods/default/web").as_deref(), Some("/clusters/a/pods/default/web"));
        assert_eq!((keys.place("/other/pods"), keys.place("/registry/"), keys.prefix()), (None, None, "/clusters/a"));
        assert_eq!(keys.all(), ("/clusters/a/".into(), "/clusters/a0".into()));
        for bound in ["", "/", "/registry", "/registry/"] {
            assert_eq!(keys.bound(bound), "/clusters/a/", "{bound}");
        }
        for bound in ["/registry0", "0"] {
            assert_eq!(keys.bound(bound), "/clusters/a0", "{bound}");
        }
        assert_eq!(keys.bound("/registry/pods0"), "/clusters/a/pods0");
        assert_eq!(keys.key_at(b"/clusters/a/pods/default/web").as_deref(), Some("/registry/pods/default/web"));
        for foreign in [&b"/clusters/ab/pods"[..], b"/other", b"/clusters/a/\xff"] {
            assert_eq!(keys.key_at(foreign), None);
        }
    }
}
