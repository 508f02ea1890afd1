//! Mounts and paths inside a root that may hold hostile symlinks.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, chownat, fstat, mkdirat, openat, openat2, statx,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, mount_remount,
    move_mount, open_tree, unmount,
};
use rustix::process::{Gid, Uid};

/// File systems that show or change the kernel itself, as `/proc/self/mountinfo` names them: a guest that can open
/// `/proc/self/mem` writes its own host memory and is out of the wasm sandbox.
pub const KERNEL_FILE_SYSTEMS: [&str; 25] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "functionfs",
    "fusectl",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
];

/// Opens the directory `path` as a handle for the calls below.
///
/// # Errors
///
/// What openat(2) says.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens `path` as if `root` were `/`: symlinks and `..` stay inside (openat2(2), `RESOLVE_IN_ROOT`).
///
/// # Errors
///
/// What openat2(2) says (Linux 5.6).
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = match relative(path) {
        relative if relative.as_os_str().is_empty() => PathBuf::from("."),
        relative => relative,
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // EAGAIN: a rename or mount raced with the walk; openat2(2) says to try again.
    loop {
        match openat2(
            root,
            &path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(rustix::io::Errno::AGAIN) => continue,
            result => return Ok(result?),
        }
    }
}

fn relative(path: &Path) -> PathBuf {
    path.components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .collect()
}

/// Opens the mount point `path` inside `root`, making what is missing: folders, and a file at the end unless
/// `directory`. What is made belongs to `owner`, a uid and a gid, else to the caller.
///
/// # Errors
///
/// What openat2(2), mkdirat(2), openat(2) and fchownat(2) say.
pub fn open_mount_point(
    root: BorrowedFd<'_>,
    path: &Path,
    directory: bool,
    owner: Option<(u32, u32)>,
) -> io::Result<OwnedFd> {
    let parts: Vec<_> = relative(path).iter().map(PathBuf::from).collect();
    let mut done = PathBuf::new();
    for (index, part) in parts.iter().enumerate() {
        let next = done.join(part);
        match open_in_root(root, &next) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = open_in_root(root, &done)?;
                let made = if directory || index + 1 < parts.len() {
                    mkdirat(&parent, part, Mode::from_raw_mode(0o755))
                } else {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    openat(&parent, part, flags, Mode::from_raw_mode(0o644)).map(drop)
                };
                match made {
                    Ok(()) => {
                        let (uid, gid) = owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))).unzip();
                        chownat(&parent, part, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                    }
                    Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
        done = next;
    }
    open_in_root(root, path)
}

/// Whether `fd` is a directory, a device or anything else.
///
/// # Errors
///
/// What fstat(2) says.
pub fn file_type(fd: BorrowedFd<'_>) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

/// The path by which mount(2) reaches an open file; needs the host's `/proc`.
fn by_fd(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Mounts a new file system of `kind` on the open mount point.
///
/// # Errors
///
/// What mount(2) says.
pub fn mount_new(kind: &str, target: BorrowedFd<'_>, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = CString::new(data)?;
    Ok(mount(kind, by_fd(target), kind, flags, data.as_c_str())?)
}

/// Mounts an overlay on `target`. Layers beyond a page of options are named relative to their common folder, into
/// which this thread changes for the call, as containerd does (`mount/mount_linux.go`).
///
/// # Errors
///
/// What mount(2) says.
pub fn mount_overlay(target: &Path, flags: MountFlags, options: &[String]) -> io::Result<()> {
    const PAGE: usize = 4096;
    let target = std::path::absolute(target)?;
    let plain = CString::new(options.join(","))?;
    if plain.as_bytes_with_nul().len() < PAGE {
        return Ok(mount("overlay", &target, "overlay", flags, plain.as_c_str())?);
    }
    let (folder, short) = shorten_lowerdirs(options)
        .ok_or_else(|| io::Error::other("the overlay's options exceed a page and its layers share no folder"))?;
    let data = CString::new(short.join(","))?;
    leave_shared_folder()?;
    let back = std::env::current_dir()?;
    std::env::set_current_dir(&folder)?;
    let mounted = mount("overlay", &target, "overlay", flags, data.as_c_str());
    std::env::set_current_dir(back)?;
    Ok(mounted?)
}

/// Gives this thread a working directory of its own, which it keeps: no other thread is led astray by its changes.
fn leave_shared_folder() -> io::Result<()> {
    #[expect(
        unsafe_code,
        reason = "rustix marks unshare unsafe for CLONE_FILES, which is not asked for here"
    )]
    // SAFETY: the flag is CLONE_FS only; no fd table is unshared.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?)
}

