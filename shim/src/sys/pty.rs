//! Pseudo-terminals (pty(7)): the server keeps the master, a process has the other side as its terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::Winsize;

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

/// A new pair: the master, which does not block, and the terminal.
///
/// # Errors
///
/// What open(2) of `/dev/ptmx` and ioctl(2) say (TIOCGPTPEER, Linux 4.13).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    // By the master's fd, not by a path: whose devpts is at /dev/pts does not matter.
    let terminal = ioctl_tiocgptpeer(&master, flags)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok((master, terminal))
}

/// Sets the size; the kernel tells the terminal's foreground processes by SIGWINCH when it has changed.
///
/// # Errors
///
/// What ioctl(2) says.
pub fn resize(pty: impl AsFd, size: Size) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(pty, size)?)
}

/// Makes `terminal` the controlling terminal of the calling process, which leads a session without one.
///
/// # Errors
///
/// What ioctl(2) says.
pub fn control(terminal: impl AsFd) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(terminal)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_has_the_size_that_the_master_was_given() {
        let (master, terminal) = pair().unwrap();
        resize(&master, Size { columns: 132, rows: 43 }).unwrap();
        let size = rustix::termios::tcgetwinsize(&terminal).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
        assert!(rustix::termios::isatty(&terminal));
    }

    #[test]
    fn what_is_written_to_the_terminal_is_read_from_the_master_and_then_its_end() {
        let (master, terminal) = pair().unwrap();
        rustix::io::write(&terminal, b"x").unwrap();
        drop(terminal);
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&master, &mut buffer), Ok(1));
        assert_eq!(rustix::io::read(&master, &mut buffer), Err(rustix::io::Errno::IO));
    }
}
