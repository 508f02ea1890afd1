//! `start`: finds the server of a container or spawns it, under a lock, reserves the container and tells its address.
//!
//! containerd reads stdout and stderr as one: on success nothing is written but the reply.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kubewasi_options::{Options, OptionsError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::args::Flags;
use super::bundle::{self, BundleError};
use super::control::{self, ControlError, Reply, Request};
use super::dialect::{self, Input, InputError, RuntimeOptions};
use super::folder::{self, Grouping, Lock, Settings};

/// As which name the server is seen in process lists.
const ARGV0: &str = "containerd-shim-wasi-v1";

/// What the server tells on its stdout once it listens.
pub const READY: &str = "ready";

/// The most bytes of options that are read: containerd's own limit.
const INPUT_MAX: u64 = 10 << 20;

/// Why no server could be named.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot {act} {}: {cause}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error(transparent)]
    Input(#[from] InputError),
    /// `place` is the file they stand in, or says that containerd's configuration holds them itself.
    #[error("{place}: {cause}")]
    Options { place: String, cause: OptionsError },
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the server could not start: {0}")]
    Server(String),
    #[error("the server ended before it listened")]
    ServerGone,
    #[error("the server answered {0:?} to a reservation")]
    Unexpected(Reply),
    /// It may have died before it had told all it had to.
    #[error("containerd has gone away, nobody reads the address")]
    NobodyWaits,
    #[error("the server's key cannot be made: {0}")]
    Key(#[from] serde_json::Error),
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |cause| StartError::Io { act, path, cause }
}

/// Runs `start` in the bundle, the working directory; returns what to print.
pub fn run(flags: &Flags) -> Result<Vec<u8>, StartError> {
    let mut stdin = Vec::new();
    if !io::stdin().is_terminal() {
        let read = io::stdin().take(INPUT_MAX).read_to_end(&mut stdin);
        read.map_err(io_error("read", Path::new("stdin")))?;
    }
    if !awaited()? {
        return Err(StartError::NobodyWaits);
    }
    let input = dialect::input(&stdin, &flags.namespace, &flags.id)?;
    let bundle = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => env::current_dir().map_err(io_error("find", Path::new("the working directory")))?,
    };
    let address = serve(flags, &input, &bundle)?;
    // containerd 1.x finds the server again by this file after its own restart; our `delete` reads it everywhere.
    let file = bundle.join("address");
    fs::write(&file, &address).map_err(io_error("write", &file))?;
    Ok(dialect::reply(input.dialect, &address))
}

/// Whether somebody holds the other end of our stdout. A containerd that was killed has closed our stdin too, perhaps
/// without having written our options: without this a server with other options would be started, for nobody.
fn awaited() -> Result<bool, StartError> {
    let stdout = io::stdout();
    let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
    let failed = |errno: Errno| io_error("look at", Path::new("stdout"))(errno.into());
    poll(&mut ends, Some(&Timespec::default())).map_err(failed)?;
    Ok(!ends[0].revents().contains(PollFlags::ERR))
}

