//! A containerd that is started, stopped and killed at will, all it writes in one folder.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A containerd, running or not.
#[derive(Debug)]
pub struct Daemon {
    /// The folder of `containerd`, `ctr` and containerd's own shims.
    binaries: PathBuf,
    /// The folder of its configuration, log and sockets.
    folder: PathBuf,
    process: Option<Child>,
}

impl Daemon {
    /// A containerd of `binaries` that is to live in `folder`; it does not run yet.
    pub fn new(binaries: PathBuf, folder: PathBuf) -> Daemon {
        Daemon {
            binaries,
            folder,
            process: None,
        }
    }

    /// Its gRPC socket; the one for ttrpc has `.ttrpc` after it.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// What it and its shims have logged.
    pub fn log(&self) -> PathBuf {
        self.folder.join("containerd.log")
    }

    /// The folder of the shim binaries that it finds before all others.
    pub fn shims(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// `ctr` on this containerd.
    pub fn ctr(&self) -> Command {
        let mut ctr = Command::new(self.binaries.join("ctr"));
        ctr.arg("--address").arg(self.socket());
        ctr
    }

    /// The part of a configuration that keeps it from every other containerd of the machine.
    pub fn private(&self) -> String {
        let folder = self.folder.display();
        format!(
            "root = \"{folder}/root\"\nstate = \"{folder}/state\"\n[grpc]\naddress = \"{folder}/containerd.sock\"\n\
             [debug]\nlevel = \"info\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{folder}/opt\"\n"
        )
    }

    /// Starts it with the TOML `config`; it may take seconds until it answers.
    ///
    /// # Errors
    ///
    /// When a file cannot be written or the binary not be run.
    pub fn start(&mut self, config: &str) -> io::Result<()> {
        let file = self.folder.join("config.toml");
        fs::write(&file, config)?;
        let log = File::options().create(true).append(true).open(self.log())?;
        let path = [
            &self.shims(),
            &self.binaries,
            Path::new("/usr/sbin"),
            Path::new("/usr/bin"),
            Path::new("/sbin"),
            Path::new("/bin"),
        ];
        let process = Command::new(self.binaries.join("containerd"))
            .arg("--config")
            .arg(&file)
            .env("PATH", std::env::join_paths(path).map_err(io::Error::other)?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it by `signal`; containers run on. Nothing happens when it does not run.
    ///
    /// # Errors
    ///
    /// What kill(2) and wait(2) say.
    pub fn end(&mut self, signal: Signal) -> io::Result<()> {
        if let Some(mut process) = self.process.take() {
            kill_process(Pid::from_child(&process), signal)?;
            process.wait()?;
        }
        Ok(())
    }
}
