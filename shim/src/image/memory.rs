//! Files in memory that nobody can change any more.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::{MemfdFlags, SealFlags};

use super::Digest;

/// An empty memfd, closed on exec; `name` is only for people who look at /proc.
pub fn file(name: &str) -> io::Result<File> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    Ok(File::from(fd))
}

/// From now on neither the bytes nor the size of `file` change.
pub fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(file, seals)?)
}

/// A sealed copy of `source`, its digest and its size in bytes.
pub fn copy(source: &File) -> io::Result<(File, Digest, u64)> {
    let mut copy = file("wasm")?;
    let (digest, size) = Digest::of_file(source, |piece| copy.write_all(piece))?;
    seal(&copy)?;
    Ok((copy, digest, size))
}
