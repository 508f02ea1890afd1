//! A host of one test's own: systemd, D-Bus and containerd as a service of theirs, in namespaces of mounts and processes.
//!
//! systemd is a real one, the manager of a user's units: it takes its units from a directory and needs no machine of its
//! own. What asks it at the system bus sees no difference.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::version::Version;

/// The socket of a host's containerd unless a test sets another one.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// The configuration of a host's containerd.
pub const CONFIG: &str = "/etc/containerd/config.toml";

/// The image of its pods' sandboxes, which is nowhere to be pulled from.
pub const PAUSE: &str = "kubewasi.test/pause:latest";
/// The assumption under which starting a host cannot fail.
const OWN: &str = "the machine lets root start a host of a test's own";

/// The configuration of a bus without restrictions.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
"#;
const BUS_SERVICE: &str = "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/usr/bin/dbus-daemon \
    --config-file=/run/dbus/bus.conf --nofork --nopidfile --systemd-activation --address=systemd:\n";
/// Enters the cgroup in the first argument, and then namespaces in which it is the root of all that systemd makes.
const ENTER: &str = r#"echo $$ >"$1/cgroup.procs" && shift &&
exec unshare --mount --pid --cgroup --fork --kill-child --mount-proc --propagation private sh -c "$@""#;
/// What the first process of the namespaces does, with the directories of the test, of its cgroup and of all cgroups.
const INIT: &str = r#"set -e
for directory in /etc /opt /run /srv; do mkdir -p $directory; mount -t tmpfs -o mode=755 $(basename $directory) $directory; done
mkdir -p /etc/containerd /run/systemd/system /run/user /run/dbus /run/units
cp -r "$1/units/." /run/units/; cp "$1/bus.conf" /run/dbus/; cp "$1/config.toml" /etc/containerd/
cp "$1/passwd" /etc/passwd; cp "$1/passwd" /etc/group; touch /etc/hosts /etc/resolv.conf
mount --bind "$2" "$3"
export XDG_RUNTIME_DIR=/run/user DBUS_SESSION_BUS_ADDRESS=unix:path=/run/dbus/system_bus_socket
SYSTEMD_UNIT_PATH=/run/units: SYSTEMD_LOG_TARGET=console /lib/systemd/systemd --user --unit=basic.target >"$1/systemd.log" 2>&1 &
echo $! >"$1/systemd.pid"
until [ -e /run/user/systemd/private ]; do sleep 0.1; done
systemctl --user start dbus.socket dbus.service
systemctl --user start --no-block containerd.service
touch "$1/up"
# The namespaces end with this process, and this one with its input.
read -r _ || exit 0
"#;

/// Where systemd keeps its own cgroups, in both versions.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"];

/// A host that runs.
pub struct SystemdHost {
    folder: PathBuf,
    cgroup: PathBuf,
    init: Child,
}

impl SystemdHost {
    /// Starts a host whose containerd has the configuration of a node, with these lines put before it.
    pub fn start(version: Version, lines: &str) -> SystemdHost {
        let host = SystemdHost::boot(version, lines, SOCKET);
        host.wait_for("CRI", || host.path(SOCKET).exists());
        host
    }

