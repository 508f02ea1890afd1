//! Freezing a cgroup: `freezer.state` on v1, `cgroup.freeze` on v2 (cgroup-v1/freezer-subsystem, cgroup-v2 in the
//! kernel's documentation).

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use super::cgroup::{Cgroup, Version};

/// How often a freeze is looked at, and asked for again: a v1 cgroup stays halfway while a process of it sleeps
/// uninterruptibly.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// Freezes every process in `cgroup` and waits until they are: two seconds at most, then they run on. Blocks.
///
/// # Errors
///
/// What open(2) and write(2) say; `TimedOut` when a process would not freeze.
pub fn freeze(cgroup: &Cgroup) -> io::Result<()> {
    for _ in 0..TRIES {
        write(cgroup, true)?;
        if is_frozen(cgroup)? {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    thaw(cgroup)?;
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("a process in the cgroup {} does not freeze", cgroup.path.display()),
    ))
}

/// Lets the processes in `cgroup` run on; a cgroup that is gone has none.
///
/// # Errors
///
/// What open(2) and write(2) say.
pub fn thaw(cgroup: &Cgroup) -> io::Result<()> {
    match write(cgroup, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

fn write(cgroup: &Cgroup, frozen: bool) -> io::Result<()> {
    let (file, text) = match (cgroup.version, frozen) {
        (Version::V1, true) => ("freezer.state", "FROZEN"),
        (Version::V1, false) => ("freezer.state", "THAWED"),
        (Version::V2, true) => ("cgroup.freeze", "1"),
        (Version::V2, false) => ("cgroup.freeze", "0"),
    };
    fs::write(cgroup.file(file)?, text)
}

fn is_frozen(cgroup: &Cgroup) -> io::Result<bool> {
    Ok(match cgroup.version {
        Version::V1 => fs::read_to_string(cgroup.file("freezer.state")?)?.trim() == "FROZEN",
        Version::V2 => cgroup.figure("cgroup.events", "frozen")? == Some(1),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sys::cgroup::tests::hierarchy;

    #[test]
    fn a_v1_cgroup_is_frozen_and_thawed_by_its_state() {
        let (root, hierarchies) = hierarchy("freezer1", Version::V1);
        let cgroup = hierarchies.cgroup(Path::new("/a"));
        cgroup.create().unwrap();
        let state = root.join("a/freezer.state");
        fs::write(&state, "THAWED\n").unwrap();
        freeze(&cgroup).unwrap();
        assert_eq!(fs::read_to_string(&state).unwrap(), "FROZEN");
        thaw(&cgroup).unwrap();
        assert_eq!(fs::read_to_string(&state).unwrap(), "THAWED");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_v2_cgroup_is_frozen_when_its_events_say_so() {
        let (root, hierarchies) = hierarchy("freezer2", Version::V2);
        let cgroup = hierarchies.cgroup(Path::new("/a"));
        cgroup.create().unwrap();
        let (events, state) = (root.join("a/cgroup.events"), root.join("a/cgroup.freeze"));
        fs::write(&events, "populated 1\nfrozen 1\n").unwrap();
        fs::write(&state, "0\n").unwrap();
        freeze(&cgroup).unwrap();
        assert_eq!(fs::read_to_string(&state).unwrap(), "1");
        fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        let error = freeze(&cgroup).unwrap_err();
        assert!(error.to_string().contains("/a does not freeze"), "{error}");
        assert_eq!(
            fs::read_to_string(&state).unwrap(),
            "0",
            "a freeze that fails is taken back"
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_cgroup_that_is_gone_is_thawed_but_not_frozen() {
        let (root, hierarchies) = hierarchy("freezer3", Version::V1);
        let cgroup = hierarchies.cgroup(Path::new("/a"));
        thaw(&cgroup).unwrap();
        assert_eq!(freeze(&cgroup).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(root).unwrap();
    }
}
