//! Stands between servers and containerd's event endpoint, so that it can be shut between two events.
//!
//! ```text
//! server ──> containerd.sock.ttrpc (ours) ──> containerd.sock.ttrpc.real (containerd's)
//! ```
//!
//! No event is on its way when the gate has shut: an answer that is lost would be asked for again, and an event that
//! containerd took but told nobody would be gone, neither of which a server can know.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::RwLock;

/// A ttrpc message's header: length, stream, type, flags (ttrpc, PROTOCOL.md).
const HEADER: usize = 10;

/// ttrpc's longest message.
const MESSAGE: usize = 4 << 20;

/// The gate; it begins shut.
pub struct Gate {
    /// Where containerd listens and servers connect.
    endpoint: PathBuf,
    /// Our own socket, linked to the endpoint.
    own: PathBuf,
    open: Arc<RwLock<bool>>,
}

impl Gate {
    /// Makes the gate for the containerd whose event endpoint is `endpoint`.
    pub fn new(endpoint: PathBuf) -> Result<Gate> {
        let own = endpoint.with_extension("gate");
        let listener = UnixListener::bind(&own).with_context(|| format!("cannot listen at {}", own.display()))?;
        let gate = Gate {
            open: Arc::default(),
            endpoint,
            own,
        };
        let (open, real) = (gate.open.clone(), gate.real());
        tokio::spawn(async move {
            while let Ok((server, _)) = listener.accept().await {
                let (open, real) = (open.clone(), real.clone());
                // Whoever hangs up, the other side hears of it, and the server tries again.
                tokio::spawn(async move { carry(server, &real, &open).await });
            }
        });
        Ok(gate)
    }

    fn real(&self) -> PathBuf {
        self.endpoint.with_extension("ttrpc.real")
    }

    /// Puts itself where a starting containerd makes its endpoint, the moment it is made. Blocks.
    pub fn stand(&self, limit: Duration) -> Result<()> {
        let since = Instant::now();
        let ours = fs::metadata(&self.own)?.ino();
        loop {
            match fs::metadata(&self.endpoint) {
                Ok(found) if found.ino() != ours => break,
                _ if since.elapsed() > limit => bail!("containerd made no {} in {limit:?}", self.endpoint.display()),
                _ => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        // Exchanged, so that there is always one: containerd changes its endpoint's mode and owner by path.
        let real = self.real();
        match fs::remove_file(&real) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        fs::hard_link(&self.own, &real)?;
        renameat_with(CWD, &real, CWD, &self.endpoint, RenameFlags::EXCHANGE)?;
        Ok(())
    }

    pub async fn open(&self) {
        *self.open.write().await = true;
    }

    /// Shuts it, once the events on their way have been answered.
    pub async fn shut(&self) {
        *self.open.write().await = false;
    }
}

/// Carries one server's events, a message there and its answer back, while the gate is open.
async fn carry(mut server: UnixStream, real: &Path, open: &RwLock<bool>) -> io::Result<()> {
    let mut containerd = None;
    loop {
        let event = message(&mut server).await?;
        let passage = open.read().await;
        if !*passage {
            return Ok(());
        }
        let containerd = match &mut containerd {
            Some(containerd) => containerd,
            None => containerd.insert(UnixStream::connect(real).await?),
        };
        containerd.write_all(&event).await?;
        let answer = message(containerd).await?;
        server.write_all(&answer).await?;
    }
}

async fn message(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; HEADER];
    stream.read_exact(&mut message).await?;
    let length = u32::from_be_bytes([message[0], message[1], message[2], message[3]]) as usize;
    if length > MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    message.resize(HEADER + length, 0);
    stream.read_exact(&mut message[HEADER..]).await?;
    Ok(message)
}
