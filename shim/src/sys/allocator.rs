//! The allocator: the system's, except that a process may choose to exit with a code of its own when memory runs out,
//! so that whoever limited it learns the reason.
#![expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, Ordering};

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The exit code on failure; 0 keeps the standard behaviour, a null pointer.
static EXIT_CODE: AtomicI32 = AtomicI32::new(0);

/// From now on this process exits with `code` at the first allocation that fails.
pub fn exit_when_exhausted(code: i32) {
    EXIT_CODE.store(code, Ordering::Relaxed);
}

fn checked(memory: *mut u8) -> *mut u8 {
    let code = EXIT_CODE.load(Ordering::Relaxed);
    if memory.is_null() && code != 0 {
        // SAFETY: _exit only ends the process; it runs no handlers and touches no memory.
        unsafe { libc::_exit(code) }
    }
    memory
}

// SAFETY: every call is passed on to the system's allocator unchanged, and its answer returned unchanged.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are System's.
        checked(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are System's.
        checked(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are System's.
        checked(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are System's.
        unsafe { System.dealloc(memory, layout) }
    }
}
