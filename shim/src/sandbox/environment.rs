//! The environment of a process: the variables of `process.env` as runc passes them on (pure), and `HOME`, which runc adds.
//!
//! The rules are those of runc 1.1 to 1.4 (libcontainer/env.go; before 1.3 libcontainer/init_linux.go).

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};

use oci_spec::runtime::Process;
use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::plan::{PlanError, invalid};

/// Where the home directories are.
const PASSWD: &str = "/etc/passwd";

/// The home of a user who is not in there.
const DEFAULT_HOME: &str = "/";

/// The longest passwd file that is searched, in bytes: it comes from an image or a volume, and is held in memory.
const MAX_PASSWD: u64 = 1024 * 1024;

/// The variables in order. Of those with one name the last one counts: libc takes the first that it finds, so only one is
/// passed on.
///
/// # Errors
///
/// For an entry without `=`, without a name, or with a NUL. Entries may be secrets, so the error names its place alone.
pub fn variables(process: &Process) -> Result<Vec<(String, String)>, PlanError> {
    let entries = process.env().as_deref().unwrap_or_default();
    let mut names = HashSet::new();
    let mut variables = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate().rev() {
        let malformed = |rule| invalid("process.env", format!("entry {index}"), rule);
        let (name, value) = entry.split_once('=').ok_or_else(|| malformed("it has no '='"))?;
        if name.is_empty() {
            return Err(malformed("its name is empty"));
        }
        if entry.contains('\0') {
            return Err(malformed("it contains a NUL byte"));
        }
        if names.insert(name) {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables.reverse();
    Ok(variables)
}

/// Sets `HOME` where it is unset or empty, to the home directory that the container's `/etc/passwd` gives the user `uid`,
/// else to `/`. The root of this process is the container's.
pub fn set_home(variables: &mut Vec<(String, String)>, uid: u32) {
    variables.retain(|(name, value)| name != "HOME" || !value.is_empty());
    if variables.iter().all(|(name, _)| name != "HOME") {
        // As runc has it, a file that cannot be read is like one without the user.
        let home = passwd().ok().and_then(|text| home_of(&text, uid));
        let home = home.unwrap_or_else(|| DEFAULT_HOME.to_owned());
        variables.push(("HOME".to_owned(), home));
    }
}

/// The container's passwd file; opening it never waits, whatever an image has put there.
fn passwd() -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(PASSWD, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = Vec::new();
    File::from(file).take(MAX_PASSWD).read_to_end(&mut text)?;
    Ok(text)
}

/// The home directory of the first entry of `uid` in a passwd file (pure). As in runc (github.com/moby/sys/user), missing
/// fields are empty, and an id that is no number is 0.
fn home_of(passwd: &[u8], uid: u32) -> Option<String> {
    const UID: usize = 2;
    const HOME: usize = 5;
    let lines = passwd.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.is_empty()).find_map(|line| {
        let field = |number| line.split(|byte| *byte == b':').nth(number).unwrap_or_default();
        let id = std::str::from_utf8(field(UID))
            .ok()
            .and_then(|id| id.parse::<i64>().ok());
        (id.unwrap_or_default() == i64::from(uid)).then(|| String::from_utf8_lossy(field(HOME)).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(env: &str) -> Result<Vec<(String, String)>, PlanError> {
        let json = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/","env":{env}}}"#);
        variables(&serde_json::from_str(&json).unwrap())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn of_variables_with_one_name_the_last_one_counts() {
        let variables = of(r#"["FROM=image","LEVEL=info","FROM=pod","LEVEL=configmap","LEVEL=debug","A=1=2","E="]"#);
        let expected = [("FROM", "pod"), ("LEVEL", "debug"), ("A", "1=2"), ("E", "")];
        assert_eq!(variables.unwrap(), pairs(&expected));
    }

    #[test]
    fn a_malformed_entry_is_refused_by_its_place_and_not_shown() {
        for (entry, rule) in [
            ("secret", "no '='"),
            ("=secret", "name is empty"),
            (r"A=secret\u0000", "NUL byte"),
        ] {
            let error = of(&format!(r#"["A=1","{entry}"]"#)).unwrap_err().to_string();
            assert!(
                error.contains("process.env \"entry 1\"") && error.contains(rule),
                "{error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_home_is_that_of_the_users_first_entry() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\n\n  app:x:7:8::/srv/app  \napp2:x:7:8::/else:\nshort:x:9\nx:y:z\n";
        let home = |uid| home_of(passwd, uid);
        assert_eq!(home(0).as_deref(), Some("/root"));
        assert_eq!(home(7).as_deref(), Some("/srv/app"));
        assert_eq!(home(9).as_deref(), Some(""), "a missing field is empty");
        assert_eq!(home(1), None);
        assert_eq!(
            home_of(b"x:y:z::a:/b", 0).as_deref(),
            Some("/b"),
            "an id that is no number is 0"
        );
    }

    #[test]
    fn a_home_that_is_set_is_left_alone_and_an_empty_one_is_not() {
        let mut set = pairs(&[("HOME", "/mine"), ("A", "1")]);
        set_home(&mut set, u32::MAX);
        assert_eq!(set, pairs(&[("HOME", "/mine"), ("A", "1")]));
        let mut empty = pairs(&[("HOME", ""), ("A", "1")]);
        set_home(&mut empty, u32::MAX);
        assert_eq!(empty, pairs(&[("A", "1"), ("HOME", "/")]));
    }
}
