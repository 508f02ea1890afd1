//! Hosts that the agent cannot work with, in the state that they are in now: `kubewasi-node check` says which and what to do,
//! within seconds, whatever hangs.

use std::time::{Duration, Instant};

use kubewasi_testbed::systemd_host::{CONFIG, SOCKET, SystemdHost};
use kubewasi_testbed::version::Version;

use crate::check::{check_on, wait_for_check};

/// As long as a check may take on a machine that has more to do: each of its calls ends within ten seconds.
const SOON: Duration = Duration::from_secs(40);

/// Checks that the host is refused for `reason` with all of `said`.
#[track_caller]
fn expect_refused(host: &SystemdHost, reason: &str, said: &[&str]) {
    let begun = Instant::now();
    let (text, is_good) = check_on(host);
    let took = begun.elapsed();
    let verdict = format!("verdict        refused, {reason}: ");
    assert!(!is_good && text.contains(&verdict), "not {reason}: {text}");
    for part in said {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(took < SOON, "took {took:?}: {text}");
}

fn on_both(scenario: impl Fn(Version)) {
    [Version::V1_7, Version::V2_4].into_iter().for_each(scenario);
}

#[test]
fn a_containerd_without_cri_is_refused_with_the_line_that_switches_it_off() {
    on_both(|version| {
        let host = SystemdHost::start(version, "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]");
        expect_refused(&host, "CriDisabled", &[SOCKET, "disabled_plugins", CONFIG]);
        host.sh(&format!(
            "sed -i '/^disabled_plugins/d' {CONFIG} && systemctl --user restart containerd"
        ));
        wait_for_check(&host);
    });
}

#[test]
fn a_cri_plugin_that_did_not_load_is_told_with_its_own_error() {
    on_both(|version| {
        let host = SystemdHost::start(version, "");
        wait_for_check(&host);
        host.sh(&format!(
            "echo '[plugins.\"{}\".containerd]\ndefault_runtime_name = \"nothing\"' >>{CONFIG} && \
             systemctl --user restart containerd",
            version.format().1
        ));
        expect_refused(&host, "CriNotLoaded", &["nothing", CONFIG]);
    });
}

#[test]
fn a_socket_at_which_nothing_listens_is_told_with_what_it_is() {
    let host = SystemdHost::start(Version::V2_4, "");
    wait_for_check(&host);
    host.sh("kill -KILL $(systemctl --user show --value --property MainPID containerd)");
    expect_refused(&host, "ContainerdDown", &[SOCKET, "Connection refused", "start it"]);
    host.sh(&format!("rm {SOCKET} && touch {SOCKET}"));
    expect_refused(&host, "ContainerdDown", &[SOCKET, "a file of another kind"]);
}

#[test]
fn a_containerd_that_does_not_answer_is_told_within_seconds() {
    on_both(|version| {
        let host = SystemdHost::start(version, "");
        wait_for_check(&host);
        host.sh("systemctl --user kill --kill-who=main --signal=STOP containerd");
        expect_refused(&host, "ContainerdNotResponding", &[SOCKET, "kill -CONT"]);
        host.sh("systemctl --user kill --kill-who=main --signal=CONT containerd");
        wait_for_check(&host);
    });
}

#[test]
fn a_systemd_or_a_bus_that_does_not_answer_is_told_within_seconds() {
    let host = SystemdHost::start(Version::V2_4, "");
    wait_for_check(&host);
    host.signal_systemd("STOP");
    expect_refused(&host, "SystemdNotResponding", &["GetUnitByPID", "within 10 seconds"]);
    host.signal_systemd("CONT");
    wait_for_check(&host);
    host.sh("kill -STOP $(pgrep dbus-daemon)");
    expect_refused(&host, "SystemdNotResponding", &["within 10 seconds"]);
    host.sh("kill -CONT $(pgrep dbus-daemon)");
    wait_for_check(&host);
}

#[test]
fn a_containerd_that_is_no_service_is_refused() {
    let host = SystemdHost::start(Version::V2_4, "");
    wait_for_check(&host);
    let binary = Version::V2_4.folder().join("containerd");
    host.sh(&format!(
        "systemctl --user stop containerd; setsid systemd-run --user --quiet --scope {} --config {CONFIG} >/dev/null 2>&1 & sleep 3",
        binary.display()
    ));
    expect_refused(&host, "NoService", &[".scope", "KillMode=process"]);
}

#[test]
fn a_restart_that_would_wait_for_another_job_is_refused_with_the_name_of_the_job() {
    let host = SystemdHost::start(Version::V2_4, "");
    wait_for_check(&host);
    host.sh(
        "printf '[Service]\\nType=oneshot\\nExecStart=/bin/sleep 1000\\n' >/run/units/disk.service; \
         systemctl --user daemon-reload; systemctl --user start --no-block disk.service",
    );
    expect_refused(
        &host,
        "RestartQueued",
        &["start job for disk.service", "restart of containerd.service"],
    );
    host.sh("systemctl --user stop disk.service");
    wait_for_check(&host);
}
