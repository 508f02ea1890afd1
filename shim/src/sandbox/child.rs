//! What a forked process does: the helper enters, the guest confines itself, and then there is only wasm.
//!
//! Each step either succeeds or ends the process with a report that names it; nothing is retried or left out.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::process::{DumpableBehavior, Signal, Uid};

use super::attached::{Attached, Inheritance};
use super::failure::{Failure, step};
use super::filter::Filters;
use super::plan::{Confinement, Role};
use super::protocol::{ADOPTED, MADE, Report, START, cut, decode, encode};
use super::root::{self, Contents};
use super::users::{self, Users};
use super::working_directory::{enter_as_root, enter_as_user};
use super::{beside, environment, execute};
use crate::compile::{Profile, World};
use crate::guest::http::figures::{COUNTERS, Figures};
use crate::guest::limits::Budget;
use crate::guest::warm::{Serving, Warm};
use crate::guest::{self, Engines, Outcome, Settings};
use crate::image::memory;
use crate::sys::fork::{Fork, exit, fork};
use crate::sys::labels::When;
use crate::sys::memory::Memory;
use crate::sys::{counters, credentials, fds, keyring, loopback, mounts, namespaces, pty, seccomp, signals, standard};

fn report(socket: BorrowedFd<'_>, report: &Report) {
    // Nobody is left to tell when the server is gone; the process ends next.
    let _ = rustix::io::write(socket, &encode(report));
}

fn fail(socket: BorrowedFd<'_>, failure: Failure) -> ! {
    report(
        socket,
        &Report::Failed {
            message: cut(failure.to_string()),
        },
    );
    exit(1)
}

/// The helper: enters the namespaces that must be entered before a fork, forks the guest, says its pid and exits, which
/// makes the guest the server's child. It does not enter the cgroup: the launcher waits for it, and a pod that has used
/// up its cpu time would hold up every start of the node.
pub fn help(warm: &Warm, filters: &Filters, inheritance: Inheritance) -> ! {
    let Inheritance { attached, pid } = inheritance;
    let mut keep = attached.numbers();
    keep.push(pid.as_raw_fd());
    if let Err(error) = fds::close_all_but(&keep) {
        fail(attached.report.as_fd(), step("close inherited fds")(error));
    }
    let (confinement, users) = match enter(&attached) {
        Ok(entered) => entered,
        Err(failure) => fail(attached.report.as_fd(), failure),
    };
    match fork() {
        Ok(Fork::Parent(guest)) => {
            let said = File::from(pid).write_all(&guest.as_raw_nonzero().get().to_ne_bytes());
            exit(i32::from(said.is_err()))
        }
        Ok(Fork::Child) => {
            drop(pid);
            become_guest(warm, filters, confinement, users, attached)
        }
        Err(error) => fail(attached.report.as_fd(), step("fork the guest")(error)),
    }
}

/// Namespaces that a process is in from its fork on.
const BEFORE_FORK: [namespaces::Kind; 2] = [namespaces::Kind::Pid, namespaces::Kind::Time];

fn enter(attached: &Attached) -> Result<(Confinement, Users), Failure> {
    let bytes = memory::read(attached.plan.as_fd()).map_err(step("read the plan"))?;
    let confinement: Confinement = decode(&bytes).ok_or_else(|| step("read the plan")("it cannot be decoded"))?;
    let mut users = Users::open(&confinement)?;
    if let Some(process) = &attached.beside {
        beside::enter_before_fork(process.as_fd())?;
    }
    for (kind, path) in &confinement.join {
        namespaces::join(*kind, path).map_err(step(format!("join the {kind:?} namespace {}", path.display())))?;
    }
    if users::enters_first(&confinement.role) {
        limit(&confinement)?;
        users.enter()?;
    }
    for kind in BEFORE_FORK.into_iter().filter(|kind| confinement.make.contains(kind)) {
        namespaces::make([kind]).map_err(step(format!("make a {kind:?} namespace")))?;
    }
    Ok((confinement, users))
}

/// Sets what only the host's rights can: a lower OOM score, higher limits.
fn limit(confinement: &Confinement) -> Result<(), Failure> {
    credentials::adjust_oom_score(Path::new("/proc/self"), confinement.oom_score_adj.unwrap_or_default())
        .map_err(step("set the OOM score"))?;
    for limit in &confinement.limits {
        credentials::limit(*limit).map_err(step(format!("set the limit {:?}", limit.resource)))?;
    }
    Ok(())
}

