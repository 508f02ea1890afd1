//! Hosts that the agent cannot work with, in the state that they are in now: `kubewasi-node check` says which and what to do,
//! within seconds, whatever hangs.

use std::time::{Duration, Instant};

use kubewasi_testbed::systemd_host::{CONFIG, SOCKET, SystemdHost};
use kubewasi_testbed::version::Version;

use crate::check::{check_on, wait_for_check};

/// Restarts the host's containerd.
const RESTART: &str = "systemctl --user restart containerd";

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
fn a_containerd_without_cri_is_refused_with_the_command_that_enables_it_in_every_file() {
    on_both(|version| {
        let host = SystemdHost::start(version, "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]");
        // containerd disables what any of its files disables.
        let import = "/etc/containerd/conf.d/docker.toml";
        host.sh(&format!(
            "mkdir /etc/containerd/conf.d && \
             printf 'version = 2\\ndisabled_plugins = [\\n\"io.containerd.snapshotter.v1.aufs\",\\n' >{import} && \
             printf '\"io.containerd.grpc.v1.cri\"\\n]\\n' >>{import} && sed -i '1i imports = [\"/etc/containerd/conf.d/*.toml\"]' {CONFIG} && {RESTART}"
        ));
        expect_refused(&host, "CriDisabled", &["disabled_plugins", CONFIG, import]);
        host.sh(&advice(&host));
        expect_refused(&host, "CriDisabled", &[SOCKET, "restart containerd"]);
        host.sh(RESTART);
        wait_for_check(&host);
    });
}

/// The command in what a check says.
fn advice(host: &SystemdHost) -> String {
    let (text, _) = check_on(host);
    let command = text.split('`').nth(1);
    command.unwrap_or_else(|| panic!("no command in: {text}")).to_owned()
}

#[test]
fn a_cri_plugin_that_did_not_load_is_reported_with_its_own_error() {
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
fn a_socket_at_which_nothing_listens_is_reported_with_what_it_is() {
    let host = SystemdHost::start(Version::V2_4, "");
    wait_for_check(&host);
    host.sh(
        "pid=$(systemctl --user show --value --property MainPID containerd); kill -KILL $pid; \
         while kill -0 $pid 2>/dev/null; do sleep 0.1; done",
    );
    expect_refused(&host, "ContainerdDown", &[SOCKET, "Connection refused", "start it"]);
    host.sh(&format!("rm {SOCKET} && touch {SOCKET}"));
    expect_refused(&host, "ContainerdDown", &[SOCKET, "a file of another kind"]);
}

#[test]
fn a_containerd_that_does_not_answer_is_reported_within_seconds() {
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
fn a_systemd_or_a_bus_that_does_not_answer_is_reported_within_seconds() {
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
