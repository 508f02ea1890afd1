//! What cannot be written is found out before anything is.

use kubewasi_testbed::systemd_host::{CONFIG, SystemdHost};
use kubewasi_testbed::version::Version;

use crate::check::{check_on, wait_for_check};

/// Runs `spoil`, and checks that the host is refused for `reason` with `said`; after `fix`, nothing is refused.
#[track_caller]
fn refused(host: &SystemdHost, spoil: &str, reason: &str, said: &str, fix: &str) {
    host.sh(spoil);
    let (text, is_good) = check_on(host);
    let verdict = format!("verdict        refused, {reason}: ");
    assert!(
        !is_good && text.contains(&verdict) && text.contains(said),
        "{spoil}: {text}"
    );
    host.sh(fix);
    let (text, is_good) = check_on(host);
    assert!(is_good, "{fix}: {text}");
}

fn host() -> SystemdHost {
    let host = SystemdHost::start(Version::V2_4, "");
    wait_for_check(&host);
    host
}

#[test]
fn a_file_that_is_a_mount_of_its_own_is_refused_with_commands_that_make_it_an_ordinary_one() {
    let host = host();
    host.sh(&format!(
        "cp {CONFIG} /srv/config.toml && mount --bind /srv/config.toml {CONFIG}"
    ));
    let (text, is_good) = check_on(&host);
    assert!(!is_good && text.contains("refused, MountPoint: "), "{text}");
    // The advice, as it stands.
    let command = text.split('`').find(|part| part.starts_with("cp -p ")).unwrap();
    host.sh(command);
    assert!(check_on(&host).1, "{}", check_on(&host).0);
}

#[test]
fn a_file_that_is_another_one_in_containerds_own_mount_namespace_is_refused() {
    let host = host();
    let with_mounts = |mounts: &str| {
        let containerd = Version::V2_4.folder().join("containerd");
        format!(
            "mkdir -p /run/units/containerd.service.d && \
             printf '[Service]\\nExecStart=\\nExecStart=/usr/bin/unshare --mount sh -c \"{mounts} && exec {} --config {CONFIG}\"\\n' \
             >/run/units/containerd.service.d/mounts.conf && systemctl --user daemon-reload && systemctl --user restart containerd",
            containerd.display()
        )
    };
    let without_mounts = "rm /run/units/containerd.service.d/mounts.conf && systemctl --user daemon-reload && \
                          systemctl --user restart containerd";
    host.sh(&format!("cp {CONFIG} /srv/other.toml"));
    refused(
        &host,
        &with_mounts(&format!("mount --bind /srv/other.toml {CONFIG}")),
        "ConfigHidden",
        &format!("containerd has another {CONFIG} than the host"),
        without_mounts,
    );
    // As ProtectSystem= has it: the same file, which containerd only reads.
    host.sh(&with_mounts("mount --bind /etc /etc && mount -o remount,bind,ro /etc"));
    wait_for_check(&host);
}

#[test]
fn a_file_behind_a_symbolic_link_is_judged_by_where_the_link_leads() {
    refused(
        &host(),
        &format!(
            "mkdir /srv/real && mount -t tmpfs real /srv/real && mv {CONFIG} /srv/real/c.toml && \
             ln -s /srv/real/c.toml {CONFIG} && mount -o remount,ro /srv/real"
        ),
        "ReadOnly",
        "/srv/real is on a read-only file system",
        "mount -o remount,rw /srv/real",
    );
}

#[test]
fn a_file_that_only_another_user_may_read_is_refused_by_the_check_as_by_the_agent() {
    refused(
        &host(),
        &format!("chown 1000 {CONFIG} && chmod 0600 {CONFIG}"),
        "ConfigUnreadable",
        &format!("`chown root {CONFIG}`"),
        &format!("chown root {CONFIG}"),
    );
}

#[test]
fn an_immutable_file_or_directory_is_refused() {
    let host = host();
    // On the disk of the test: not every file system in memory has attributes.
    let directory = host.folder().join("etc").display().to_string();
    host.sh(&format!(
        "mkdir {directory} && mv {CONFIG} {directory}/c.toml && ln -s {directory}/c.toml {CONFIG}"
    ));
    let file = format!("{directory}/c.toml");
    refused(
        &host,
        &format!("chattr +i {file}"),
        "Immutable",
        &format!("`chattr -i -a {file}`"),
        &format!("chattr -i -a {file}"),
    );
    refused(
        &host,
        &format!("chattr +a {directory}"),
        "Immutable",
        &format!("`chattr -i -a {directory}`"),
        &format!("chattr -i -a {directory}"),
    );
}

#[test]
fn a_file_system_without_room_for_the_configuration_or_for_the_shim_is_refused() {
    let host = host();
    refused(
        &host,
        "mount -o remount,size=1m /etc && head -c 2000000 /dev/zero >/etc/full || true",
        "DiskFull",
        "/etc/containerd has no room",
        "rm /etc/full",
    );
    refused(
        &host,
        "mount -o remount,size=1m /opt",
        "DiskFull",
        "/opt has no room",
        "mount -o remount,size=1g /opt",
    );
}

#[test]
fn a_directory_of_programs_that_cannot_take_one_is_refused() {
    let host = host();
    refused(
        &host,
        "mkdir /opt/kubewasi && mount -t tmpfs -o noexec opt /opt/kubewasi",
        "NoExec",
        "/opt/kubewasi is on a file system that forbids programs",
        "umount /opt/kubewasi && rmdir /opt/kubewasi",
    );
    refused(
        &host,
        "chown 1000 /opt",
        "NotWritable",
        "cannot write into /opt",
        "chown root /opt",
    );
    refused(
        &host,
        "touch /opt/kubewasi",
        "NotWritable",
        "cannot write into /opt/kubewasi",
        "rm /opt/kubewasi",
    );
}