fn become_guest(warm: &Warm, filters: &Filters, mut confinement: Confinement, users: Users, attached: Attached) -> ! {
    let mut environment = std::mem::take(&mut confinement.environment);
    let confinement = &confinement;
    let Attached {
        plan,
        report: socket,
        streams,
        artifact,
        counters,
        beside,
    } = attached;
    drop(plan);
    let own = beside.is_none();
    let prepared = begin(confinement, &socket, streams)
        .and_then(|()| {
            Ok((
                own_process(confinement)?,
                Loader::open(warm, confinement, artifact, counters)?,
            ))
        })
        .and_then(|opened| move_in(confinement, users, beside).map(|()| opened))
        .and_then(|(process, loader)| {
            if confinement.role != Role::Holder {
                environment::set_home(&mut environment, confinement.ids.uid);
            }
            let settings = settings(confinement, &environment);
            confine(warm, filters, confinement, &settings, &socket, process, loader)
        });
    match prepared {
        Ok(prepared) => {
            report(socket.as_fd(), &Report::Ready);
            if !started(&socket) {
                exit(1)
            }
            live(
                prepared,
                confinement,
                &settings(confinement, &environment),
                &socket,
                own,
            )
        }
        Err(failure) => fail(socket.as_fd(), failure),
    }
}

/// What is left to do once everything is confined.
enum Prepared {
    Hold,
    Run(Box<guest::Ready>),
    Execute(PathBuf),
}

/// What is left to load or run once the process is confined, with what there is no path to any more.
enum Loader<'a> {
    Nothing,
    Native(&'a Path),
    Program {
        artifact: OwnedFd,
        memory: Option<Memory>,
        world: World,
        export: Option<&'a str>,
        /// Of its own, when the launcher's is not what the pod asks for.
        warm: Option<Box<Warm>>,
        serving: Option<Box<Serving>>,
    },
}

impl Loader<'_> {
    /// What the program was compiled for.
    fn profile(&self) -> Profile {
        match self {
            Loader::Program { world, .. } => world.profile(),
            Loader::Nothing | Loader::Native(_) => Profile::Command,
        }
    }

    fn open<'a>(
        warm: &Warm,
        confinement: &'a Confinement,
        artifact: Option<OwnedFd>,
        counters: Option<OwnedFd>,
    ) -> Result<Loader<'a>, Failure> {
        match &confinement.role {
            Role::Holder => Ok(Loader::Nothing),
            Role::Native { path } => Ok(Loader::Native(path)),
            Role::Guest { world, export } => {
                let options = kubewasi_options::Engine {
                    stack_size: confinement.options.stack_size,
                    ..warm.options
                };
                let build = |error: wasmtime::Error| step("build the guest's engine")(format!("{error:#}"));
                Ok(Loader::Program {
                    artifact: artifact.ok_or_else(|| step("load the program")("its artifact is missing"))?,
                    memory: match &confinement.memory {
                        None => None,
                        Some(folder) => Memory::open(folder).map_err(step("open the cgroup's memory files"))?,
                    },
                    world: *world,
                    export: export.as_deref(),
                    warm: match world.profile() {
                        Profile::Command if options != warm.options => {
                            Some(Box::new(Warm::new(options).map_err(build)?))
                        }
                        _ => None,
                    },
                    serving: match guest::http::instances(*world, &confinement.options.http) {
                        None => None,
                        Some(instances) => {
                            let counters =
                                counters.ok_or_else(|| step("load the program")("its counters are missing"))?;
                            let counters = counters::map(&counters, COUNTERS).map_err(step("map its counters"))?;
                            let serving = Serving::new(instances, &options, Figures::new(counters));
                            Some(Box::new(serving.map_err(build)?))
                        }
                    },
                })
            }
        }
    }
}

/// Enters the cgroup and becomes a process of its own.
fn begin(confinement: &Confinement, socket: &OwnedFd, streams: [OwnedFd; 3]) -> Result<(), Failure> {
    if confinement.awaits_scope {
        told(socket, MADE)?;
    }
    for entrance in &confinement.entrances {
        fs::write(entrance, "0").map_err(step(format!("enter the cgroup by {}", entrance.display())))?;
    }
    // A new session, so that no signal of the server's terminal or group arrives here.
    rustix::process::setsid().map_err(step("start a session"))?;
    signals::unblock_all().map_err(step("unblock signals"))?;
    match confinement.role {
        Role::Holder => signals::hold_like_pause().map_err(step("handle signals"))?,
        Role::Guest { .. } => signals::end_on_signals().map_err(step("handle signals"))?,
        Role::Native { .. } => {
            // It is no pid 1, where that would do nothing.
            signals::default_all().map_err(step("handle signals"))?;
            // What keys there are in the server's session are not for it.
            keyring::make().map_err(step("make a session keyring"))?;
        }
    }
    let name = std::ffi::CString::new(confinement.name.as_str()).map_err(step("name the process"))?;
    rustix::thread::set_name(&name).map_err(step("name the process"))?;
    take_streams(confinement, streams)?;
    let checked = confinement.labels.check(Path::new("/sys"));
    checked.map_err(step("find the security modules"))
}

