//! Greets, or waits: enough to see a container run and to measure one that idles.

use std::io::{self, Write};
use std::time::Duration;

fn main() -> io::Result<()> {
    let name = std::env::var("NAME").unwrap_or_else(|_| "world".into());
    println!("Hello, {name}, from {}", std::env::consts::ARCH);
    io::stdout().flush()?;
    while std::env::args().nth(1).as_deref() == Some("idle") {
        std::thread::sleep(Duration::from_secs(3600));
    }
    Ok(())
}
