//! Replacements for the standard library: an allocator, a panic handler, and the host's access to the allocator.

#[global_allocator]
static ALLOCATOR: crate::heap::Heap = crate::heap::Heap::new();

/// A panic logs its position and traps: the host reports the trap and drops the instance.
#[panic_handler]
fn panicked(info: &core::panic::PanicInfo) -> ! {
    let line = alloc::format!("{info}\n");
    #[cfg(target_env = "p2")]
    crate::process::write_all(&wasip2::cli::stderr::get_stderr(), line.as_bytes());
    #[cfg(not(target_env = "p2"))]
    {
        let piece = wasip1::Ciovec { buf: line.as_ptr(), buf_len: line.len() };
        // SAFETY: the piece points to `line`, which outlives the call.
        let _ = unsafe { wasip1::fd_write(wasip1::FD_STDERR, &[piece]) };
    }
    core::arch::wasm32::unreachable()
}

/// The component model's `cabi_realloc`: the host allocates here before it passes a string or a list.
///
/// # Safety
/// `old` was returned by this function with `old_size` bytes of alignment `align`, or `old_size` is 0.
#[cfg(target_env = "p2")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabi_realloc(old: *mut u8, old_size: usize, align: usize, new_size: usize) -> *mut u8 {
    use alloc::alloc::{Layout, alloc, handle_alloc_error, realloc};
    if new_size == 0 {
        return core::ptr::without_provenance_mut(align); // no memory, but aligned as the canonical ABI requires
    }
    // SAFETY: the host passes a power of two for `align`, and sizes that fit the 32-bit memory.
    unsafe {
        let new = match old_size {
            0 => alloc(Layout::from_size_align_unchecked(new_size, align)),
            _ => realloc(old, Layout::from_size_align_unchecked(old_size, align), new_size),
        };
        if new.is_null() {
            handle_alloc_error(Layout::from_size_align_unchecked(new_size, align));
        }
        new
    }
}

/// The one function of the C library that compiled Rust calls and that neither WebAssembly nor `core` has: copying and
/// filling are instructions, comparing is not.
///
/// # Safety
/// `a` and `b` point to `length` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    for at in 0..length {
        // SAFETY: `at` is below `length`.
        let (a, b) = unsafe { (*a.add(at), *b.add(at)) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}
