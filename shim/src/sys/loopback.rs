//! The loopback device of a network namespace, which is down when the kernel makes it.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Brings the loopback device of this thread's network namespace up, as runc does (libcontainer/network_linux.go,
/// `loopback`); see netdevice(7).
///
/// # Errors
///
/// What socket(2) and ioctl(2) say.
pub fn bring_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    #[expect(unsafe_code, reason = "rustix offers no interface flags")]
    // SAFETY: `ifreq` is plain data, valid as zeros; both calls read or write that one struct and outlive neither it nor
    // the socket, and SIOCGIFFLAGS fills the union's `ifru_flags`.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (byte, name) in request.ifr_name.iter_mut().zip(*b"lo") {
            *byte = name as libc::c_char;
        }
        match libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) {
            0 => {
                request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
                libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request)
            }
            failed => failed,
        }
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
