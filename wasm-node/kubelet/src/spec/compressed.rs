//! Objects that are rarely read and long kept: serialized while unused, in a fraction of the memory of k8s-openapi's
//! types, and compressed together with others of their kind after a while.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use machinery_api::packed::{Packed, Packer};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The packing rounds that try a text: not the first, and a few after, as the packer learns the texts of a kind over time.
const PACKED_IN: RangeInclusive<u8> = 2..=4;

/// One object. [`Compressed::compress`] serializes it; [`Compressed::get`] deserializes it, and shares it between readers.
#[derive(Debug)]
pub(crate) struct Compressed<T> {
    form: Mutex<Form<T>>,
}

#[derive(Debug)]
enum Form<T> {
    Whole(Arc<T>),
    /// The serialized object, the last deserialized one while a reader holds it, and the number of packing rounds.
    Text(Box<[u8]>, Weak<T>, u8),
    /// The packed text, and the last deserialized object.
    Packed(Packed, Weak<T>),
}

impl<T> From<Arc<T>> for Compressed<T> {
    fn from(object: Arc<T>) -> Self {
        Self { form: Mutex::new(Form::Whole(object)) }
    }
}

impl<T> From<T> for Compressed<T> {
    fn from(object: T) -> Self {
        Arc::new(object).into()
    }
}

impl<T: Default> Default for Compressed<T> {
    fn default() -> Self {
        T::default().into()
    }
}

impl<T> Compressed<T> {
    fn form(&self) -> MutexGuard<'_, Form<T>> {
        self.form.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Serialize + DeserializeOwned> Compressed<T> {
    /// The object. A caller with several reads should hold it, as each call may deserialize it.
    ///
    /// # Panics
    /// The serialized object can't be deserialized: a defect of `T`.
    pub(crate) fn get(&self) -> Arc<T> {
        let mut form = self.form();
        match &mut *form {
            Form::Whole(object) => object.clone(),
            Form::Text(text, borrowed, rounds) => {
                *rounds = 0;
                borrowed.upgrade().unwrap_or_else(|| read(text, borrowed))
            }
            Form::Packed(packed, borrowed) => borrowed.upgrade().unwrap_or_else(|| read(&packed.text(), borrowed)),
        }
    }

    /// The object for a periodic reader, such as a scrape of metrics: other than [`Compressed::get`], the call doesn't
    /// postpone packing, and allocates nothing that outlives the returned object.
    pub(crate) fn peek(&self) -> Arc<T> {
        match &*self.form() {
            Form::Whole(object) => object.clone(),
            Form::Text(text, borrowed, _) => borrowed.upgrade().unwrap_or_else(|| read(text, &mut Weak::new())),
            Form::Packed(packed, borrowed) => {
                borrowed.upgrade().unwrap_or_else(|| read(&packed.text(), &mut Weak::new()))
            }
        }
    }

    /// Whether both objects are equal.
    pub(crate) fn same(self: &Arc<Self>, other: &Arc<Self>) -> bool
    where
        T: PartialEq,
    {
        Arc::ptr_eq(self, other) || *self.get() == *other.get()
    }

    /// Frees the allocation of a dropped object, which a `Weak` would hold.
    pub(crate) fn settle(&self) {
        if let Form::Text(_, borrowed, _) | Form::Packed(_, borrowed) = &mut *self.form()
            && borrowed.strong_count() == 0
        {
            *borrowed = Weak::new();
        }
    }

    /// Replaces the object by its serialized form.
    pub(crate) fn compress(&self) {
        let mut form = self.form();
        if let Form::Whole(object) = &*form
            && let Ok(text) = serde_json::to_vec(&**object)
        {
            let borrowed = Arc::downgrade(object);
            *form = Form::Text(text.into(), borrowed, 0);
        }
        drop(form);
        self.settle();
    }

    /// A packing round: packs a text that was not read since the last round. Returns whether it did.
    pub(crate) fn pack(&self, packer: &mut Packer) -> bool {
        let mut form = self.form();
        let Form::Text(text, borrowed, rounds) = &mut *form else { return false };
        *rounds = rounds.saturating_add(1);
        if !PACKED_IN.contains(rounds) {
            return false;
        }
        let Some(packed) = packer.pack(text) else { return false };
        *form = Form::Packed(packed, std::mem::take(borrowed));
        true
    }
}

/// Deserializes the object, and remembers it while a reader holds it.
fn read<T: DeserializeOwned>(text: &[u8], borrowed: &mut Weak<T>) -> Arc<T> {
    let object = Arc::new(serde_json::from_slice(text).expect("a serialized object can be deserialized"));
    *borrowed = Arc::downgrade(&object);
    object
}

/// The decompressed object of a worker's step, held from its first use to the end of the step.
#[derive(Debug)]
pub(crate) struct Decompressed<T>(OnceLock<Arc<T>>);

impl<T> Default for Decompressed<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T: Serialize + DeserializeOwned> Decompressed<T> {
    pub(crate) fn get(&self, object: &Compressed<T>) -> &Arc<T> {
        self.0.get_or_init(|| object.get())
    }

