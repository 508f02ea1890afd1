//! Counters in memory that two processes share: one counts, the other one looks.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// A memory file of `count` counters, all zero, whose size nobody changes; `name` is only for people who look at /proc.
///
/// # Errors
///
/// What memfd_create(2), ftruncate(2) and fcntl(2) say.
pub fn create(name: &str, count: usize) -> io::Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, bytes(count) as u64)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(File::from(file))
}

/// Maps the counters of `file` to count in them, for as long as this process lives.
///
/// # Errors
///
/// `InvalidInput` when there are fewer than `count`; what mmap(2) says.
pub fn map(file: impl AsFd, count: usize) -> io::Result<&'static [AtomicU64]> {
    let size = fstat(&file)?.st_size;
    if u64::try_from(size).unwrap_or_default() < bytes(count) as u64 {
        let message = format!("{size} bytes do not hold {count} counters");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let access = ProtFlags::READ | ProtFlags::WRITE;
    #[expect(unsafe_code, reason = "the kernel's memory as Rust's")]
    // SAFETY: the kernel chooses the place, so nothing else is there; nobody unmaps it.
    let start = unsafe { mmap(ptr::null_mut(), bytes(count), access, MapFlags::SHARED, file, 0)? };
    #[expect(unsafe_code, reason = "the kernel's memory as Rust's")]
    // SAFETY: so many bytes are mapped for ever, aligned to a page, and the file is sealed against shrinking; any bits are
    // a number, and whoever else maps them counts by atomic instructions as well.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), count) })
}

/// The counters as they are now. Whoever counts may have written anything.
///
/// # Errors
///
/// What pread(2) says, and `UnexpectedEof` when there are fewer than `count`.
pub fn read(file: &File, count: usize) -> io::Result<Vec<u64>> {
    let mut buffer = vec![0; bytes(count)];
    file.read_exact_at(&mut buffer, 0)?;
    let (numbers, _) = buffer.as_chunks::<{ size_of::<u64>() }>();
    Ok(numbers.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect())
}

fn bytes(count: usize) -> usize {
    count * size_of::<u64>()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_one_counts_the_other_reads() {
        let file = create("test", 3).unwrap();
        let counters = map(&file, 3).unwrap();
        counters[0].fetch_add(7, Ordering::Relaxed);
        counters[2].fetch_sub(1, Ordering::Relaxed);
        assert_eq!(read(&file, 3).unwrap(), [7, 0, u64::MAX]);
    }

    #[test]
    fn a_file_that_is_too_small_is_neither_mapped_nor_read_and_none_changes_its_size() {
        let file = create("test", 3).unwrap();
        assert!(map(&file, 4).unwrap_err().to_string().contains("24 bytes"));
        assert_eq!(read(&file, 4).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        for size in [0, 1 << 20] {
            assert_eq!(file.set_len(size).unwrap_err().raw_os_error(), Some(libc::EPERM));
        }
    }
}
