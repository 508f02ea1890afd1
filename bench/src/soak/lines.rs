//! Numbered lines, as the probe writes them: whether a stream carries each of them, whole and in order.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::{self, Receiver};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// `{:015}\n`: what `probe lines` writes.
const LENGTH: u64 = 16;

/// How long a stream may take to end after its container was deleted.
const END: Duration = Duration::from_secs(20);

/// The bytes of `count` lines, from line `first` on.
pub fn text(first: u64, count: u64) -> Vec<u8> {
    (first..first + count)
        .flat_map(|number| format!("{number:015}\n").into_bytes())
        .collect()
}

/// What has come of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Bytes.
    length: u64,
    /// Where it first was not what it had to be.
    broken: Option<u64>,
}

impl Seen {
    pub fn add(&mut self, bytes: &[u8]) {
        let first = self.length / LENGTH;
        let skip = (self.length % LENGTH) as usize;
        let wanted = text(first, bytes.len() as u64 / LENGTH + 2);
        let differs = bytes.iter().zip(&wanted[skip..]).position(|(is, wanted)| is != wanted);
        if let (None, Some(place)) = (self.broken, differs) {
            self.broken = Some(self.length + place as u64);
        }
        self.length += bytes.len() as u64;
    }

    /// What is wrong with a stream that had to carry `count` lines, or any part from their beginning.
    pub fn verdict(&self, count: u64, whole: bool) -> Option<String> {
        if let Some(place) = self.broken {
            return Some(format!("the log is wrong from byte {place} on"));
        }
        let wanted = count * LENGTH;
        let fits = if whole {
            self.length == wanted
        } else {
            self.length <= wanted
        };
        (!fits).then(|| format!("{} bytes of log, not {wanted}", self.length))
    }
}

/// How a container's log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Prompt,
    /// A little at a time.
    Slow,
    /// Goes away and comes back.
    Absent,
}

/// Reads the fifo at `path` to its end. `deleted` becomes true when the container is gone.
pub async fn read(path: &Path, reader: Reader, mut deleted: watch::Receiver<bool>) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut stream = open(path)?;
    let mut buffer = vec![0; 1 << 16];
    if reader == Reader::Absent {
        if let Ok(read) = timeout(Duration::from_millis(50), stream.read(&mut buffer[..64])).await {
            seen.add(&buffer[..read?]);
        }
        drop(stream);
        sleep(Duration::from_millis(150)).await;
        stream = open(path)?;
    }
    let most = if reader == Reader::Slow { 4096 } else { buffer.len() };
    let mut end = None;
    loop {
        tokio::select! {
            read = stream.read(&mut buffer[..most]) => match read? {
                0 => return Ok(seen),
                length => seen.add(&buffer[..length]),
            },
            // Nothing more is written: what a reader that came late finds has an end that is not told.
            _ = deleted.wait_for(|deleted| *deleted), if end.is_none() => {
                end = Some(tokio::time::Instant::now() + END);
            }
            () = sleep(Duration::from_millis(200)), if end.is_some() && reader == Reader::Absent => return Ok(seen),
            () = tokio::time::sleep_until(end.unwrap_or_else(tokio::time::Instant::now)), if end.is_some() => {
                bail!("the log has not ended {END:?} after the container's Delete");
            }
        }
        if reader == Reader::Slow && end.is_none() {
            sleep(Duration::from_millis(2)).await;
        }
    }
}

fn open(path: &Path) -> Result<Receiver> {
    pipe::OpenOptions::new()
        .open_receiver(path)
        .with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pieces: &[&[u8]]) -> Seen {
        let mut seen = Seen::default();
        pieces.iter().for_each(|piece| seen.add(piece));
        seen
    }

    #[test]
    fn lines_are_whole_in_whatever_pieces_they_come() {
        let all = text(0, 1000);
        assert_eq!(&all[..32], b"000000000000000\n000000000000001\n");
        for size in [1, 7, 16, 4096] {
            let pieces: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(seen(&pieces).verdict(1000, true), None, "{size}");
        }
    }

    #[test]
    fn a_missing_doubled_or_changed_piece_is_found() {
        let all = text(0, 100);
        assert!(seen(&[&all[..160], &all[176..]]).verdict(100, false).is_some());
        assert!(seen(&[&all[..160], &all[144..]]).verdict(100, false).is_some());
        assert!(seen(&[b"000000000000001\n"]).verdict(100, false).is_some());
    }

    #[test]
    fn a_part_is_enough_only_where_it_may_be() {
        let part = seen(&[&text(0, 100)[..333]]);
        assert_eq!(part.verdict(100, false), None);
        assert_eq!(part.verdict(100, true).unwrap(), "333 bytes of log, not 1600");
        assert!(part.verdict(20, false).is_some());
    }
}
