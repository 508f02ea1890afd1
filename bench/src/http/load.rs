//! Load: clients that keep their connections and ask again as soon as they are answered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What was seen of one server under one load.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub requests_per_second: f64,
    pub median: Duration,
    /// The time in which 99 of 100 requests were answered.
    pub p99: Duration,
    /// All that were answered, with those of the warming up.
    pub answered: usize,
}

const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: bench\r\n\r\n";

/// Asks by so many connections for `time`, after a tenth of that to warm up.
///
/// # Errors
///
/// When a connection breaks or an answer is not 200.
pub async fn load(address: SocketAddr, connections: usize, time: Duration) -> Result<Seen> {
    let begin = Instant::now() + time / 10;
    let end = begin + time;
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        clients.spawn(client(address, begin, end));
    }
    let (mut latencies, mut answered) = (Vec::new(), 0);
    while let Some(client) = clients.join_next().await {
        let (mut measured, warming_up) = client.context("a client panicked")??;
        answered += measured.len() + warming_up;
        latencies.append(&mut measured);
    }
    ensure!(!latencies.is_empty(), "nothing was answered within {time:?}");
    latencies.sort_unstable();
    let share = |hundredths: usize| latencies[(latencies.len() - 1) * hundredths / 100];
    Ok(Seen {
        requests_per_second: latencies.len() as f64 / time.as_secs_f64(),
        median: share(50),
        p99: share(99),
        answered,
    })
}

/// How long each request took that was asked between `begin` and `end`, and how many were asked before.
async fn client(address: SocketAddr, begin: Instant, end: Instant) -> Result<(Vec<Duration>, usize)> {
    let mut stream = connect(address).await?;
    let (mut latencies, mut warming_up, mut buffer) = (Vec::new(), 0, Vec::with_capacity(4096));
    loop {
        let asked = Instant::now();
        if asked >= end {
            return Ok((latencies, warming_up));
        }
        ask(&mut stream, &mut buffer).await?;
        if asked >= begin {
            latencies.push(asked.elapsed());
        } else {
            warming_up += 1;
        }
    }
}

/// So many connections, each of which was answered once.
///
/// # Errors
///
/// As [`load`].
pub async fn kept(address: SocketAddr, connections: usize) -> Result<Vec<TcpStream>> {
    let (mut kept, mut buffer) = (Vec::new(), Vec::with_capacity(4096));
    for _ in 0..connections {
        let mut stream = connect(address).await?;
        ask(&mut stream, &mut buffer).await?;
        kept.push(stream);
    }
    Ok(kept)
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks once, and reads the answer, whose end its length or its last chunk tells.
async fn ask(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    stream.write_all(REQUEST).await.context("cannot ask")?;
    buffer.clear();
    while !is_whole(buffer)? {
        let read = stream.read_buf(buffer).await.context("cannot read an answer")?;
        ensure!(read > 0, "the server closed the connection in the middle of an answer");
    }
    Ok(())
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(head) = answer.windows(END.len()).position(|bytes| bytes == END) else {
        return Ok(false);
    };
    let text = std::str::from_utf8(&answer[..head])?;
    ensure!(text.starts_with("HTTP/1.1 200"), "an answer that is not 200: {text}");
    let body = &answer[head + END.len()..];
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            return Ok(body.len() >= value.trim().parse()?);
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(body.ends_with(b"0\r\n\r\n"));
        }
    }
    bail!("an answer whose end cannot be told: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_by_its_length_or_its_last_chunk() {
        let whole = |text: &str| is_whole(text.as_bytes()).unwrap();
        assert!(!whole("HTTP/1.1 200 OK\r\ncontent-le"));
        assert!(!whole("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"));
        assert!(whole("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"));
        assert!(!whole(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nhello\n\r\n"
        ));
        assert!(whole(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nhello\n\r\n0\r\n\r\n"
        ));
        assert!(is_whole(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").is_err());
    }
}
