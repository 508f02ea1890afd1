//! Where log lines go: each container's own `<bundle>/log`, a fifo that containerd copies to its stderr.
//!
//! A fifo stays open while its container lives, since containerd stops reading at the first end of file. containerd
//! that is gone or slow never blocks us: a line that does not fit is dropped and counted, and a fifo that lost its
//! reader is opened again at the next line.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

/// How many lines of the server itself are kept until there is a fifo for them.
const EARLY: usize = 64;

/// A container: containerd's namespace and the id.
pub type Key = (String, String);

#[derive(Debug)]
struct Sink {
    path: PathBuf,
    fifo: Option<OwnedFd>,
    /// When it was opened, as a sequence number.
    opened: u64,
}

#[derive(Debug, Default)]
struct Open {
    sinks: HashMap<Key, Sink>,
    next: u64,
    early: VecDeque<String>,
}

/// The open logs of a server.
#[derive(Debug, Default)]
pub struct Sinks {
    open: Mutex<Open>,
    dropped: AtomicU64,
}

impl Sinks {
    /// Opens the log of a container; a second time it does nothing.
    pub fn open(&self, key: Key, bundle: &Path) {
        let mut open = self.lock();
        let opened = open.next;
        open.next += 1;
        open.sinks.entry(key).or_insert_with(|| Sink {
            path: bundle.join("log"),
            fifo: None,
            opened,
        });
        for line in std::mem::take(&mut open.early) {
            self.server_wide(&mut open, &line);
        }
    }

    /// Closes the log of a container, which ends containerd's reading.
    pub fn close(&self, key: &Key) {
        self.lock().sinks.remove(key);
    }

    /// Writes a line to the log of `key`, or as a line of the server itself.
    pub fn write(&self, key: Option<&Key>, line: &str) {
        let mut open = self.lock();
        match key.and_then(|key| open.sinks.get_mut(key)) {
            Some(sink) => {
                if !sink.write(line) {
                    self.drop_line();
                }
            }
            None => self.server_wide(&mut open, line),
        }
    }

    /// How many lines nobody will read.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The most recently opened fifo that takes the line; before the first one the line waits.
    fn server_wide(&self, open: &mut Open, line: &str) {
        if open.next == 0 {
            if open.early.len() == EARLY {
                open.early.pop_front();
                self.drop_line();
            }
            open.early.push_back(line.to_owned());
            return;
        }
        let mut newest: Vec<&mut Sink> = open.sinks.values_mut().collect();
        newest.sort_by_key(|sink| std::cmp::Reverse(sink.opened));
        if !newest.into_iter().any(|sink| sink.write(line)) {
            self.drop_line();
        }
    }

    fn drop_line(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // A panic between two of these statements leaves a usable map.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    /// Whether the fifo took the line.
    fn write(&mut self, line: &str) -> bool {
        // The second try is for a fifo whose reader went away: the next containerd has opened the path anew.
        for _ in 0..2 {
            if self.fifo.is_none() {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                self.fifo = rustix::fs::open(&self.path, flags, Mode::empty()).ok();
            }
            let Some(fifo) = &self.fifo else { return false };
            match rustix::io::write(fifo, line.as_bytes()) {
                Ok(written) => return written == line.len(),
                Err(rustix::io::Errno::PIPE) => self.fifo = None,
                Err(_) => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::{CWD, FileType};

    use super::*;

    fn bundle(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kubewasi-sinks-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        rustix::fs::mknodat(CWD, path.join("log"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }

    fn reader(bundle: &Path) -> File {
        let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
        File::options()
            .read(true)
            .custom_flags(nonblock)
            .open(bundle.join("log"))
            .unwrap()
    }

    fn read(reader: &mut File) -> String {
        let mut buffer = [0; 1 << 16];
        let n = reader.read(&mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    fn key(id: &str) -> Key {
        ("n".to_owned(), id.to_owned())
    }

    #[test]
    fn a_containers_lines_go_to_its_own_fifo() {
        let (a, b) = (bundle("own-a"), bundle("own-b"));
        let (mut from_a, mut from_b) = (reader(&a), reader(&b));
        let sinks = Sinks::default();
        sinks.open(key("a"), &a);
        sinks.open(key("b"), &b);
        sinks.write(Some(&key("a")), "for a\n");
        sinks.write(Some(&key("b")), "for b\n");
        assert_eq!(
            (read(&mut from_a).as_str(), read(&mut from_b).as_str()),
            ("for a\n", "for b\n")
        );
    }

    #[test]
    fn lines_of_the_server_wait_for_the_first_fifo_and_then_go_to_the_newest_live_one() {
        let (a, b) = (bundle("wide-a"), bundle("wide-b"));
        let (mut from_a, mut from_b) = (reader(&a), reader(&b));
        let sinks = Sinks::default();
        sinks.write(None, "early\n");
        sinks.open(key("a"), &a);
        assert_eq!(read(&mut from_a), "early\n");
        sinks.open(key("b"), &b);
        sinks.write(None, "newest\n");
        assert_eq!(read(&mut from_b), "newest\n");
        drop(from_b);
        sinks.write(None, "live\n");
        assert_eq!(read(&mut from_a), "live\n");
        assert_eq!(sinks.dropped(), 0);
    }

    #[test]
    fn a_line_without_a_reader_is_dropped_and_counted_and_the_next_reader_gets_the_next_line() {
        let a = bundle("reopen");
        let first = reader(&a);
        let sinks = Sinks::default();
        sinks.open(key("a"), &a);
        sinks.write(Some(&key("a")), "one\n");
        drop(first);
        sinks.write(Some(&key("a")), "two\n");
        assert_eq!(sinks.dropped(), 1);
        let mut second = reader(&a);
        sinks.write(Some(&key("a")), "three\n");
        assert_eq!(read(&mut second), "three\n");
    }

    #[test]
    fn a_full_fifo_drops_lines_and_never_blocks() {
        let a = bundle("full");
        let _reader = reader(&a);
        let sinks = Sinks::default();
        sinks.open(key("a"), &a);
        let line = format!("{}\n", "x".repeat(4000));
        for _ in 0..100 {
            sinks.write(Some(&key("a")), &line);
        }
        assert!(sinks.dropped() > 0);
    }
}
