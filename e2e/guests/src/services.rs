//! What a 0.2 probe asks its host's other interfaces: wasi:config, wasi:keyvalue and wasi:http.

use std::io::{self, Write};
use std::time::Duration;

use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{Fields, Method, OutgoingBody, OutgoingRequest, Scheme};
use wasip2::io::streams::StreamError;

wit_bindgen::generate!({
    inline: "
        package wasi:config@0.2.0-rc.1;
        interface store {
            variant error { upstream(string), io(string) }
            get: func(key: string) -> result<option<string>, error>;
            get-all: func() -> result<list<tuple<string, string>>, error>;
        }
        world config { import store; }
    ",
});

/// Prints the value of `name`, or that there is none; without a name all of them, sorted.
pub fn config(name: &str) -> io::Result<()> {
    use wasi::config::store;
    let told = |error| io::Error::other(format!("{error:?}"));
    if name.is_empty() {
        let mut all = store::get_all().map_err(told)?;
        all.sort();
        all.iter().for_each(|(name, value)| println!("{name}={value}"));
    } else {
        println!("{:?}", store::get(name).map_err(told)?);
    }
    Ok(())
}

/// Asks for `url` so many times, one after the other, and prints each answer.
pub fn get(url: &str, times: u32) -> io::Result<()> {
    for _ in 0..times {
        print(answer(url, None)?)?;
    }
    Ok(())
}

/// Sends so many bytes to `url`, a piece after the other, and prints the answer.
pub fn post(url: &str, length: usize) -> io::Result<()> {
    print(answer(url, Some(length))?)
}

fn print((status, body): (u16, Vec<u8>)) -> io::Result<()> {
    println!("{status}");
    io::stdout().write_all(&body)
}

/// Asks for `url` again and again, and prints the line of each answer that has `text`, or why there is none.
pub fn ask(url: &str, text: &str) -> io::Result<()> {
    loop {
        match answer(url, None) {
            Ok((200, body)) => {
                let body = String::from_utf8_lossy(&body);
                println!(
                    "{}",
                    body.lines()
                        .find(|line| line.contains(text))
                        .unwrap_or("failed: other text")
                );
            }
            Ok((status, _)) => println!("failed: {status}"),
            Err(error) => println!("failed: {error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The answer of `url` to a request with so many bytes of a body.
fn answer(url: &str, length: Option<usize>) -> io::Result<(u16, Vec<u8>)> {
    let told = |what: &str| io::Error::other(format!("{url}: {what}"));
    let (scheme, authority, path) = parts(url).ok_or_else(|| told("no URL"))?;
    let request = OutgoingRequest::new(Fields::new());
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    set.map_err(|()| told("refused"))?;
    let body = match length {
        Some(_) => {
            request.set_method(&Method::Post).map_err(|()| told("refused"))?;
            Some(request.body().map_err(|()| told("no body"))?)
        }
        None => None,
    };
    let future = handle(request, None).map_err(|error| told(&format!("{error:?}")))?;
    if let Some(body) = body {
        let stream = body.write().map_err(|()| told("no stream"))?;
        for piece in vec![b'.'; length.unwrap_or_default()].chunks(4096) {
            let written = stream.blocking_write_and_flush(piece);
            written.map_err(|error| told(&format!("{error:?}")))?;
        }
        drop(stream);
        OutgoingBody::finish(body, None).map_err(|error| told(&format!("{error:?}")))?;
    }
    future.subscribe().block();
    let response = match future.get() {
        Some(Ok(Ok(response))) => response,
        Some(Ok(Err(error))) => return Err(told(&format!("{error:?}"))),
        _ => return Err(told("no answer")),
    };
    let body = response.consume().map_err(|()| told("no body"))?;
    let stream = body.stream().map_err(|()| told("no stream"))?;
    let mut all = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(part) => all.extend(part),
            Err(StreamError::Closed) => break,
            Err(error) => return Err(told(&format!("{error:?}"))),
        }
    }
    Ok((response.status(), all))
}

/// Scheme, authority and path of a URL.
pub fn parts(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let path = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path);
    Some((scheme, authority, if path.is_empty() { "/" } else { path }))
}

pub mod store {
    //! wasi:keyvalue, in a module of its own: its interfaces have names that others have too.

    use std::io;

    wit_bindgen::generate!({
        inline: "
            package wasi:keyvalue@0.2.0-draft;
            interface store {
                variant error { no-such-store, access-denied, other(string) }
                record key-response { keys: list<string>, cursor: option<u64> }
                open: func(identifier: string) -> result<bucket, error>;
                resource bucket {
                    get: func(key: string) -> result<option<list<u8>>, error>;
                    set: func(key: string, value: list<u8>) -> result<_, error>;
                    delete: func(key: string) -> result<_, error>;
                    exists: func(key: string) -> result<bool, error>;
                    list-keys: func(cursor: option<u64>) -> result<key-response, error>;
                }
            }
            interface atomics {
                use store.{bucket, error};
                increment: func(bucket: borrow<bucket>, key: string, delta: u64) -> result<u64, error>;
            }
            world keyvalue { import store; import atomics; }
        ",
    });

    use self::wasi::keyvalue::{atomics, store};

    /// Writes, reads, counts and deletes in the default store, and asks for one that is not there.
    pub fn exercise() -> io::Result<()> {
        let told = |error| io::Error::other(format!("{error:?}"));
        let bucket = store::open("").map_err(told)?;
        bucket.set("key", b"value").map_err(told)?;
        let value = bucket.get("key").map_err(told)?.unwrap_or_default();
        println!("{}", String::from_utf8_lossy(&value));
        atomics::increment(&bucket, "count", 3).map_err(told)?;
        println!("{}", atomics::increment(&bucket, "count", 4).map_err(told)?);
        bucket.delete("key").map_err(told)?;
        println!(
            "{} {:?}",
            bucket.exists("key").map_err(told)?,
            bucket.list_keys(None).map_err(told)?.keys
        );
        println!("{:?}", store::open("other").err());
        Ok(())
    }
}
