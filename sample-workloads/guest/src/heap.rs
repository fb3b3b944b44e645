//! The heap: `dlmalloc` over the space between the data and the end of the initial memory, before the memory grows.
//!
//! The crate's own source grows the linear memory for its first byte. Growing is a system call for the host, and shrinking
//! the next instance's memory another one; both stop the host's other threads. For a server with one small request this is
//! a fifth of its cost.
use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32::memory_grow;
use core::cell::{Cell, UnsafeCell};

const PAGE: usize = 64 * 1024;

unsafe extern "C" {
    // The linker sets these symbols: only their addresses are used.
    static __heap_base: u8;
    static __heap_end: u8;
}

/// The memory source of `dlmalloc`.
struct Memory {
    /// Whether the initial part was handed out.
    started: Cell<bool>,
}

impl Memory {
    fn first(&self) -> Option<(*mut u8, usize)> {
        if self.started.replace(true) {
            return None;
        }
        let (base, end) = (&raw const __heap_base, &raw const __heap_end);
        Some((base.cast_mut(), end.addr().saturating_sub(base.addr())))
    }
}

// SAFETY: returned memory has no other owner: the initial part once, and new pages.
unsafe impl dlmalloc::Allocator for Memory {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        if let Some((base, length)) = self.first()
            && length >= size
        {
            return (base, length, 0);
        }
        let pages = size.div_ceil(PAGE);
        match memory_grow(0, pages) {
            usize::MAX => (core::ptr::null_mut(), 0, 0),
            before => (core::ptr::with_exposed_provenance_mut(before * PAGE), pages * PAGE, 0),
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        core::ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

pub struct Heap(UnsafeCell<dlmalloc::Dlmalloc<Memory>>);

// SAFETY: a sample has one thread.
unsafe impl Sync for Heap {}

impl Heap {
    pub const fn new() -> Self {
        Self(UnsafeCell::new(dlmalloc::Dlmalloc::new_with_allocator(Memory { started: Cell::new(false) })))
    }
}

// SAFETY: `dlmalloc` keeps the contract; with one thread no other code uses the heap meanwhile.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { (*self.0.get()).malloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { (*self.0.get()).free(at, layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { (*self.0.get()).calloc(layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { (*self.0.get()).realloc(at, layout.size(), layout.align(), size) }
    }
}
