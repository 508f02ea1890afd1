//! Copies of wasm files that others can write, and the room in the server's memory that they may take.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Digest, ImageError, MOST_WASM, memory};

/// Room is taken in steps of so many bytes.
const STEP: u64 = 1 << 20;

/// So many of the largest files fit at once.
const LARGEST: u64 = 2;

/// So long a copy waits for room: the others are compiled meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// Room for copies. Who holds some waits for compilers alone, which need none.
#[derive(Clone, Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    patience: Duration,
}

/// A sealed copy, which takes its room until it is dropped.
#[derive(Debug)]
pub struct Copy {
    pub fd: OwnedFd,
    _taken: OwnedSemaphorePermit,
}

/// Room that was taken for one file.
#[derive(Debug)]
pub struct Taken {
    permit: OwnedSemaphorePermit,
    size: u64,
}

impl Default for Room {
    fn default() -> Room {
        Room {
            free: Arc::new(Semaphore::new((LARGEST * MOST_WASM / STEP) as usize)),
            patience: PATIENCE,
        }
    }
}

impl Room {
    /// Takes room for the `size` bytes of the file `name`, as long as it has to wait for it.
    ///
    /// # Errors
    ///
    /// When there was none for a minute.
    pub async fn take(&self, size: u64, name: &str) -> Result<Taken, ImageError> {
        let steps = size.min(MOST_WASM).div_ceil(STEP).max(1);
        let permits = self.free.clone().acquire_many_owned(steps as u32);
        match timeout(self.patience, permits).await {
            Ok(Ok(permit)) => Ok(Taken {
                permit,
                size: steps * STEP,
            }),
            // It is never closed.
            Ok(Err(_)) | Err(_) => Err(ImageError::NoRoom {
                name: name.to_owned(),
                size,
                seconds: self.patience.as_secs(),
            }),
        }
    }
}

impl Taken {
    /// Copies `file` into the room, and answers its digest and its size in bytes.
    ///
    /// # Errors
    ///
    /// As [`memory::copy`]; a file that has grown beyond the room is one error more.
    pub fn copy(self, file: &File) -> std::io::Result<(Copy, Digest, u64)> {
        let (copy, digest, size) = memory::copy(file, self.size)?;
        let copy = Copy {
            fd: copy.into(),
            _taken: self.permit,
        };
        Ok((copy, digest, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(patience: Duration) -> Room {
        Room {
            patience,
            ..Room::default()
        }
    }

    #[tokio::test]
    async fn as_many_copies_as_there_is_room_for_live_at_once() {
        let room = room(Duration::from_millis(50));
        let mut copies = Vec::new();
        for _ in 0..LARGEST {
            let file = memory::file("test").expect("memfd");
            let taken = room.take(MOST_WASM, "big.wasm").await.expect("room");
            copies.push(taken.copy(&file).expect("copy").0);
        }
        let refused = room.take(1, "a.wasm").await.expect_err("no room").to_string();
        assert!(
            refused.starts_with("a.wasm: ") && refused.contains("no room for"),
            "{refused}"
        );
        copies.pop();
        room.take(1, "a.wasm").await.expect("room again");
    }

    #[tokio::test]
    async fn small_files_take_little_room() {
        let room = room(Duration::from_millis(50));
        let mut taken = Vec::new();
        for _ in 0..100 {
            taken.push(room.take(8, "a.wasm").await.expect("room"));
        }
    }

    #[tokio::test]
    async fn a_file_that_grows_beyond_its_room_is_not_copied() {
        let file = memory::file("test").expect("memfd");
        let taken = room(PATIENCE).take(0, "a.wasm").await.expect("room");
        file.set_len(STEP + 1).expect("grow");
        assert!(taken.copy(&file).is_err());
    }
}
