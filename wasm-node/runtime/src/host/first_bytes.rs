//! The prefix of a guest's `list<u8>`, up to a maximum per call. The rest is never copied, so a long list is a short
//! write, where wasmtime's own lists trap at the bound on copied bytes.

use wasmtime::component::__internal::{CanonicalAbiInfo, InstanceType, InterfaceType, LiftContext};
use wasmtime::component::{ComponentType, Lift};
use wasmtime::{Result, ValRaw};

/// Maximum bytes per call: half of a call's copy bound, which leaves room for its other arguments.
pub(crate) const FIRST_BYTES_MAX: usize = 1 << 20;

/// The prefix of a list.
pub(crate) struct FirstBytes(pub(crate) Vec<u8>);

impl FirstBytes {
    fn copy(cx: &mut LiftContext<'_>, pointer: u32, length: u32) -> Result<Self> {
        let (pointer, length) = (pointer as usize, length as usize);
        // The whole list must be in the guest's memory, including the skipped part.
        let list = pointer.checked_add(length).and_then(|end| cx.memory().get(pointer..end));
        let list = list.ok_or_else(|| wasmtime::Error::msg("list pointer/length out of bounds of memory"))?;
        let first = &list[..length.min(FIRST_BYTES_MAX)];
        cx.consume_fuel(first.len())?;
        Ok(Self(first.to_vec()))
    }
}

#[expect(unsafe_code, reason = "wasmtime's traits are unsafe to implement: what they say of the layout must be true")]
// SAFETY: layout, size and check are those of `[u8]`, which is what a list of bytes is lowered to.
unsafe impl ComponentType for FirstBytes {
    type Lower = <[u8] as ComponentType>::Lower;

    const ABI: CanonicalAbiInfo = <[u8] as ComponentType>::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> Result<()> {
        <[u8] as ComponentType>::typecheck(ty, types)
    }
}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: reads the pointer and the length of a list as the canonical ABI of 32-bit memories lays them out, and nothing else of
// `src`; the memory they point to is read through slices that check their bounds.
unsafe impl Lift for FirstBytes {
    fn linear_lift_from_flat(cx: &mut LiftContext<'_>, _: InterfaceType, src: &[ValRaw; 2]) -> Result<Self> {
        Self::copy(cx, src[0].get_u32(), src[1].get_u32())
    }

    fn linear_lift_from_memory(cx: &mut LiftContext<'_>, _: InterfaceType, bytes: &[u8]) -> Result<Self> {
        let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        match (word(0), word(4)) {
            (Some(pointer), Some(length)) => Self::copy(cx, pointer, length),
            _ => Err(wasmtime::Error::msg("a list's pointer and length are cut off")),
        }
    }
}
