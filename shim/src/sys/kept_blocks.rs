//! Blocks of memory that a thread has freed and keeps: lists by size, used by [`super::allocator`].
//!
//! musl's allocator takes a lock and some hundred nanoseconds for each block, and gives groups of them back to the kernel
//! that are needed again at once. A service allocates hundreds of blocks for each request, of the same sizes every time.
//! An allocator that is fast for all processes would cost every guest its memory; these lists cost whoever asks for them.
#![expect(unsafe_code, reason = "free blocks hold the pointer to the next one")]

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr;

/// Classes are this far apart up to [`FINE`], and four to a power of two from there.
const STEP: usize = 16;
const FINE: usize = 1 << 10;
/// The largest class.
const LARGEST: usize = 32 << 10;
const CLASSES: usize = FINE / STEP + 4 * (LARGEST / FINE).ilog2() as usize;

/// What musl keeps in a block for itself: classes that are so much shorter fill its own.
const OVERHEAD: usize = 4;

/// The most that a thread keeps of one class: what its requests at the same time have, and a few pages.
const KEPT_BYTES: usize = 32 << 10;
/// Of large ones a few at least.
const KEPT_BLOCKS: usize = 4;

/// Sizes that are allocated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    index: usize,
    /// With musl's overhead.
    size: usize,
}

impl Class {
    /// The class of `layout`; `None` when it is too large or aligned too far.
    pub fn of(layout: Layout) -> Option<Class> {
        let size = layout.size().checked_add(OVERHEAD)?;
        if size > LARGEST || layout.align() > STEP {
            return None;
        }
        if size <= FINE {
            // Of 16 bytes with the overhead nothing is left that is aligned to 16.
            let steps = size.div_ceil(STEP).max(2);
            let (index, size) = (steps - 1, steps * STEP);
            return Some(Class { index, size });
        }
        // Between 2^power and 2^(power+1).
        let power = (size - 1).ilog2();
        let quarter = 1 << (power - 2);
        let quarters = size.div_ceil(quarter);
        Some(Class {
            index: FINE / STEP + 4 * (power - FINE.ilog2()) as usize + quarters - 5,
            size: quarters * quarter,
        })
    }

    /// What each block of this class is allocated with.
    pub fn layout(self) -> Layout {
        // SAFETY: the alignment is a power of two, and no class is near the largest size there is.
        unsafe { Layout::from_size_align_unchecked(self.size - OVERHEAD, STEP) }
    }

    fn most(self) -> usize {
        (KEPT_BYTES / self.size).max(KEPT_BLOCKS)
    }
}

/// Free blocks of one class: the first holds the address of the second, and so on.
struct List {
    first: Cell<*mut u8>,
    length: Cell<usize>,
}

struct Lists {
    keeps: Cell<bool>,
    lists: [List; CLASSES],
}

thread_local! {
    // No destructor: to register one would allocate.
    static LISTS: Lists = const {
        Lists {
            keeps: Cell::new(false),
            lists: [const { List { first: Cell::new(ptr::null_mut()), length: Cell::new(0) } }; CLASSES],
        }
    };
}

/// From now on this thread keeps blocks.
pub fn begin() {
    LISTS.with(|lists| lists.keeps.set(true));
}

/// A block of `class` that this thread has kept.
pub fn take(class: Class) -> Option<*mut u8> {
    LISTS.with(|lists| {
        let list = &lists.lists[class.index];
        let block = list.first.get();
        if block.is_null() {
            return None;
        }
        // SAFETY: a block in the list is nobody's, and begins with the pointer that `keep` wrote.
        list.first.set(unsafe { block.cast::<*mut u8>().read() });
        list.length.set(list.length.get() - 1);
        Some(block)
    })
}

/// Keeps a block; false when this thread keeps none, or enough of them.
///
/// # Safety
///
/// `block` is allocated with the layout of `class` and nobody's.
pub unsafe fn keep(block: *mut u8, class: Class) -> bool {
    LISTS.with(|lists| {
        if !lists.keeps.get() {
            return false;
        }
        let list = &lists.lists[class.index];
        let length = list.length.get();
        if length >= class.most() {
            return false;
        }
        // SAFETY: a block of any class has room for a pointer and is aligned for one, and it is nobody's.
        unsafe { block.cast::<*mut u8>().write(list.first.get()) };
        list.first.set(block);
        list.length.set(length + 1);
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(size: usize) -> Option<Class> {
        Class::of(Layout::from_size_align(size, 8).unwrap())
    }

    #[test]
    fn every_size_fits_its_class_and_classes_are_in_order() {
        let mut before = class(0).unwrap();
        for size in 0..=LARGEST - OVERHEAD {
            let class = class(size).unwrap();
            assert!(
                class.layout().size() >= size.max(size_of::<*mut u8>()),
                "{size}: {class:?}"
            );
            assert!(class.index < CLASSES, "{size}: {class:?}");
            assert!(
                class == before || class.index == before.index + 1,
                "{size}: {before:?}, {class:?}"
            );
            assert!(class.size <= (size + OVERHEAD) * 5 / 4 + 2 * STEP, "{size}: {class:?}");
            before = class;
        }
        assert_eq!(before.index, CLASSES - 1);
    }

    #[test]
    fn what_is_large_or_aligned_further_has_no_class() {
        assert_eq!(class(LARGEST - OVERHEAD + 1), None);
        assert_eq!(class(isize::MAX as usize - 7), None);
        assert_eq!(Class::of(Layout::from_size_align(64, 32).unwrap()), None);
    }

    #[test]
    fn a_thread_keeps_nothing_unless_it_is_told_to_and_only_so_much() {
        std::thread::spawn(|| {
            let class = class(1 << 14).unwrap();
            let mut blocks = [const { Vec::<u8>::new() }; KEPT_BLOCKS + 1].map(|_| vec![0_u8; 1 << 15]);
            // SAFETY: the blocks are longer than their class, aligned as Vec's large ones are, and nobody else's.
            let mut keep = |index: usize| unsafe { keep(blocks[index].as_mut_ptr(), class) };
            assert!(!keep(0));
            begin();
            assert!((0..KEPT_BLOCKS).all(&mut keep));
            assert!(!keep(KEPT_BLOCKS));
            assert!((0..KEPT_BLOCKS).all(|_| take(class).is_some()));
            assert_eq!(take(class), None);
        })
        .join()
        .unwrap();
    }
}
