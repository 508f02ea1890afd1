//! The session keyring of a process (keyrings(7)).

use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING` (linux/keyctl.h).
const JOIN_SESSION_KEYRING: libc::c_long = 1;

/// Gives this process an empty session keyring of its own, as runc gives every container; a kernel without keys needs none.
///
/// # Errors
///
/// What keyctl(2) says: `EDQUOT` when the user has too many keys.
pub fn make() -> io::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    #[expect(unsafe_code, reason = "rustix offers no keyctl")]
    // SAFETY: the call reads no memory when the name is null.
    let made = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) };
    if made >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error),
    }
}