    /// Drops the object. Returns whether it was used.
    pub(crate) fn clear(&mut self) -> bool {
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
    fn a_compressed_spec_decompresses_equally() {
        let object = Compressed::from(pod());
        object.compress();
        assert_eq!(*object.get(), pod());
        object.compress();
        assert_eq!(*object.get(), pod());
    }

    #[test]
    fn unused_specs_are_compressed_in_the_second_round() {
        let mut packer = Packer::default();
        let objects: Vec<_> = (0..4).map(|_| Compressed::from(pod())).collect();
        assert!(!objects[0].pack(&mut packer), "it is in use");
        objects.iter().for_each(Compressed::compress);
        assert!(objects.iter().all(|object| !object.pack(&mut packer)), "it may be looked at again");
        assert_eq!(*objects[3].get(), pod());
        let packed: Vec<_> = objects.iter().map(|object| object.pack(&mut packer)).collect();
        assert_eq!(packed[1..], [true, true, false], "the last one was looked at");
        let alone = Compressed::from(pod());
        alone.compress();
        assert!((0..9).all(|_| !alone.pack(&mut Packer::default())), "what nothing else is like");
        assert!(!alone.pack(&mut packer), "and it is tried no more");
        let held = objects[1].get();
        assert_eq!(*held, pod());
        assert!(Arc::ptr_eq(&held, &objects[1].get()));
        objects[1].compress();
        drop(held);
        objects[1].settle();
        assert_eq!(*objects[1].get(), pod());
    }

    #[test]
    fn a_peek_postpones_no_packing_and_keeps_nothing() {
        let mut packer = Packer::default();
        let objects: Vec<_> = (0..4).map(|_| Compressed::from(pod())).collect();
        objects.iter().for_each(Compressed::compress);
        assert!(objects.iter().all(|object| !object.pack(&mut packer)));
        assert_eq!(*objects[3].peek(), pod());
        let packed: Vec<_> = objects.iter().map(|object| object.pack(&mut packer)).collect();
        assert_eq!(packed[1..], [true, true, true]);
        let borrowed = Arc::downgrade(&objects[3].peek());
        assert!(borrowed.upgrade().is_none());
        let held = objects[3].get();
        assert!(Arc::ptr_eq(&held, &objects[3].peek()));
    }

    #[test]
    fn a_compressed_spec_is_read_once_for_all_users_and_not_kept() {
        let object = Compressed::from(pod());
        let before = object.get();
        object.compress();
        assert!(Arc::ptr_eq(&before, &object.get()), "somebody still has it");
        drop(before);
        let (first, second) = (object.get(), object.get());
        assert!(Arc::ptr_eq(&first, &second));
        let borrowed = Arc::downgrade(&first);
        drop((first, second));
        assert!(borrowed.upgrade().is_none());
    }
}
