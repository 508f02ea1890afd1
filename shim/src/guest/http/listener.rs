//! The socket of a service: all addresses of the pod's network, IPv6 and IPv4 by one socket.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// The port when nothing is said.
const PORT: u16 = 8080;

/// Connections that wait to be accepted; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("the environment's PORT {0:?} is no port: it must be 1 to 65535")]
    NoPort(String),
    #[error("port {port} is in use by another process of the pod: set the annotation {}", purpose.mend())]
    InUse { port: u16, purpose: Use },
    /// Sockets that do not listen yet may share a port, so the kernel would say so only at the start.
    #[error("port {0} is the service's own: set another one in the annotation kubewasi.dev/metrics-port")]
    Same(u16),
    #[error("port {0} is privileged: add the capability NET_BIND_SERVICE, or take a port from 1024 on")]
    Privileged(u16),
    #[error("cannot listen on port {port}: {cause}")]
    Other { port: u16, cause: Errno },
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Requests,
    Metrics,
}

impl Use {
    /// By what another port is taken.
    fn mend(self) -> &'static str {
        match self {
            Use::Requests => "kubewasi.dev/http-port or PORT",
            Use::Metrics => "kubewasi.dev/metrics-port",
        }
    }
}

/// The port: what the options say, else `PORT` of the environment, else 8080.
pub fn port(option: Option<u16>, environment: &[(String, String)]) -> Result<u16, ListenError> {
    let said = || environment.iter().rev().find(|(key, _)| key == "PORT");
    match (option, said()) {
        (Some(port), _) => Ok(port),
        (None, None) => Ok(PORT),
        (None, Some((_, said))) => match said.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(ListenError::NoPort(said.clone())),
        },
    }
}

/// A socket that is bound: the port is taken, and connections are refused until it listens.
pub fn bind(port: u16, purpose: Use) -> Result<OwnedFd, ListenError> {
    let bound = match bind_to(AddressFamily::INET6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        // The kernel has no IPv6, or the pod's network has it turned off.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
            bind_to(AddressFamily::INET, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        bound => bound,
    };
    bound.map_err(|errno| error(port, purpose, errno))
}

fn bind_to(family: AddressFamily, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // A container that restarts finds its own port in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// From now on connections are taken.
pub fn listen(socket: OwnedFd, port: u16, purpose: Use) -> Result<TcpListener, ListenError> {
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| error(port, purpose, errno))?;
    Ok(socket.into())
}

fn error(port: u16, purpose: Use, errno: Errno) -> ListenError {
    match errno {
        Errno::ADDRINUSE => ListenError::InUse { port, purpose },
        Errno::ACCESS => ListenError::Privileged(port),
        cause => ListenError::Other { port, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn environment(port: &str) -> Vec<(String, String)> {
        vec![("PORT".to_owned(), port.to_owned())]
    }

    #[test]
    fn the_port_is_the_options_else_the_environments_else_8080() {
        assert_eq!(port(Some(9000), &environment("7000")).unwrap(), 9000);
        assert_eq!(port(None, &environment("7000")).unwrap(), 7000);
        assert_eq!(port(None, &[]).unwrap(), 8080);
        for wrong in ["0", "65536", "http", ""] {
            let message = port(None, &environment(wrong)).unwrap_err().to_string();
            assert!(
                message.contains(&format!("{wrong:?}")) && message.contains("1 to 65535"),
                "{message}"
            );
        }
    }

    #[test]
    fn both_families_arrive_and_only_once_it_listens() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let socket = bind(free, Use::Requests).unwrap();
        assert!(TcpStream::connect(("127.0.0.1", free)).is_err());
        let listener = listen(socket, free, Use::Requests).unwrap();
        assert!(TcpStream::connect(("127.0.0.1", free)).is_ok());
        // A machine may have no IPv6.
        if TcpListener::bind("[::1]:0").is_ok() {
            assert!(TcpStream::connect(("::1", free)).is_ok());
        }
        for (purpose, mend) in [(Use::Requests, "http-port"), (Use::Metrics, "metrics-port")] {
            let message = bind(free, purpose).unwrap_err().to_string();
            assert!(
                message.contains(&format!("port {free} is in use")) && message.contains(mend),
                "{message}"
            );
        }
        drop(listener);
    }
}
