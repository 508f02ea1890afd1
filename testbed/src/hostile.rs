//! Clients of an HTTP service, half of which misbehave: they read slowly, reset connections, leave heads unfinished or send
//! what is no HTTP. The other half must not notice.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// The longest that anybody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a client that sends nothing more stays.
const SILENCE: Duration = Duration::from_secs(1);

/// What a slow reader sends to get it back, and how much of it at a time and how often it reads.
const ECHOED: usize = 4 << 20;
const SIP: usize = 4 << 10;
const PAUSE: Duration = Duration::from_millis(10);

/// No HTTP, or none that may be served. Each is refused or the connection closed.
const MALFORMED: [&[u8]; 8] = [
    b"nonsense\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a client of TLS\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nA header without a colon\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: minus\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
];

/// What became of the requests of all clients.
#[derive(Debug, Default)]
pub struct Seen {
    /// Well-formed ones that got their answer.
    pub answered: u64,
    /// Malformed ones that got a 4xx or the end of their connection.
    pub refused: u64,
    pub reset: u64,
    pub left_half_open: u64,
    /// Bytes that slow readers got back.
    pub sipped: u64,
    /// What should not have been, the first of each client.
    pub wrong: Vec<String>,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.reset += other.reset;
        self.left_half_open += other.left_half_open;
        self.sipped += other.sipped;
        self.wrong.extend(other.wrong);
    }
}

/// Has so many clients, each with a connection, at the service at `address` for `time`. It answers `/hello` with `hello`
/// and a newline, and `/echo` with the request's body.
pub fn clients(address: SocketAddr, count: usize, time: Duration) -> Seen {
    let all = Mutex::new(Seen::default());
    let end = Instant::now() + time;
    thread::scope(|scope| {
        for number in 0..count {
            let all = &all;
            scope.spawn(move || {
                let mut seen = Seen::default();
                if let Err(error) = client(number, address, end, &mut seen) {
                    seen.wrong.push(format!("client {number}: {error}"));
                }
                all.lock().unwrap_or_else(|error| error.into_inner()).add(seen);
            });
        }
    });
    all.into_inner().unwrap_or_else(|error| error.into_inner())
}

fn client(number: usize, address: SocketAddr, end: Instant, seen: &mut Seen) -> Result<()> {
    let connect = || {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    };
    let mut kept = None;
    let mut round = number;
    while Instant::now() < end {
        round += 1;
        match number % 8 {
            0..4 => {
                let stream = kept.take().map_or_else(connect, Ok)?;
                kept = Some(well_formed(stream)?);
                seen.answered += 1;
            }
            4 => seen.sipped += slow(connect()?, end)?,
            5 => {
                reset(connect()?, round)?;
                seen.reset += 1;
            }
            6 => {
                half_open(connect()?, end)?;
                seen.left_half_open += 1;
            }
            _ => {
                malformed(connect()?, MALFORMED[round % MALFORMED.len()])?;
                seen.refused += 1;
            }
        }
    }
    Ok(())
}

fn well_formed(mut stream: TcpStream) -> Result<TcpStream> {
    stream.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
    // By its last chunk or by its length.
    while !answer.ends_with(b"0\r\n\r\n") && !answer.ends_with(b"\r\n\r\nhello\n") {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err(wrong("the connection was closed in an answer", &answer));
        }
        answer.extend(&piece[..read]);
    }
    let is_right = answer.starts_with(b"HTTP/1.1 200 ") && answer.windows(6).any(|bytes| bytes == b"hello\n");
    is_right
        .then_some(stream)
        .ok_or_else(|| wrong("another answer", &answer))
}

/// Sends as much as the service takes and reads a little now and then, of one answer, to its end or until `end`.
fn slow(mut stream: TcpStream, end: Instant) -> Result<u64> {
    stream.write_all(format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {ECHOED}\r\n\r\n").as_bytes())?;
    stream.set_nonblocking(true)?;
    let (body, mut sip) = ([b'e'; SIP * 4], [0; SIP]);
    let (mut sent, mut read) = (0, 0);
    while Instant::now() < end && read < ECHOED {
        if sent < ECHOED {
            sent += moved(stream.write(&body[..body.len().min(ECHOED - sent)]))?.unwrap_or(0);
        }
        match moved(stream.read(&mut sip))? {
            Some(0) => return Err(wrong("the echo ended too early", &sip)),
            Some(count) if read == 0 && !sip.starts_with(b"HTTP/1.1 200 ") => {
                return Err(wrong("no echo", &sip[..count]));
            }
            Some(count) => read += count,
            None => {}
        }
        thread::sleep(PAUSE);
    }
    Ok(read as u64)
}

/// How much a call that does not wait has moved.
fn moved(result: Result<usize>) -> Result<Option<usize>> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

/// Resets the connection in a head, behind one, or in an answer.
fn reset(mut stream: TcpStream, round: usize) -> Result<()> {
    let request = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nsome of the body";
    let part = [20, request.len() - 16, request.len()][round % 3];
    stream.write_all(&request[..part])?;
    if round % 3 == 2 {
        let _ = stream.read(&mut [0; 8])?;
    }
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    drop(stream);
    thread::sleep(PAUSE);
    Ok(())
}

/// Begins a head and says nothing more for a while.
fn half_open(mut stream: TcpStream, end: Instant) -> Result<()> {
    stream.write_all(b"GET /hello HTTP/1.1\r\nHost:")?;
    thread::sleep(SILENCE.min(end.saturating_duration_since(Instant::now())));
    Ok(())
}

fn malformed(mut stream: TcpStream, request: &[u8]) -> Result<()> {
    stream.write_all(request)?;
    // So that a head that a parser waits for the rest of ends too; a service that refused it may have closed by now.
    match stream.shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() != ErrorKind::NotConnected => return Err(error),
        _ => {}
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(error),
        _ => {}
    }
    thread::sleep(PAUSE);
    let refused = answer.is_empty() || answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.0 4");
    match refused {
        true => Ok(()),
        false => Err(wrong("a malformed request got an answer", &answer)),
    }
}

fn wrong(what: &str, answer: &[u8]) -> std::io::Error {
    std::io::Error::other(format!("{what}: {:?}", String::from_utf8_lossy(answer)))
}
