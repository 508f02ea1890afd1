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
const SIZES: usize = FINE / STEP + 4 * (LARGEST / FINE).ilog2() as usize;
/// What blocks are aligned to, by half of the classes each: tokio's tasks want the second (its `Cell`).
const ALIGNMENTS: [usize; 2] = [STEP, 128];
const CLASSES: usize = ALIGNMENTS.len() * SIZES;

/// What musl keeps in a block for itself: classes that are so much shorter fill its own.
const OVERHEAD: usize = 4;

/// The most that a thread keeps: what its requests at the same time have, and a few pages.
const KEPT: usize = 1 << 20;
/// The most of one class, so that one that is asked for no more leaves room for others.
const KEPT_OF_CLASS: usize = KEPT / 4;

/// Sizes that are allocated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    index: usize,
    /// With musl's overhead.
    size: usize,
    align: usize,
}

impl Class {
    /// The class of `layout`; `None` when it is too large or aligned too far.
    pub fn of(layout: Layout) -> Option<Class> {
        let size = layout.size().checked_add(OVERHEAD)?;
        let alignment = ALIGNMENTS.iter().position(|align| layout.align() <= *align)?;
        if size > LARGEST {
            return None;
        }
        let (index, size) = if size <= FINE {
            // Of 16 bytes with the overhead nothing is left that is aligned to 16.
            let steps = size.div_ceil(STEP).max(2);
            (steps - 1, steps * STEP)
        } else {
            // Between 2^power and 2^(power+1).
            let power = (size - 1).ilog2();
            let quarter = 1 << (power - 2);
            let quarters = size.div_ceil(quarter);
            let before = FINE / STEP + 4 * (power - FINE.ilog2()) as usize;
            (before + quarters - 5, quarters * quarter)
        };
        Some(Class {
            index: alignment * SIZES + index,
            size,
            align: ALIGNMENTS[alignment],
        })
    }

    /// What each block of this class is allocated with.
    pub fn layout(self) -> Layout {
        // SAFETY: each alignment is a power of two, and no class is near the largest size there is.
        unsafe { Layout::from_size_align_unchecked(self.size - OVERHEAD, self.align) }
    }

    /// What a block of it takes: to align one further musl allocates as much more.
    fn cost(self) -> usize {
        match self.align {
            STEP => self.size,
            align => self.size + align,
        }
    }

    fn most(self) -> usize {
        KEPT_OF_CLASS / self.size
    }
}

/// Free blocks of one class: the first holds the address of the second, and so on.
struct List {
    first: Cell<*mut u8>,
    length: Cell<usize>,
}

struct Lists {
    /// Bytes that this thread may keep beside those it has kept; 0 when it keeps none.
    room: Cell<usize>,
    lists: [List; CLASSES],
}

thread_local! {
    // No destructor: to register one would allocate.
    static LISTS: Lists = const {
        Lists {
            room: Cell::new(0),
            lists: [const { List { first: Cell::new(ptr::null_mut()), length: Cell::new(0) } }; CLASSES],
        }
    };
}

/// From now on this thread keeps blocks. To be called once.
pub fn begin() {
    LISTS.with(|lists| lists.room.set(KEPT));
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
        lists.room.set(lists.room.get() + class.cost());
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
        let room = lists.room.get();
        let list = &lists.lists[class.index];
        let length = list.length.get();
        if room < class.cost() || length >= class.most() {
            return false;
        }
        // SAFETY: a block of any class has room for a pointer and is aligned for one, and it is nobody's.
        unsafe { block.cast::<*mut u8>().write(list.first.get()) };
        list.first.set(block);
        list.length.set(length + 1);
        lists.room.set(room - class.cost());
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
            assert!(class.index < SIZES, "{size}: {class:?}");
            assert!(
                class == before || class.index == before.index + 1,
                "{size}: {before:?}, {class:?}"
            );
            assert!(class.size <= (size + OVERHEAD) * 5 / 4 + 2 * STEP, "{size}: {class:?}");
            before = class;
        }
        assert_eq!(before.index, SIZES - 1);
    }

    #[test]
    fn what_is_large_or_aligned_further_has_no_class() {
        assert_eq!(class(LARGEST - OVERHEAD + 1), None);
        assert_eq!(class(isize::MAX as usize - 7), None);
        assert_eq!(Class::of(Layout::from_size_align(64, 256).unwrap()), None);
    }

    #[test]
    fn what_is_aligned_to_more_than_16_has_a_class_of_its_own() {
        let aligned = |align| Class::of(Layout::from_size_align(3000, align).unwrap()).unwrap();
        assert_eq!(aligned(32), aligned(128));
        assert_eq!(aligned(32).layout().align(), 128);
        assert_eq!(aligned(32).index, aligned(1).index + SIZES);
        let last = Class::of(Layout::from_size_align(LARGEST - OVERHEAD, 128).unwrap()).unwrap();
        assert_eq!(last.index, CLASSES - 1);
    }

    /// How many of so many blocks of `size` bytes are kept. None is freed: this test's allocator would keep it too.
    fn kept(size: usize, count: usize) -> usize {
        let class = class(size).unwrap();
        let blocks = (0..count).map(|_| vec![0_u64; class.size / 8].leak().as_mut_ptr());
        // SAFETY: the blocks are as long as their class, aligned as Vec's large ones are, and leaked: nobody's.
        blocks.filter(|block| unsafe { keep(block.cast(), class) }).count()
    }

    #[test]
    fn a_thread_keeps_nothing_unless_it_is_told_to() {
        std::thread::spawn(|| {
            assert_eq!(kept(1 << 14, 1), 0);
            begin();
            assert_eq!(kept(1 << 14, 1), 1);
            assert!(take(class(1 << 14).unwrap()).is_some());
            assert_eq!(take(class(1 << 14).unwrap()), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_keeps_only_so_much_of_a_class_and_of_all_until_it_takes_some() {
        std::thread::spawn(|| {
            begin();
            let sizes = [1, 2, 4, 8, 16].map(|kibibytes| (kibibytes << 10) - OVERHEAD);
            assert_eq!(
                sizes.map(|size| kept(size, 1 << 9) * (size + OVERHEAD)),
                [KEPT_OF_CLASS, KEPT_OF_CLASS, KEPT_OF_CLASS, KEPT_OF_CLASS, 0]
            );
            while take(class(sizes[0]).unwrap()).is_some() {}
            assert_eq!(kept(sizes[4], 1 << 9) << 14, KEPT_OF_CLASS);
        })
        .join()
        .unwrap();
    }
}
