//! What the kernel's security modules confine a process by: an AppArmor profile, an SELinux label.
//!
//! Nothing is executed, so a label is taken by the process itself, for itself, through its folder in a procfs; a file
//! there can be written only by the credentials that opened it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};

/// The labels of a process; none where its spec names none.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Labels {
    /// The name of an AppArmor profile, `process.apparmorProfile`.
    pub apparmor: Option<String>,
    /// An SELinux context, `process.selinuxLabel`.
    pub selinux: Option<String>,
    /// The SELinux context of files, `linux.mountLabel`; it is for mounts and in their options already.
    pub files: Option<String>,
}

/// When labels are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Now,
    /// With the program that this process executes next.
    AtExec,
}

/// Why labels cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    #[error("{field} {label:?} needs {module}, which this node's kernel does not have turned on: {mend}")]
    NoModule {
        field: &'static str,
        label: String,
        module: &'static str,
        mend: &'static str,
    },
    #[error("process.apparmorProfile {0:?} is not loaded on this node: load it, or name another one")]
    NotLoaded(String),
    #[error("{field} {label:?} was not taken: {cause}")]
    Refused {
        field: &'static str,
        label: String,
        cause: io::Error,
    },
}

const APPARMOR: &str = "process.apparmorProfile";
const SELINUX: &str = "process.selinuxLabel";

impl Labels {
    /// Whether there is a label to take.
    pub fn any(&self) -> bool {
        self.apparmor.is_some() || self.selinux.is_some()
    }

    /// Sees that the kernel has the modules whose labels these are; `sys` is where sysfs is mounted.
    ///
    /// # Errors
    ///
    /// Names the field, its value and the module that is missing.
    pub fn check(&self, sys: &Path) -> Result<(), LabelError> {
        // As libapparmor and libselinux look (aa_is_enabled(2), is_selinux_enabled(3)).
        let enabled = |file: &str| fs::read_to_string(sys.join(file)).is_ok_and(|text| text.starts_with('Y'));
        let missing = |field, label: &String, module, mend| LabelError::NoModule {
            field,
            label: label.clone(),
            module,
            mend,
        };
        if let Some(profile) = &self.apparmor
            && !enabled("module/apparmor/parameters/enabled")
        {
            let mend = "set appArmorProfile to Unconfined";
            return Err(missing(APPARMOR, profile, "AppArmor", mend));
        }
        for (field, label) in [(SELINUX, &self.selinux), ("linux.mountLabel", &self.files)] {
            if let Some(label) = label
                && !sys.join("fs/selinux/enforce").exists()
            {
                return Err(missing(field, label, "SELinux", "remove seLinuxOptions"));
            }
        }
        Ok(())
    }

    /// Takes the labels, for ever; `process` is this process's own folder in a procfs.
    ///
    /// # Errors
    ///
    /// Names the field, its value and what the module says.
    pub fn take(&self, process: BorrowedFd<'_>, when: When) -> Result<(), LabelError> {
        let (file, command) = match when {
            When::Now => ("current", "changeprofile"),
            When::AtExec => ("exec", "exec"),
        };
        let write = |file: &str, text: &str| {
            let file = openat(process, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            // The kernel takes it whole, by one write.
            File::from(file).write_all(text.as_bytes())
        };
        if let Some(profile) = &self.apparmor {
            let taken = write(&format!("attr/apparmor/{file}"), &format!("{command} {profile}"));
            taken.map_err(|cause| match cause.kind() {
                io::ErrorKind::NotFound => LabelError::NotLoaded(profile.clone()),
                _ => LabelError::Refused {
                    field: APPARMOR,
                    label: profile.clone(),
                    cause,
                },
            })?;
        }
        if let Some(label) = &self.selinux {
            write(&format!("attr/{file}"), label).map_err(|cause| LabelError::Refused {
                field: SELINUX,
                label: label.clone(),
                cause,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("kubewasi-labels-{}-{name}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        for (file, text) in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn labels(apparmor: Option<&str>, selinux: Option<&str>, files: Option<&str>) -> Labels {
        Labels {
            apparmor: apparmor.map(str::to_owned),
            selinux: selinux.map(str::to_owned),
            files: files.map(str::to_owned),
        }
    }

    #[test]
    fn a_label_without_its_module_is_refused_by_field_and_value() {
        let without = folder("without", &[("module/apparmor/parameters/enabled", "N\n")]);
        for (labels, words) in [
            (
                labels(Some("web"), None, None),
                ["process.apparmorProfile", "web", "AppArmor"],
            ),
            (
                labels(None, Some("a:b:c"), None),
                ["process.selinuxLabel", "a:b:c", "SELinux"],
            ),
            (
                labels(None, None, Some("a:b:d")),
                ["linux.mountLabel", "a:b:d", "SELinux"],
            ),
        ] {
            let error = labels.check(&without).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        labels(None, None, None).check(&without).unwrap();
        fs::remove_dir_all(without).unwrap();
        let with = folder(
            "with",
            &[
                ("module/apparmor/parameters/enabled", "Y\n"),
                ("fs/selinux/enforce", "1"),
            ],
        );
        labels(Some("web"), Some("a:b:c"), Some("a:b:d")).check(&with).unwrap();
        fs::remove_dir_all(with).unwrap();
    }

    #[test]
    fn labels_are_written_where_each_module_reads_them() {
        let process = folder(
            "process",
            &[
                ("attr/apparmor/current", ""),
                ("attr/current", ""),
                ("attr/apparmor/exec", ""),
            ],
        );
        let handle = File::open(&process).unwrap();
        let read = |file: &str| fs::read_to_string(process.join(file)).unwrap();
        labels(Some("web"), None, None).take(handle.as_fd(), When::Now).unwrap();
        assert_eq!(
            (read("attr/apparmor/current").as_str(), read("attr/current").as_str()),
            ("changeprofile web", "")
        );
        labels(None, Some("a:b:c"), None)
            .take(handle.as_fd(), When::Now)
            .unwrap();
        assert_eq!(read("attr/current"), "a:b:c");
        labels(Some("shell"), None, None)
            .take(handle.as_fd(), When::AtExec)
            .unwrap();
        assert_eq!(read("attr/apparmor/exec"), "exec shell");
        fs::remove_dir_all(process).unwrap();
    }
}
