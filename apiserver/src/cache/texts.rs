//! A few short texts in one allocation: there are a dozen with every object, and an allocation each would outweigh them.

/// Texts one behind the other, each after its length: `3:app5:hello`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Texts(Box<str>);

impl<T: AsRef<str>> FromIterator<T> for Texts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut all = String::new();
        for text in texts {
            let text = text.as_ref();
            all.push_str(&text.len().to_string());
            all.push(':');
            all.push_str(text);
        }
        Self(all.into_boxed_str())
    }
}

impl Texts {
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (length, after) = rest.split_once(':')?;
            let (text, more) = after.split_at_checked(length.parse().ok()?)?;
            rest = more;
            Some(text)
        })
    }

    /// Every two texts as name and value.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.iter();
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn what_goes_in_comes_out(texts in proptest::collection::vec(".{0,20}|[0-9:]{0,6}", 0..6)) {
            let packed: Texts = texts.iter().collect();
            proptest::prop_assert_eq!(packed.iter().collect::<Vec<_>>(), texts);
        }
    }
}
