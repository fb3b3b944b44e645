//! Objects that are looked at seldom and kept for long: as their text while nobody looks, which takes a small part of the memory
//! of k8s-openapi's types, and packed beside others of their kind once nobody has looked for a while.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use machinery_api::packed::{Packed, Packer};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The rounds of packing in which a text is tried: not at once, and a few times, as what the first of a kind are like is known later.
const PACKED_IN: RangeInclusive<u8> = 2..=4;

/// One object. [`Resting::rest`] turns it into its text, from which [`Resting::get`] reads it for as long as somebody has it.
#[derive(Debug)]
pub(crate) struct Resting<T> {
    form: Mutex<Form<T>>,
}

#[derive(Debug)]
enum Form<T> {
    Whole(Arc<T>),
    /// What was read of it last, while somebody has it; for how many rounds of packing it has lain here.
    Text(Box<[u8]>, Weak<T>, u8),
    /// The same.
    Packed(Packed, Weak<T>),
}

impl<T> From<Arc<T>> for Resting<T> {
    fn from(object: Arc<T>) -> Self {
        Self { form: Mutex::new(Form::Whole(object)) }
    }
}

impl<T> From<T> for Resting<T> {
    fn from(object: T) -> Self {
        Arc::new(object).into()
    }
}

impl<T: Default> Default for Resting<T> {
    fn default() -> Self {
        T::default().into()
    }
}

impl<T> Resting<T> {
    fn form(&self) -> MutexGuard<'_, Form<T>> {
        self.form.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Serialize + DeserializeOwned> Resting<T> {
    /// The object. Who asks several times keeps it meanwhile: where it rests it is read anew.
    ///
    /// # Panics
    /// What was written as text can't be read again: a fault of `T`'s.
    pub(crate) fn get(&self) -> Arc<T> {
        let mut form = self.form();
        match &mut *form {
            Form::Whole(object) => object.clone(),
            Form::Text(text, lent, rounds) => {
                *rounds = 0;
                lent.upgrade().unwrap_or_else(|| read(text, lent))
            }
            Form::Packed(packed, lent) => lent.upgrade().unwrap_or_else(|| read(&packed.text(), lent)),
        }
    }

    /// Whether both say the same.
    pub(crate) fn same(self: &Arc<Self>, other: &Arc<Self>) -> bool
    where
        T: PartialEq,
    {
        Arc::ptr_eq(self, other) || *self.get() == *other.get()
    }

    /// Lets go of what was lent and given back, whose room would be held otherwise.
    pub(crate) fn settle(&self) {
        if let Form::Text(_, lent, _) | Form::Packed(_, lent) = &mut *self.form()
            && lent.strong_count() == 0
        {
            *lent = Weak::new();
        }
    }

    /// Keeps the text alone from now on.
    pub(crate) fn rest(&self) {
        let mut form = self.form();
        if let Form::Whole(object) = &*form
            && let Ok(text) = serde_json::to_vec(&**object)
        {
            let lent = Arc::downgrade(object);
            *form = Form::Text(text.into(), lent, 0);
        }
        drop(form);
        self.settle();
    }

    /// A round of packing: a text that nobody has read since the one before is packed. True where it was.
    pub(crate) fn sleep(&self, packer: &mut Packer) -> bool {
        let mut form = self.form();
        let Form::Text(text, lent, rounds) = &mut *form else { return false };
        *rounds = rounds.saturating_add(1);
        if !PACKED_IN.contains(rounds) {
            return false;
        }
        let Some(packed) = packer.pack(text) else { return false };
        *form = Form::Packed(packed, std::mem::take(lent));
        true
    }
}

/// Reads the object, and keeps who has it.
fn read<T: DeserializeOwned>(text: &[u8], lent: &mut Weak<T>) -> Arc<T> {
    let object = Arc::new(serde_json::from_slice(text).expect("an object's own text is read"));
    *lent = Arc::downgrade(&object);
    object
}

/// The object that a worker looks at, kept from its first look until the turn is over.
#[derive(Debug)]
pub(crate) struct Turn<T>(OnceLock<Arc<T>>);

impl<T> Default for Turn<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T: Serialize + DeserializeOwned> Turn<T> {
    pub(crate) fn of(&self, resting: &Resting<T>) -> &Arc<T> {
        self.0.get_or_init(|| resting.get())
    }

    /// Whether it was looked at.
    pub(crate) fn end(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {}},
            "spec": {"containers": [{"name": "c", "ports": [], "resources": {"limits": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": "http"}, "timeoutSeconds": 3}}], "volumes": [{"name": "v", "emptyDir": {}}]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}]},
        }))
        .unwrap()
    }

    #[test]
    fn what_rests_is_the_same_again() {
        let resting = Resting::from(pod());
        resting.rest();
        assert_eq!(*resting.get(), pod());
        resting.rest();
        assert_eq!(*resting.get(), pod());
    }

    #[test]
    fn what_nobody_looks_at_is_packed_in_the_second_round() {
        let mut packer = Packer::default();
        let resting: Vec<_> = (0..4).map(|_| Resting::from(pod())).collect();
        assert!(!resting[0].sleep(&mut packer), "it is in use");
        resting.iter().for_each(Resting::rest);
        assert!(resting.iter().all(|resting| !resting.sleep(&mut packer)), "it may be looked at again");
        assert_eq!(*resting[3].get(), pod());
        let slept: Vec<_> = resting.iter().map(|resting| resting.sleep(&mut packer)).collect();
        assert_eq!(slept[1..], [true, true, false], "the last one was looked at");
        let alone = Resting::from(pod());
        alone.rest();
        assert!((0..9).all(|_| !alone.sleep(&mut Packer::default())), "what nothing else is like");
        assert!(!alone.sleep(&mut packer), "and it is tried no more");
        let held = resting[1].get();
        assert_eq!(*held, pod());
        assert!(Arc::ptr_eq(&held, &resting[1].get()));
        resting[1].rest();
        drop(held);
        resting[1].settle();
        assert_eq!(*resting[1].get(), pod());
    }

    #[test]
    fn what_rests_is_read_once_for_all_who_have_it_and_not_kept() {
        let resting = Resting::from(pod());
        let before = resting.get();
        resting.rest();
        assert!(Arc::ptr_eq(&before, &resting.get()), "somebody still has it");
        drop(before);
        let (first, second) = (resting.get(), resting.get());
        assert!(Arc::ptr_eq(&first, &second));
        let lent = Arc::downgrade(&first);
        drop((first, second));
        assert!(lent.upgrade().is_none());
    }
}
