//! An HTTP service that counts its visits in a Redis beside it: each pod has its own, as a sidecar, on 127.0.0.1.

use anyhow::{Context, bail};
use wstd::http::{Body, Error, Request, Response};
use wstd::io::{AsyncRead, AsyncWrite};
use wstd::net::TcpStream;

/// Where the sidecar listens, unless `REDIS` says otherwise.
const REDIS: &str = "127.0.0.1:6379";

#[wstd::http_server]
async fn main(_request: Request<Body>) -> Result<Response<Body>, Error> {
    let address = std::env::var("REDIS").unwrap_or_else(|_| REDIS.to_owned());
    Ok(match increment(&address, "visits").await {
        Ok(visits) => Response::new(format!("visit {visits}\n").into()),
        Err(error) => {
            eprintln!("visits: {error:#}");
            Response::builder()
                .status(503)
                .body("the counter cannot be reached\n".to_owned().into())?
        }
    })
}

/// Adds one to the counter `key` and returns what it is then.
async fn increment(address: &str, key: &str) -> anyhow::Result<u64> {
    let mut redis = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    // A command is an array of strings (RESP).
    let command = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len());
    redis.write_all(command.as_bytes()).await.context("cannot ask")?;
    let reply = line(&mut redis).await.context("no reply")?;
    match reply.strip_prefix(':') {
        Some(number) => number.parse().with_context(|| format!("{number:?} is no number")),
        None => bail!("redis says {reply:?}"),
    }
}

/// Reads up to the end of a line.
async fn line(stream: &mut TcpStream) -> anyhow::Result<String> {
    let (mut text, mut buffer) = (Vec::new(), [0; 64]);
    while !text.ends_with(b"\r\n") {
        match stream.read(&mut buffer).await? {
            0 => bail!("the connection ended after {:?}", String::from_utf8_lossy(&text)),
            read => text.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(String::from_utf8(text)?.trim_end().to_owned())
}