    /// The same with containerd listening at `socket`, which may never happen.
    pub fn boot(version: Version, lines: &str, socket: &str) -> SystemdHost {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("kwh{}-{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new("/tmp").join(&mark);
        fs::create_dir_all(folder.join("units")).expect(OWN);
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect(OWN);
        write("bus.conf", BUS);
        write("passwd", "root:x:0:0::/root:/bin/sh\n");
        write("units/dbus.service", BUS_SERVICE);
        write(
            "units/dbus.socket",
            "[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
        );
        let binaries = version.folder().display().to_string();
        let service = format!(
            "[Unit]\nAfter=disk.service\n[Service]\nType=notify\nKillMode=process\n\
             Environment=PATH={binaries}:/usr/sbin:/usr/bin:/sbin:/bin\nExecStart={binaries}/containerd --config {CONFIG}\n"
        );
        write("units/containerd.service", &service);
        write("config.toml", &config(version, &folder, lines, socket));
        let mut cgroups = CGROUPS.map(PathBuf::from).into_iter();
        let cgroups = cgroups.find(|path| path.join("cgroup.procs").exists()).expect(OWN);
        let cgroup = cgroups.join(&mark);
        fs::create_dir_all(&cgroup).expect(OWN);
        let mut enter = Command::new("sh");
        enter.args(["-c", ENTER, "enter"]).arg(&cgroup).args([INIT, "init"]);
        enter.args([&folder, &cgroup, &cgroups]);
        let init = enter.stdin(Stdio::piped()).spawn().expect(OWN);
        let host = SystemdHost { folder, cgroup, init };
        host.wait_for("systemd", || host.folder.join("up").exists());
        host
    }

    /// A program of the host's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.first().to_string(), "--mount", "--pid", "--cgroup"]);
        nsenter.env("XDG_RUNTIME_DIR", "/run/user").arg(program.as_ref());
        nsenter
    }

    /// Runs a program of the host's.
    pub fn run(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().expect(OWN)
    }

    /// Runs a shell's commands on the host, which have to succeed, and returns what they say.
    pub fn sh(&self, commands: &str) -> String {
        let output = self.run("sh", &["-ec", commands]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{commands}: {said}");
        String::from_utf8(output.stdout).expect(OWN)
    }

    /// Runs a shell's commands as a child of a process with the command line `parent`.
    pub fn run_under(&self, parent: &str, commands: &str) -> Output {
        let (name, arguments) = parent.split_once(' ').unwrap_or((parent, ""));
        // A shell with the name and the arguments of another program, which does not give its place up to the command.
        self.run(
            "bash",
            &[
                "-c",
                &format!("exec -a {name} bash -c '{commands}; exit $?' {arguments}"),
            ],
        )
    }

    /// Sends a signal to the systemd of this host.
    pub fn signal_systemd(&self, signal: &str) {
        self.sh(&format!("kill -{signal} $(cat {}/systemd.pid)", self.folder.display()));
    }

    /// A path of the host's.
    pub fn path(&self, path: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.first());
        Path::new(&root).join(path.trim_start_matches('/'))
    }

    /// The test's own directory, which the host does not use.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..200 {
            if is_so() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("timed out waiting for {what}:\n{}", self.log());
    }

    /// The first process of the namespaces.
    fn first(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.init.id());
        fs::read_to_string(children)
            .unwrap_or_default()
            .trim()
            .parse()
            .unwrap_or(0)
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("systemd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// A node's configuration, with all that it writes below `folder`.
fn config(version: Version, folder: &Path, lines: &str, socket: &str) -> String {
    let (number, plugin) = version.format();
    let folder = folder.display();
    let (bins, pause) = match number {
        2 => (
            "bin_dir = \"/srv\"",
            format!("[plugins.\"{plugin}\"]\n  sandbox_image = {PAUSE:?}\n"),
        ),
        _ => (
            "bin_dirs = [\"/srv\"]",
            format!(
                "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = {PAUSE:?}\n[plugins.\"{plugin}\"]\n"
            ),
        ),
    };
    format!(
        "# A node's own file.\nversion = {number}\n{lines}\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
         [grpc]\naddress = {socket:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{folder}/opt\"\n\
         {pause}  restrict_oom_score_adj = true\n  disable_apparmor = true\n\
         [plugins.\"{plugin}\".cni]\n  {bins}\n  conf_dir = \"/srv\"\n"
    )
}

impl Drop for SystemdHost {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the end of the host's log\n{}", self.log());
        }
        drop(self.init.stdin.take().map(|mut input| input.write_all(b"\n")));
        let _ = self.init.wait();
        // Processes may take a moment to exit.
        for _ in 0..100 {
            remove_cgroups(&self.cgroup);
            if !self.cgroup.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn remove_cgroups(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