/// Mounts `source`, a file system of `kind`, on the folder `target`, by a path that nobody else can change.
///
/// # Errors
///
/// What mount(2) says.
pub fn mount_source(source: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = CString::new(data)?;
    Ok(mount(source, target, kind, flags, data.as_c_str())?)
}

/// Changes the flags of the mount on `target`.
///
/// # Errors
///
/// What mount(2) says.
pub fn remount(target: &Path, flags: MountFlags) -> io::Result<()> {
    Ok(mount_remount(target, flags, c"")?)
}

/// The layers' common folder and the options with `lowerdir` relative to it.
fn shorten_lowerdirs(options: &[String]) -> Option<(PathBuf, Vec<String>)> {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let mut common = layers.first()?.parent()?.to_path_buf();
    while !layers.iter().all(|layer| layer.starts_with(&common)) {
        common = common.parent()?.to_path_buf();
    }
    let short: Option<Vec<&str>> = layers
        .iter()
        .map(|layer| layer.strip_prefix(&common).ok()?.to_str())
        .collect();
    let short = format!("lowerdir={}", short?.join(":"));
    let options = options
        .iter()
        .map(|option| {
            if option.starts_with("lowerdir=") {
                short.clone()
            } else {
                option.clone()
            }
        })
        .collect();
    Some((common, options))
}

/// A copy of the mount at `path`, relative to `folder`, or of `folder` itself when `path` is empty: attached nowhere yet,
/// so that it can be judged and restricted before anybody sees it (open_tree(2), Linux 5.2).
///
/// # Errors
///
/// What open_tree(2) says.
pub fn clone_tree(folder: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(open_tree(folder, path, flags)?)
}

/// Takes rights away from the mount at an open path, and with `recursive` from all below it; what was taken before stays
/// taken (mount_setattr(2), Linux 5.12).
///
/// # Errors
///
/// What mount_setattr(2) says.
pub fn restrict(mount: BorrowedFd<'_>, attributes: MountAttrFlags, recursive: bool) -> io::Result<()> {
    let times = MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    let attributes = libc::mount_attr {
        attr_set: attributes.bits().into(),
        // The access time settings are one field, which is cleared to be set.
        attr_clr: if attributes.intersects(times) {
            libc::MOUNT_ATTR__ATIME
        } else {
            0
        },
        propagation: 0,
        userns_fd: 0,
    };
    set_attributes(mount, &attributes, recursive)
}

/// Has the mount at an open path, which is attached nowhere yet, show the owners of its files by the mappings of the user
/// namespace `users`, and with `recursive` all below it (mount_setattr(2), `MOUNT_ATTR_IDMAP`).
///
/// # Errors
///
/// What mount_setattr(2) says; `EINVAL` when the file system knows no id-mapped mounts.
pub fn map_owners(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_raw_fd()).map_err(io::Error::other)?,
    };
    set_attributes(mount, &attributes, recursive)
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    #[expect(unsafe_code, reason = "rustix offers no mount_setattr")]
    // SAFETY: the path is an empty C string, the struct lives through the call and its size is passed with it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The rights that mount(2)'s flags take away, as mount_setattr(2) names them.
