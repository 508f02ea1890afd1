//! Memory files: data handed to another process that neither side can change any more.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::Digest;

/// An empty memory file; `name` is only for people who look at /proc.
///
/// # Errors
///
/// What memfd_create(2) says.
pub fn file(name: &str) -> io::Result<File> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    Ok(File::from(fd))
}

/// From now on neither the bytes nor the size of `file` change.
///
/// # Errors
///
/// What fcntl(2) says; `EBUSY` when the file's pages are in use for more than a second.
pub fn seal(file: &File) -> io::Result<()> {
    const TRIES: u32 = 20;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    for _ in 0..TRIES {
        match fcntl_add_seals(file, seals) {
            // The kernel waits for pages that another processor has just written and holds on to, but not for long.
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(Duration::from_millis(50)),
            result => return Ok(result?),
        }
    }
    Ok(fcntl_add_seals(file, seals)?)
}

/// A memory file that holds `bytes`, sealed against every change.
///
/// # Errors
///
/// What memfd_create(2), write(2) and fcntl(2) say.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = file(name)?;
    file.write_all(bytes)?;
    file.rewind()?;
    seal(&file)?;
    Ok(file.into())
}

/// All bytes of a memory file, from its start.
///
/// # Errors
///
/// What lseek(2) and read(2) say.
pub fn read(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut file = File::from(fd.try_clone_to_owned()?);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A sealed copy of `source`, its digest and its size in bytes: what is hashed is what is compiled.
///
/// # Errors
///
/// When there are more than `most` bytes, since others may write on while it is read; what read(2), write(2),
/// memfd_create(2) and fcntl(2) say.
pub fn copy(source: &File, most: u64) -> io::Result<(File, Digest, u64)> {
    let mut copy = file("wasm")?;
    let mut size = 0;
    let (digest, size) = Digest::of_file(source, |piece| {
        size += piece.len() as u64;
        if size > most {
            return Err(io::Error::other(format!("it has more than {most} bytes, and grows")));
        }
        copy.write_all(piece)
    })?;
    seal(&copy)?;
    Ok((copy, digest, size))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_that_grows_beyond_the_limit_is_not_copied() {
        let file = File::from(sealed("test", b"four").unwrap());
        assert_eq!(copy(&file, 4).unwrap().2, 4);
        assert!(copy(&file, 3).unwrap_err().to_string().contains("more than 3 bytes"));
    }

    #[test]
    fn a_sealed_file_is_read_whole_and_refuses_writes() {
        let fd = sealed("test", b"plan").unwrap();
        let mut writer = File::from(fd.try_clone().unwrap());
        assert_eq!(writer.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(read(fd.as_fd()).unwrap(), b"plan");
    }
}
