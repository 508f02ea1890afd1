//! Seqpacket sockets: whole messages with file descriptors beside them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The most fds beside one message: plan, report, three streams, an artifact, counters and a pidfd are eight.
pub const MAX_FDS: usize = 8;

/// A connected pair.
///
/// # Errors
///
/// What socketpair(2) says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message.
///
/// # Errors
///
/// What sendmsg(2) says; `EPIPE` when the peer is gone.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one message into `buffer`: its length and its fds. Length 0 means that the peer is gone.
///
/// # Errors
///
/// What recvmsg(2) says, and `EMSGSIZE` for a message that does not fit, whose fds are closed.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut receive = || {
        rustix::io::retry_on_intr(|| {
            recvmsg(
                &socket,
                &mut [IoSliceMut::new(buffer)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })
    };
    let message = match receive() {
        // A peer that ended with a message of ours unread: told once, before what it had said.
        Err(Errno::CONNRESET) => receive()?,
        message => message?,
    };
    let mut fds = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = item {
            fds.extend(received);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_arrives_whole_with_its_fds() {
        let (a, b) = pair().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"beside").unwrap();
        drop(writer);
        send(&a, b"header", &[reader.as_fd()]).unwrap();
        let mut buffer = [0; 64];
        let (length, mut fds) = receive(&b, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"header");
        let mut text = String::new();
        std::fs::File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "beside");
    }

    #[test]
    fn a_message_too_long_for_the_buffer_is_an_error() {
        let (a, b) = pair().unwrap();
        send(&a, b"too long", &[]).unwrap();
        assert_eq!(
            receive(&b, &mut [0; 3]).unwrap_err().raw_os_error(),
            Some(libc::EMSGSIZE)
        );
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_are_heard() {
        let (a, b) = pair().unwrap();
        send(&a, b"unheard", &[]).unwrap();
        send(&b, b"words", &[]).unwrap();
        drop(b);
        let mut buffer = [0; 64];
        let (length, _) = receive(&a, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"words");
    }

    #[test]
    fn a_peer_that_is_gone_reads_as_length_zero() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert_eq!(receive(&b, &mut [0; 3]).unwrap().0, 0);
    }
}
