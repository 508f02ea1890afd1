//! What a probe does with a network, by std, which is WASI 0.2's sockets in a component: each command is one side of one
//! exchange of a text.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

/// Runs `command` if it is one of these; `first` is an address with a port, or a name.
pub fn perform(command: &str, first: &str, text: &str) -> Option<io::Result<()>> {
    Some(match command {
        "tcp-client" => tcp_client(first, text),
        "tcp-server" => tcp_server(first),
        "udp-client" => udp_client(first, text),
        "udp-server" => udp_server(first),
        "resolve" => resolve(first),
        _ => return None,
    })
}

/// Sends `text` and prints what comes back.
fn tcp_client(address: &str, text: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}

/// Says that it listens, and answers one client with its own text.
fn tcp_server(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    say("listening")?;
    let (mut stream, _) = listener.accept()?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    stream.write_all(&text)
}

fn udp_client(address: &str, text: &str) -> io::Result<()> {
    let any = if address.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.send(text.as_bytes())?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    println!("{}", String::from_utf8_lossy(&answer[..length]));
    Ok(())
}

fn udp_server(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    say("listening")?;
    let mut text = [0; 512];
    let (length, from) = socket.recv_from(&mut text)?;
    socket.send_to(&text[..length], from).map(drop)
}

/// Prints the addresses of a name, one a line.
fn resolve(name: &str) -> io::Result<()> {
    let mut found: Vec<_> = (name, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    found.sort();
    found.dedup();
    found.iter().for_each(|address| println!("{address}"));
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    println!("{line}");
    io::stdout().flush()
}
