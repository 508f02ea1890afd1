//! The paths of a host whose root directory is somewhere in this process's view.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As many symbolic links as Linux follows in one path, see path_resolution(7).
const MAX_SYMLINKS: usize = 40;

/// `path` below another root, without its own.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    let inner = path.components().filter(|part| matches!(part, Component::Normal(_)));
    root.join(inner.collect::<PathBuf>())
}

/// The absolute path, as a process with this root names it, that `path` leads to there: no component of it is a symbolic
/// link. What does not exist is kept as it is written.
///
/// # Errors
///
/// `ELOOP` when there are more links than the kernel follows.
pub fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut resolved = PathBuf::from("/");
    let mut remaining: Vec<OsString> = names(path);
    let mut links = 0;
    while let Some(name) = remaining.pop() {
        if name == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&name);
        let Ok(target) = fs::read_link(below(root, &next)) else {
            resolved = next;
            continue;
        };
        links += 1;
        if links > MAX_SYMLINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        if target.is_absolute() {
            resolved = PathBuf::from("/");
        }
        remaining.extend(names(&target));
    }
    Ok(resolved)
}

/// The names and `..` of a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    parts.collect::<Vec<_>>().into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_of_the_host_stays_below_its_root() {
        assert_eq!(
            below(Path::new("/proc/1/root"), Path::new("/etc/../x")),
            Path::new("/proc/1/root/etc/x")
        );
    }

    #[test]
    fn symbolic_links_are_followed_from_the_root_that_they_are_below() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/k3s")).unwrap();
        fs::create_dir(root.path().join("var")).unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        symlink("../k3s", root.path().join("run/k3s/self")).unwrap();
        symlink("/run/k3s/self/socket", root.path().join("run/link")).unwrap();
        let resolved = |path: &str| resolve(root.path(), Path::new(path)).unwrap();
        assert_eq!(resolved("/var/run/link"), Path::new("/run/k3s/socket"));
        assert_eq!(resolved("/../../run/./k3s"), Path::new("/run/k3s"));
        assert_eq!(resolved("/nowhere/x"), Path::new("/nowhere/x"));
    }

    #[test]
    fn links_that_lead_in_a_circle_are_an_error() {
        let root = tempfile::tempdir().unwrap();
        symlink("/a", root.path().join("b")).unwrap();
        symlink("/b", root.path().join("a")).unwrap();
        let error = resolve(root.path(), Path::new("/a")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    }
}
