//! Patch: applied to the object as it is at the moment of the write.

use machinery::api::ApiError;
use serde_json::Value;

use super::object;
use super::options::WriteOptions;
use super::update::Manner;
use super::{Answer, Call, PatchType, Verbs, body};

impl Verbs {
    /// Patches the object of the path.
    pub async fn patch(
        &self,
        call: &mut Call<'_>,
        kind: PatchType,
        patch: &[u8],
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let (row, name) = (call.row, call.name.to_owned());
        let namespace = call.object_namespace().to_owned();
        let mut make = |current: Option<&Value>, warnings: &mut Vec<String>| {
            let Some(current) = current else { return Err(ApiError::NotFound(Default::default(), name.clone())) };
            let mut new = body::patched(row, kind, patch, current, options.field_validation, warnings)?;
            object::match_namespace(&mut new, &namespace)?;
            object::match_name(&new, &name)?;
            object::dedup_owners(&mut new, warnings, true);
            Ok(new)
        };
        self.change(call, &mut make, Manner::Patch, options).await
    }
}
