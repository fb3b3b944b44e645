//! The number of stacks that an instance of a WASI 0.3 component may hold at once.
//!
//! A task that waits within a call keeps its stack. A component instance runs one such task at a time, so a component of
//! components may hold a stack for each of them, and one more runs the next task. The pool's stacks are shared by all
//! containers: an instance is admitted with the number that it may ever hold, so that no guest can take another's.

use std::path::Path;

use wasmparser::{ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentTypeRef, Parser, Payload};

use super::load::CodeKind;
use super::settings::CONCURRENT_STACKS_PER_LIVE;
use runtime_api::LoadError;

/// Maximum component instances of a WASI 0.3 component: compositions have a handful each of their parts.
const COMPONENT_INSTANCES_MAX: u32 = 64;

/// Slots of the pool that an instance of the component in this file takes.
///
/// # Errors
/// The file can't be read, or it has more component instances than a pool is for.
pub(super) async fn pool_instances(file: &Path) -> Result<u32, LoadError> {
    let bytes = tokio::fs::read(file).await.map_err(LoadError::io("reading the module"))?;
    let instances = component_instances(&bytes)?;
    if instances > COMPONENT_INSTANCES_MAX {
        return Err(LoadError::Unfit(format!(
            "a component of WASI 0.3 may have {COMPONENT_INSTANCES_MAX} component instances, which nothing raises; this one may \
             have {instances}"
        )));
    }
    Ok((instances + 1).div_ceil(CONCURRENT_STACKS_PER_LIVE))
}

/// An upper bound of the component instances of one instance of a component, itself included. A target of an instantiation is
/// a component that ends before it in the file, so each counts as the largest of them. A target that is an argument may be any
/// component: the bound is the maximum then.
fn component_instances(bytes: &[u8]) -> Result<u32, LoadError> {
    let invalid = |error: wasmparser::BinaryReaderError| LoadError::Invalid(error.to_string());
    // Of the open components from the outermost one; `None`: a core module.
    let mut open: Vec<Option<u32>> = Vec::new();
    let (mut largest, mut outermost) = (1_u32, 1_u32);
    if CodeKind::of(bytes)? == CodeKind::Module {
        return Ok(outermost);
    }
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(invalid)? {
            Payload::Version { encoding, .. } => {
                open.push((encoding == wasmparser::Encoding::Component).then_some(1));
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    if let ComponentInstance::Instantiate { .. } = instance.map_err(invalid)?
                        && let Some(Some(count)) = open.last_mut()
                    {
                        *count = count.saturating_add(largest);
                    }
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    if matches!(import.map_err(invalid)?.ty, ComponentTypeRef::Component(_)) {
                        return Ok(u32::MAX);
                    }
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    if let ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } =
                        alias.map_err(invalid)?
                    {
                        return Ok(u32::MAX);
                    }
                }
            }
            Payload::End(_) => {
                if let Some(Some(count)) = open.pop() {
                    largest = largest.max(count);
                    outermost = count;
                }
            }
            _ => {}
        }
    }
    Ok(outermost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> u32 {
        component_instances(&wat::parse_str(text).unwrap()).unwrap()
    }

    #[test]
    fn instances_of_components_are_counted_with_those_within() {
        assert_eq!(count("(module)"), 1);
        assert_eq!(count("(component)"), 1);
        assert_eq!(count("(component (component $a) (instance (instantiate $a)) (instance (instantiate $a)))"), 3);
        let nested = "(component
            (component $a (component $b) (instance (instantiate $b)))
            (instance (instantiate $a)) (instance (export \"x\" (instance 0))))";
        assert_eq!(count(nested), 3);
    }

    #[test]
    fn a_component_as_an_argument_counts_as_the_largest() {
        assert_eq!(count("(component (import \"c\" (component $c)) (instance (instantiate $c)))"), u32::MAX);
        let within =
            "(component (import \"i\" (instance $i (export \"c\" (component)))) (alias export $i \"c\" (component)))";
        assert_eq!(count(within), u32::MAX);
    }

    /// Each component has two instances of the one before: doubling by one line of text.
    #[test]
    fn a_bomb_of_instances_is_counted_without_overflow() {
        let level = |n: usize| {
            format!(
                "(component $c{} (alias outer 1 $c{n} (component $p)) (instance (instantiate $p)) (instance (instantiate $p)))",
                n + 1
            )
        };
        let levels: String = (0..40).map(level).collect();
        assert_eq!(count(&format!("(component (component $c0) {levels} (instance (instantiate $c40)))")), u32::MAX);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = component_instances(&[b"\0asm\x0d\0\x01\0", &bytes[..]].concat());
        }
    }
}