/// The address of the server that now waits for the container.
fn serve(flags: &Flags, input: &Input, bundle: &Path) -> Result<String, StartError> {
    let exe = env::current_exe().map_err(io_error("find", Path::new("/proc/self/exe")))?;
    let options = options(input.options.as_ref(), &exe.with_extension("toml"))?;
    let sandbox = bundle::sandbox_id(bundle)?;
    let reserve = Request::Reserve {
        namespace: flags.namespace.clone(),
        id: flags.id.clone(),
        bundle: bundle.to_owned(),
    };

    // The pod may live on the server of an older build: its containers stay together.
    if let Some(sandbox) = sandbox.as_deref().filter(|sandbox| *sandbox != flags.id)
        && let Some(address) = bundle::sibling(bundle, sandbox).and_then(|sibling| bundle::address(&sibling))
        && let Some(folder) = folder::of_address(&address)
    {
        match control::ask(&folder::control(&folder), &reserve) {
            Ok(_) => return Ok(address),
            Err(ControlError::Refused(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }

    let build = folder::build().map_err(io_error("inspect", Path::new("/proc/self/exe")))?;
    let key = folder::key(&Grouping {
        address: &flags.address,
        build: &build,
        options: &options,
        namespace: &flags.namespace,
        pod: sandbox.as_deref().unwrap_or(&flags.id),
    })?;
    let folder = Path::new(folder::ROOT).join(&key);
    let socket_dir = Path::new(input.socket_dir.as_deref().unwrap_or(folder::SOCKETS));
    let settings = Settings {
        address: flags.address.clone().into(),
        ttrpc_address: input
            .ttrpc_address
            .clone()
            .or_else(|| env::var("TTRPC_ADDRESS").ok())
            .unwrap_or_else(|| format!("{}.ttrpc", flags.address)),
        socket: folder::sockets(socket_dir, &folder, &key),
        options,
        debug: flags.debug,
    };

    let lock = Lock::take(&folder).map_err(io_error("lock", &folder))?;
    let reply = match control::ask(&folder::control(&folder), &reserve) {
        Err(ControlError::Refused(_)) => {
            folder::make(socket_dir).map_err(io_error("make", socket_dir))?;
            lock.write(&settings)
                .map_err(io_error("write settings into", &folder))?;
            if let Err(error) = spawn(&folder) {
                // The error is what matters; a folder that stays is found and used by the next `start`.
                let _ = lock.remove();
                return Err(error);
            }
            control::ask(&folder::control(&folder), &reserve)?
        }
        answer => answer?,
    };
    match reply {
        Reply::Reserved { address } => Ok(address),
        other => Err(StartError::Unexpected(other)),
    }
}

/// The handler's options: containerd's TOML, else the file it names, else the file `beside` the binary, else the
/// defaults. containerd 2.x makes pods with `hostUsers: false` only for handlers that have no options in its
/// configuration (`getRuncOptions` in its client), so theirs are in the file.
fn options(given: Option<&RuntimeOptions>, beside: &Path) -> Result<Options, StartError> {
    let Some(given) = given else {
        return match fs::read_to_string(beside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Options::default()),
            Err(error) => Err(io_error("read the runtime options in", beside)(error)),
            Ok(toml) => kubewasi_options::parse(&toml).map_err(|cause| StartError::Options {
                place: beside.display().to_string(),
                cause,
            }),
        };
    };
    if !given.config_body.is_empty() {
        let body = String::from_utf8_lossy(&given.config_body);
        return kubewasi_options::parse(&body).map_err(|cause| StartError::Options {
            place: "the runtime options".into(),
            cause,
        });
    }
    if given.config_path.is_empty() {
        return Ok(Options::default());
    }
    let path = PathBuf::from(&given.config_path);
    let toml = fs::read_to_string(&path).map_err(io_error("read the runtime options in", &path))?;
    kubewasi_options::parse(&toml).map_err(|cause| StartError::Options {
        place: given.config_path.clone(),
        cause,
    })
}

/// Starts the server of `folder` and waits until it listens.
fn spawn(folder: &Path) -> Result<(), StartError> {
    let exe = Path::new("/proc/self/exe");
    // containerd's environment holds proxies and other people's secrets; a server needs none of it.
    let kept = ["PATH", "RUST_LOG", "RUST_BACKTRACE"]
        .into_iter()
        .filter_map(|name| Some((name, env::var_os(name)?)));
    let mut server = Command::new(exe)
        .arg0(ARGV0)
        .arg("serve")
        .arg(folder)
        .env_clear()
        .envs(kept)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(io_error("run", exe))?;
    let mut said = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut said)
            .map_err(io_error("hear", folder))?;
    }
    match said.trim() {
        READY => Ok(()),
        "" => Err(StartError::ServerGone),
        error => Err(StartError::Server(error.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(toml: &str) -> RuntimeOptions {
        RuntimeOptions {
            config_body: toml.into(),
            ..RuntimeOptions::default()
        }
    }

    #[test]
    fn the_options_in_containerds_configuration_win_over_a_file() {
        let given = RuntimeOptions {
            config_path: "/nowhere".into(),
            ..body("idle_timeout = 0")
        };
        let nowhere = Path::new("/nowhere/options.toml");
        assert_eq!(
            options(Some(&given), nowhere).unwrap().idle_timeout,
            std::time::Duration::ZERO
        );
        assert_eq!(options(None, nowhere).unwrap(), Options::default());
    }

    #[test]
    fn without_options_of_the_handlers_those_beside_the_binary_count() {
        let beside = std::env::temp_dir().join(format!("kubewasi-beside-{}.toml", std::process::id()));
        fs::write(&beside, "idle_timeout = 7").unwrap();
        assert_eq!(
            options(None, &beside).unwrap().idle_timeout,
            std::time::Duration::from_secs(7)
        );
        assert_eq!(
            options(Some(&RuntimeOptions::default()), &beside).unwrap(),
            Options::default()
        );
        fs::write(&beside, "idle_timout = 7").unwrap();
        let error = options(None, &beside).unwrap_err().to_string();
        assert!(error.contains(&beside.display().to_string()), "{error}");
        fs::remove_file(beside).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let given = RuntimeOptions {
            config_path: "/nowhere/options.toml".into(),
            ..RuntimeOptions::default()
        };
        assert_eq!(
            options(Some(&given), Path::new("/nowhere")).unwrap_err().to_string(),
            "cannot read the runtime options in /nowhere/options.toml: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_where_it_stands() {
        assert_eq!(
            options(Some(&body("scop = 'pod'")), Path::new("/nowhere"))
                .unwrap_err()
                .to_string(),
            "the runtime options: unknown option \"scop\"; did you mean scope?"
        );
        let path = std::env::temp_dir().join(format!("kubewasi-options-{}.toml", std::process::id()));
        fs::write(&path, "scop = 'pod'").unwrap();
        let given = RuntimeOptions {
            config_path: path.display().to_string(),
            ..RuntimeOptions::default()
        };
        assert_eq!(
            options(Some(&given), Path::new("/nowhere")).unwrap_err().to_string(),
            format!("{}: unknown option \"scop\"; did you mean scope?", path.display())
        );
    }
}
