//! The task API's sockets: one a namespace, since containerd 1.6 does not say the namespace in its requests.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::ttrpc;
use tokio::net::UnixListener;
use tokio::sync::Mutex;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::service::{self, Node};
use crate::bootstrap::folder;

/// Why a socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("cannot {act} {}: {cause}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("cannot serve the task API: {0}")]
    Ttrpc(#[from] ttrpc::Error),
}

/// The sockets that are open; dropping them ends the serving.
pub struct Sockets {
    /// Their path without the namespace's tag.
    path: PathBuf,
    open: Mutex<HashMap<String, Server>>,
}

impl Sockets {
    pub fn new(path: PathBuf) -> Sockets {
        Sockets {
            path,
            open: Mutex::default(),
        }
    }

    /// Where the containers of `namespace` are served, a `unix://` URL.
    pub fn address(&self, namespace: &str) -> String {
        format!("unix://{}", folder::socket(&self.path, namespace).display())
    }

    /// Serves the containers of `namespace`, if they are not served already; returns where.
    pub async fn open(&self, namespace: &str, node: &Arc<Node>) -> Result<String, SocketError> {
        let mut open = self.open.lock().await;
        if !open.contains_key(namespace) {
            let listener = bind(&folder::socket(&self.path, namespace))?;
            let services = service::services(node, namespace);
            let mut server = Server::new()
                .add_listener(Listener::from(listener))
                .register_service(services);
            server.start().await?;
            open.insert(namespace.to_owned(), server);
        }
        Ok(self.address(namespace))
    }

    /// Removes the sockets, so that nobody new comes; who is connected stays.
    pub async fn remove(&self) -> io::Result<()> {
        let open = self.open.lock().await;
        open.keys()
            .try_for_each(|namespace| fs::remove_file(folder::socket(&self.path, namespace)))
    }
}

/// Listens at `path`, where nobody else does: `start` holds the lock and has found no live server.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |act| {
        move |cause| SocketError::Io {
            act,
            path: path.to_owned(),
            cause,
        }
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("listen at"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    Ok(listener)
}
