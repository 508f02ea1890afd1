//! The calls of the network: TCP and UDP over IPv4 and IPv6, nothing below them and nothing beside them.
//!
//! Which network that is, the pod's namespace says. A resolver is in here too: musl's asks by UDP, and by TCP for an
//! answer that is long.

use super::{Rules, one_of, rule, when};
use crate::sandbox::profile::ProfileError;
use seccompiler::SeccompCmpOp;

/// Calls on sockets that are there; what else they could be used on are the process's own streams.
pub(super) const ALLOWED: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// The kinds of sockets, each with the protocols it may name. Others of these families are raw, or ping's, or SCTP's.
const KINDS: [(i32, &[i32]); 2] = [
    (libc::SOCK_STREAM, &[0, libc::IPPROTO_TCP]),
    (libc::SOCK_DGRAM, &[0, libc::IPPROTO_UDP]),
];

/// What [`KINDS`] is written beside.
const FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// The options that wasi:sockets, wasi:http, services and the resolver set, by level.
const OPTIONS: [(i32, &[i32]); 4] = [
    (
        libc::SOL_SOCKET,
        &[
            libc::SO_KEEPALIVE,
            libc::SO_LINGER,
            libc::SO_RCVBUF,
            libc::SO_REUSEADDR,
            libc::SO_REUSEPORT,
            libc::SO_SNDBUF,
        ],
    ),
    (
        libc::IPPROTO_TCP,
        &[
            libc::TCP_KEEPCNT,
            libc::TCP_KEEPIDLE,
            libc::TCP_KEEPINTVL,
            libc::TCP_NODELAY,
            libc::TCP_USER_TIMEOUT,
        ],
    ),
    (libc::IPPROTO_IP, &[libc::IP_TTL]),
    (libc::IPPROTO_IPV6, &[libc::IPV6_UNICAST_HOPS, libc::IPV6_V6ONLY]),
];

/// Calls that depend on an argument.
pub(super) fn conditional() -> Result<Rules, ProfileError> {
    let mut sockets = Vec::new();
    let kind_alone = SeccompCmpOp::MaskedEq(!FLAGS as u32 as u64);
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocols) in KINDS {
            for protocol in protocols {
                sockets.push(rule(vec![
                    when(0, SeccompCmpOp::Eq, family as u64)?,
                    when(1, kind_alone.clone(), kind as u64)?,
                    when(2, SeccompCmpOp::Eq, *protocol as u64)?,
                ])?);
            }
        }
    }
    let mut options = Vec::new();
    for (level, names) in OPTIONS {
        for name in names {
            options.push(rule(vec![
                when(1, SeccompCmpOp::Eq, level as u64)?,
                when(2, SeccompCmpOp::Eq, *name as u64)?,
            ])?);
        }
    }
    Ok([
        (libc::SYS_socket, sockets),
        (libc::SYS_setsockopt, options),
        // The resolver's question by TCP. It could carry descriptors to the server, which closes what it did not ask for.
        (libc::SYS_sendmsg, one_of(2, &[libc::MSG_NOSIGNAL as u64])?),
    ]
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_that_changes_what_a_packet_passes_is_listed() {
        let names: Vec<(i32, i32)> = OPTIONS
            .iter()
            .flat_map(|(level, names)| names.iter().map(|name| (*level, *name)))
            .collect();
        for hostile in [
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
            (libc::SOL_SOCKET, libc::SO_ATTACH_BPF),
            (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
            (libc::SOL_SOCKET, libc::SO_MARK),
            (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE),
            (libc::IPPROTO_TCP, libc::TCP_ULP),
            (libc::IPPROTO_IP, libc::IP_HDRINCL),
            (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        ] {
            assert!(!names.contains(&hostile), "{hostile:?}");
        }
    }
}