/// This process's folder in a procfs of its own, when it is needed: a guest's code is loaded through it, and labels are
/// taken by writing there.
fn own_process(confinement: &Confinement) -> Result<Option<OwnedFd>, Failure> {
    let labels = confinement.labels.any();
    if !labels && !matches!(confinement.role, Role::Guest { .. }) {
        return Ok(None);
    }
    let attributes = match labels {
        true => MountAttrFlags::MOUNT_ATTR_NODEV,
        false => MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY,
    };
    let process = mounts::own_process(attributes).map_err(step("open the folder of the process"))?;
    Ok(Some(process))
}

/// Enters the folder of open files: see `artifact::load`, the root has changed, and this is the one way to one by path.
fn enter_open_files(process: &OwnedFd) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(process, "fd", flags, Mode::empty())
        .and_then(rustix::process::fchdir)
        .map_err(step("enter the folder of open files"))
}

/// Moves into the namespaces and the root: those of the process beside which this one lives, or its own.
fn move_in(confinement: &Confinement, mut users: Users, beside: Option<OwnedFd>) -> Result<(), Failure> {
    if !users::enters_first(&confinement.role) {
        limit(confinement)?;
    }
    if let Some(process) = beside {
        beside::enter(process.as_fd(), confinement)?;
        return users.enter();
    }
    let settings = mounts::open_directory(Path::new("/proc/sys")).map_err(step("open the folder of sysctls"))?;
    namespaces::make([namespaces::Kind::Mount]).map_err(step("make a mount namespace"))?;
    if confinement.role == Role::Holder {
        root::settle_nowhere(&confinement.root)?;
    } else {
        let contents = Contents {
            volumes: &confinement.volumes,
            masked: &confinement.masked,
            read_only: &confinement.read_only,
            working_directory: Path::new(&confinement.working_directory),
        };
        root::settle(&confinement.root, &contents, &users)?;
    }
    users.enter()?;
    // Made by the user namespace's own root, so that they belong to it.
    let made = |kind: &namespaces::Kind| *kind == namespaces::Kind::Mount || BEFORE_FORK.contains(kind);
    let others = confinement.make.iter().copied().filter(|kind| !made(kind));
    namespaces::make(others).map_err(step("make namespaces"))?;
    if confinement.make.contains(&namespaces::Kind::Network) {
        loopback::bring_up().map_err(step("bring the loopback device up"))?;
    }
    identify(confinement, &settings)
}

/// Takes the credentials, loads the program behind the first filter, takes the labels and installs the last filter.
fn confine(
    warm: &Warm,
    filters: &Filters,
    confinement: &Confinement,
    settings: &Settings<'_>,
    socket: &OwnedFd,
    process: Option<OwnedFd>,
    loader: Loader<'_>,
) -> Result<Prepared, Failure> {
    let folder = settings.working_directory;
    let entered = match loader {
        Loader::Nothing => None,
        Loader::Native(_) | Loader::Program { .. } => Some(enter_as_root(folder)?),
    };
    let settle = || entered.map_or(Ok(()), |entered| enter_as_user(folder, entered));
    let take_labels = |when| match &process {
        None => Ok(()),
        Some(process) => {
            let taken = confinement.labels.take(process.as_fd(), when);
            taken.map_err(step("take the labels"))
        }
    };
    if let Loader::Native(path) = loader {
        execute::confine(confinement)?;
        take_labels(When::AtExec)?;
        adopted(socket)?;
        settle()?;
        execute::check(path)?;
        return Ok(Prepared::Execute(path.to_owned()));
    }
    credentials::take(&confinement.ids, &confinement.capabilities).map_err(|(name, error)| step(name)(error))?;
    // A change of ids sets it to fs.suid_dumpable (prctl(2)).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("stay undumpable"))?;
    // Filters need it, and nothing is executed that could gain privileges.
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    adopted(socket)?;
    settle()?;
    // An artifact is what a compiler made of hostile bytes: loading it happens behind the first filter already.
    let filters = filters.of(loader.profile());
    seccomp::enter(&filters.loading.unpack()).map_err(step("install the loader's filter"))?;
    let prepared = match loader {
        Loader::Program {
            artifact,
            memory,
            world,
            export,
            warm: own,
            serving,
        } => {
            process.as_ref().map_or(Ok(()), enter_open_files)?;
            let warm = own.as_deref().unwrap_or(warm);
            let engines = Engines { warm, serving };
            let budget = Budget::new(memory, confinement.options.memory_limit);
            let ready = guest::load(&engines, artifact, world, export, settings, budget);
            Prepared::Run(Box::new(
                ready.map_err(|error| step("load the program")(format!("{error:#}")))?,
            ))
        }
        Loader::Nothing | Loader::Native(_) => Prepared::Hold,
    };
    // Last of what is looked up by path: a profile may allow the guest's files alone, and not its code.
    take_labels(When::Now)?;
    drop(process);
    std::env::set_current_dir("/").map_err(step("enter the root"))?;
    seccomp::enter(&filters.running.unpack()).map_err(step("install the guest's filter"))?;
    install_profile(confinement)?;
    Ok(prepared)
}