pub fn attributes(flags: MountFlags) -> MountAttrFlags {
    [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .fold(MountAttrFlags::empty(), |attributes, (_, attribute)| {
        attributes | attribute
    })
}

/// Attaches a detached mount to the open mount point.
///
/// # Errors
///
/// What move_mount(2) says (Linux 5.2).
pub fn attach(mount: BorrowedFd<'_>, point: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", point, "", flags)?)
}

/// Whether two open paths are one file of one mount.
///
/// # Errors
///
/// What statx(2) says.
pub fn same_place(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let place = |fd| {
        let flags = StatxFlags::INO | StatxFlags::MNT_ID;
        let stat = statx(fd, c"", AtFlags::EMPTY_PATH, flags)?;
        io::Result::Ok((stat.stx_mnt_id, stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
    };
    Ok(place(one)? == place(other)?)
}

/// This process's folder in a procfs that shows processes alone and is attached nowhere: where the root has changed it
/// still leads to an open file by its number, and to nothing of the kernel (`subset=pid`, Linux 5.8). Its mount is
/// restricted by `attributes`.
///
/// # Errors
///
/// What fsopen(2), fsconfig(2), fsmount(2) and openat(2) say.
pub fn own_process(attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "subset", "pid")?;
    fsconfig_create(context.as_fd())?;
    let proc = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok(openat(
        proc,
        "self",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// The folder or file `path`, through a mount of its own that is read-only for everybody: what is opened or executed from
/// it cannot be opened again for writing, through `/proc/<pid>/fd` or `exe` say. Without the privilege to mount, `path` as
/// it is.
///
/// # Errors
///
/// What openat(2), open_tree(2) and mount_setattr(2) say.
pub fn open_read_only(path: &Path) -> io::Result<OwnedFd> {
    let itself = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let view = match clone_tree(itself.as_fd(), Path::new(""), false) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(itself),
        view => view?,
    };
    restrict(view.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, false)?;
    Ok(view)
}

/// Cuts this mount namespace off: nothing mounted here or outside travels across.
///
/// # Errors
///
/// What mount(2) says.
pub fn make_private() -> io::Result<()> {
    Ok(mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?)
}

/// Makes the mount that is open at its root the root of this mount namespace and drops everything else.
///
/// # Errors
///
/// What fchdir(2), pivot_root(2) and umount(2) say.
pub fn pivot(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // pivot_root(".", "."): the old root ends up on top of the new one, and is unmounted there (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// Unmounts everything stacked at `path`; one that is no mount point, or missing, is fine.
///
/// # Errors
///
/// What umount(2) says besides `EINVAL` and `ENOENT`.
pub fn unmount_all(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The mounts at or below `folder`, a canonical path, whose type is one of [`KERNEL_FILE_SYSTEMS`]: mount point and type,
/// from the text of `/proc/self/mountinfo`.
pub fn kernel_mounts_below(mountinfo: &str, folder: &Path) -> Vec<(PathBuf, String)> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = PathBuf::from(unescape(before.split(' ').nth(4)?));
            let kind = after.split(' ').next()?;
            (point.starts_with(folder) && KERNEL_FILE_SYSTEMS.contains(&kind)).then(|| (point, kind.to_owned()))
        })
        .collect()
}

/// Undoes the octal escapes of proc(5)'s mount tables.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |field, (code, character)| {
            field.replace(code, character)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kubewasi-mounts-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_mount_point_behind_an_absolute_symlink_stays_inside_the_root() {
        let root = folder("inside");
        symlink("/elsewhere", root.join("link")).unwrap();
        std::fs::create_dir(root.join("elsewhere")).unwrap();
        let handle = open_directory(&root).unwrap();
        open_mount_point(handle.as_fd(), Path::new("/link/a/file"), false, None).unwrap();
        assert!(root.join("elsewhere/a/file").is_file());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn dots_do_not_leave_the_root() {
        let root = folder("dots");
        let handle = open_directory(&root).unwrap();
        open_mount_point(handle.as_fd(), Path::new("/../../made"), true, None).unwrap();
        assert!(root.join("made").is_dir());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn kernel_mounts_are_found_below_a_folder_and_not_beside_it() {
        let table = "1 0 0:5 / /r/host\\040x/proc rw,nosuid - proc proc rw\n\
                     2 0 0:6 / /r/data rw - ext4 /dev/vda rw\n\
                     3 0 0:7 / /root-beside rw shared:2 - sysfs sysfs rw\n";
        let found = kernel_mounts_below(table, Path::new("/r"));
        assert_eq!(found, [(PathBuf::from("/r/host x/proc"), "proc".to_owned())]);
    }

    #[test]
    fn a_symlink_to_the_root_is_the_same_place_as_the_root() {
        let root = folder("same");
        symlink("/", root.join("link")).unwrap();
        std::fs::create_dir(root.join("other")).unwrap();
        let handle = open_directory(&root).unwrap();
        let link = open_in_root(handle.as_fd(), Path::new("/link")).unwrap();
        let other = open_in_root(handle.as_fd(), Path::new("/other")).unwrap();
        assert!(same_place(handle.as_fd(), link.as_fd()).unwrap());
        assert!(!same_place(handle.as_fd(), other.as_fd()).unwrap());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn long_lower_layers_are_named_relative_to_their_common_folder() {
        let options = ["index=off".to_owned(), "lowerdir=/s/12/fs:/s/7/fs".to_owned()];
        let (common, short) = shorten_lowerdirs(&options).unwrap();
        assert_eq!(common, Path::new("/s"));
        assert_eq!(short, ["index=off", "lowerdir=12/fs:7/fs"]);
    }
}
