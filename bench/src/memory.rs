//! Memory as the kernel counts it: proportional set size, in which a shared page is divided among those who share it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

/// The proportional set size of a process, in KiB (proc_pid_smaps(5), `Pss`).
pub fn pss(pid: u32) -> Result<u64> {
    figure(pid, "Pss:")
}

/// The part of the proportional set size that is no file's: unlike the rest it does not depend on who else runs the same
/// binary (proc_pid_smaps(5), `Pss_Anon`).
pub fn anonymous(pid: u32) -> Result<u64> {
    figure(pid, "Pss_Anon:")
}

fn figure(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    figure_of(&text, name).with_context(|| format!("{path} has no line {name}"))
}

/// The line `name` of a smaps_rollup.
fn figure_of(smaps_rollup: &str, name: &str) -> Option<u64> {
    let line = smaps_rollup.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The sum of several processes, in KiB.
pub fn pss_of_all(pids: impl IntoIterator<Item = u32>) -> Result<u64> {
    pids.into_iter().map(pss).sum()
}

/// The processes that run the binary `exe`, and those whose arguments name it and the containerd at `socket`.
pub fn processes_of(exe: &Path, socket: &Path) -> Result<BTreeSet<u32>> {
    // By the file itself: a launcher and its guests run it through a mount that has no path.
    let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let (wanted, name, socket) = (
        file(exe).with_context(|| format!("cannot find {}", exe.display()))?,
        exe.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        socket.display().to_string(),
    );
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        let runs = file(Path::new(&format!("/proc/{pid}/exe"))).is_ok_and(|runs| runs == wanted);
        if runs && (name.contains("wasi") || arguments.contains(&socket)) {
            found.insert(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pss_line_is_read_and_its_kin_are_not() {
        let text = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  9000 kB\nPss:   1234 kB\nPss_Anon: 77 kB\n";
        assert_eq!(
            (figure_of(text, "Pss:"), figure_of(text, "Pss_Anon:")),
            (Some(1234), Some(77))
        );
        assert_eq!(figure_of("Rss: 1 kB\nPss_Dirty: 5 kB\n", "Pss:"), None);
    }

    #[test]
    fn this_very_process_has_memory() {
        assert!(pss(std::process::id()).unwrap() > 0);
    }
}