/// The pod's own filters.
pub(super) fn install_profile(confinement: &Confinement) -> Result<(), Failure> {
    for program in &confinement.seccomp {
        seccomp::enter(&program.unpack()).map_err(step("install the pod's seccomp profile"))?;
    }
    Ok(())
}

fn take_streams(confinement: &Confinement, streams: [OwnedFd; 3]) -> Result<(), Failure> {
    if confinement.terminal {
        let terminal = &streams[0];
        // As runc has it: a process that is not root may open its terminal again. This is still the host's namespace.
        let inside = confinement.ids.uid;
        let owner = confinement.user.as_ref().and_then(|user| user.mappings.uid(inside));
        rustix::fs::fchown(terminal, Some(Uid::from_raw(owner.unwrap_or(inside))), None)
            .map_err(step("give the terminal to its user"))?;
        pty::control(terminal).map_err(step("take the terminal"))?;
    }
    for (number, stream) in streams.into_iter().enumerate() {
        standard::install(stream.as_fd(), number as i32).map_err(step(format!("take standard stream {number}")))?;
    }
    Ok(())
}

fn identify(confinement: &Confinement, settings: &OwnedFd) -> Result<(), Failure> {
    if let Some(hostname) = &confinement.hostname {
        // A pod's containers share its uts namespace, where the name is set already.
        if confinement.make.contains(&namespaces::Kind::Uts) {
            rustix::system::sethostname(hostname.as_bytes()).map_err(step("set the hostname"))?;
        }
    }
    if let Some(domainname) = &confinement.domainname
        && confinement.make.contains(&namespaces::Kind::Uts)
    {
        rustix::system::setdomainname(domainname.as_bytes()).map_err(step("set the domain name"))?;
    }
    for (key, value) in &confinement.sysctls {
        // Which namespace's it is, the kernel decides by who opens it.
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(settings, key.as_str(), flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|setting| File::from(setting).write_all(value.as_bytes()))
            .map_err(step(format!("set linux.sysctl {key}={value}")))?;
    }
    Ok(())
}

/// Waits until the server is this process's parent, then binds its life to the server's.
fn adopted(socket: &OwnedFd) -> Result<(), Failure> {
    told(socket, ADOPTED)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("follow the server's end"))
}

/// Waits for a word of the server's.
fn told(socket: &OwnedFd, word: &[u8]) -> Result<(), Failure> {
    let mut byte = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut byte)) {
        Ok(1) if byte == word => Ok(()),
        Ok(_) => Err(step("wait for the server")("it is gone")),
        Err(error) => Err(step("wait for the server")(error)),
    }
}

/// Waits for the start byte; `false` when the server is gone.
fn started(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    matches!(rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut byte)), Ok(1) if byte == START)
}

fn settings<'a>(confinement: &'a Confinement, environment: &'a [(String, String)]) -> Settings<'a> {
    Settings {
        arguments: &confinement.arguments,
        environment,
        working_directory: &confinement.working_directory,
        cpus: confinement.cpus,
        options: &confinement.options,
    }
}

/// `own`: it is its container's first process.
fn live(prepared: Prepared, confinement: &Confinement, settings: &Settings<'_>, socket: &OwnedFd, own: bool) -> ! {
    match prepared {
        Prepared::Hold => loop {
            // Returns when a signal was handled; those that end the holder do not return.
            let _ = rustix::event::poll(&mut [], None);
        },
        Prepared::Run(ready) => match guest::run(*ready, settings) {
            Outcome::Exit(code) => exit(code),
            Outcome::Trap(message) => {
                guest::tell(&message);
                if own {
                    guest::log(&message);
                }
                report(socket.as_fd(), &Report::Ended { message: cut(message) });
                exit(guest::TRAPPED)
            }
        },
        Prepared::Execute(path) => {
            let (failure, code) = execute::execute(&path, confinement, settings.environment);
            let message = failure.to_string();
            guest::tell(&message);
            report(socket.as_fd(), &Report::Ended { message: cut(message) });
            exit(code)
        }
    }
}
