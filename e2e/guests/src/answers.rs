//! What the services answer: one behaviour a path, whatever the version of wasi:http.

use std::sync::atomic::{AtomicU32, Ordering};

/// Whom [`Answer::Fetch`] asks.
pub const OTHER: &str = "127.0.0.1:8000";

/// What a request for a path gets.
pub enum Answer {
    /// These bytes.
    Text(String),
    /// These bytes, whose number Content-Length says.
    Sized(String),
    /// What it was asked as: scheme, authority and path.
    Asked,
    /// The request's body, as it comes.
    Echo,
    /// These bytes after so many milliseconds.
    Later(u64, &'static str),
    /// One byte each 50 ms for ever.
    Drip,
    /// Ten bytes where five were promised by Content-Length.
    Overrun,
    /// A body and the trailer `x-checksum: 42`.
    Trailers,
    /// A part of a body, and then a trap.
    Torn,
    /// These bytes, and then it spins.
    Linger(&'static str),
    /// The status of what `127.0.0.1:8000` answers for this path.
    Fetch(String),
    /// Nothing, ever.
    Never,
}

/// How many requests this instance has got.
static REQUESTS: AtomicU32 = AtomicU32::new(0);

/// The answer for `path`.
pub fn answer(path: &str) -> Answer {
    let requests = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
    match path {
        "/echo" => Answer::Echo,
        "/slow" => Answer::Later(300, "slow"),
        "/drip" => Answer::Drip,
        "/overrun" => Answer::Overrun,
        "/trailers" => Answer::Trailers,
        "/torn" => Answer::Torn,
        "/linger" => Answer::Linger("linger"),
        "/never" => Answer::Never,
        path if path.starts_with("/fetch/") => Answer::Fetch(path["/fetch".len()..].to_owned()),
        "/deep" => Answer::Text(deep(40_000).to_string()),
        path if path.starts_with("/asked") => Answer::Asked,
        "/sized" => Answer::Sized(requests.to_string()),
        "/count" => Answer::Text(requests.to_string()),
        "/env" => Answer::Text(
            std::env::vars()
                .map(|(key, value)| format!("{key}={value}\n"))
                .collect(),
        ),
        "/trap" => panic!("told to trap"),
        "/spin" => spin(),
        "/grow" => {
            let mut kept = Vec::new();
            loop {
                kept.push(vec![1_u8; 1 << 20]);
            }
        }
        _ => Answer::Text("hello\n".to_owned()),
    }
}

/// Uses the processor for ever.
pub fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// Calls itself so many times, which takes more stack than guests have by default.
fn deep(times: u32) -> u32 {
    match times {
        0 => 0,
        // Not what a compiler makes a loop of.
        _ => std::hint::black_box(deep as fn(u32) -> u32)(times - 1) + 1,
    }
}
