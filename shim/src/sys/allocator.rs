//! The allocator: the system's, with what a thread frees kept for its next allocations where that was asked for, and an
//! exit code of its own when memory runs out, so that whoever limited it learns the reason.
#![expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use super::kept_blocks::{self, Class};

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The exit code on failure; 0 keeps the standard behaviour, a null pointer.
static EXIT_CODE: AtomicI32 = AtomicI32::new(0);

/// From now on this process exits with `code` at the first allocation that fails.
pub fn exit_when_exhausted(code: i32) {
    EXIT_CODE.store(code, Ordering::Relaxed);
}

/// From now on this thread keeps what it frees, up to a bound for each size, and allocates from that first. For threads
/// that live as long as their process: what they keep is theirs for ever.
pub fn keep_freed_blocks() {
    kept_blocks::begin();
}

fn checked(memory: *mut u8) -> *mut u8 {
    let code = EXIT_CODE.load(Ordering::Relaxed);
    if memory.is_null() && code != 0 {
        // SAFETY: _exit only ends the process; it runs no handlers and touches no memory.
        unsafe { libc::_exit(code) }
    }
    memory
}

// SAFETY: the system's allocator serves every call. Blocks of a class have that class's size and alignment whatever
// thread allocates them, so those of an equal class are interchangeable.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = Class::of(layout) else {
            // SAFETY: the caller's promises are System's.
            return checked(unsafe { System.alloc(layout) });
        };
        kept_blocks::take(class).unwrap_or_else(|| {
            // SAFETY: no class's layout is of size 0.
            checked(unsafe { System.alloc(class.layout()) })
        })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(class) = Class::of(layout) else {
            // SAFETY: the caller's promises are System's.
            return checked(unsafe { System.alloc_zeroed(layout) });
        };
        match kept_blocks::take(class) {
            Some(memory) => {
                // SAFETY: a block of the layout's class is at least as long as the layout.
                unsafe { ptr::write_bytes(memory, 0, layout.size()) };
                memory
            }
            // SAFETY: no class's layout is of size 0.
            None => checked(unsafe { System.alloc_zeroed(class.layout()) }),
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size`, rounded up to the alignment, does not overflow.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (Class::of(layout), Class::of(wanted)) {
            (had, new) if had.is_some() && had == new => memory,
            // SAFETY: the caller's promises are System's, and System knows this block by `layout`.
            (None, None) => checked(unsafe { System.realloc(memory, layout, size) }),
            _ => {
                // SAFETY: the caller promises that `size` is not 0.
                let new = unsafe { self.alloc(wanted) };
                if !new.is_null() {
                    // SAFETY: both blocks are as long as what is copied, they differ, and the old one is the caller's
                    // to give away.
                    unsafe {
                        ptr::copy_nonoverlapping(memory, new, layout.size().min(size));
                        self.dealloc(memory, layout);
                    }
                }
                new
            }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        match Class::of(layout) {
            // SAFETY: the caller gives away the block, which `alloc` made as long as its class.
            Some(class) if unsafe { kept_blocks::keep(memory, class) } => {}
            // SAFETY: this is the layout that System was asked for.
            Some(class) => unsafe { System.dealloc(memory, class.layout()) },
            // SAFETY: the caller's promises are System's.
            None => unsafe { System.dealloc(memory, layout) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses of a block of `layout`, freed between the two.
    fn twice(layout: Layout) -> [usize; 2] {
        [(); 2].map(|()| {
            // SAFETY: the size is not 0, and the block is freed with its layout.
            unsafe {
                let memory = ALLOCATOR.alloc(layout);
                ALLOCATOR.dealloc(memory, layout);
                memory as usize
            }
        })
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn a_thread_that_keeps_gets_its_own_block_back_and_other_sizes_of_the_class_too() {
        std::thread::spawn(|| {
            keep_freed_blocks();
            let [first, second] = twice(layout(5000, 8));
            assert_eq!(first, second);
            assert_eq!(twice(layout(4999, 16))[0], first);
            assert_ne!(twice(layout(9000, 16))[0], first);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn blocks_keep_what_is_in_them_while_they_grow_and_shrink_through_all_classes() {
        std::thread::spawn(|| {
            for keeps in [false, true] {
                if keeps {
                    keep_freed_blocks();
                }
                for align in [1, 16, 64, 512] {
                    let mut size = 1;
                    // SAFETY: each block is used within its size and handed on with its layout.
                    unsafe {
                        let mut memory = ALLOCATOR.alloc_zeroed(layout(size, align));
                        for next in (1..200_000).step_by(997).chain([60_000, 300, 3]) {
                            memory.add(size - 1).write(7);
                            let new = ALLOCATOR.realloc(memory, layout(size, align), next);
                            assert_eq!(new as usize % align, 0);
                            if next >= size {
                                assert_eq!(new.add(size - 1).read(), 7, "{size} to {next}");
                            }
                            (memory, size) = (new, next);
                        }
                        ALLOCATOR.dealloc(memory, layout(size, align));
                    }
                }
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_block_that_was_used_is_zeroed_when_that_is_asked() {
        std::thread::spawn(|| {
            keep_freed_blocks();
            let layout = layout(700, 8);
            // SAFETY: the block is used within its size and freed with its layout.
            unsafe {
                let dirty = ALLOCATOR.alloc(layout);
                dirty.write_bytes(0xff, layout.size());
                ALLOCATOR.dealloc(dirty, layout);
                let clean = ALLOCATOR.alloc_zeroed(layout);
                assert_eq!(clean, dirty);
                assert!(
                    std::slice::from_raw_parts(clean, layout.size())
                        .iter()
                        .all(|byte| *byte == 0)
                );
                ALLOCATOR.dealloc(clean, layout);
            }
        })
        .join()
        .unwrap();
    }
}
