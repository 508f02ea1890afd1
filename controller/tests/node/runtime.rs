//! Of several containerds the one counts that runs the pods.

use kubewasi_testbed::systemd_host::{SOCKET, SystemdHost};
use kubewasi_testbed::version::Version;

use crate::check::{check_in_pod, check_in_pod_root, check_on, wait_for_check};

/// Where k3s has its containerd listen.
const K3S: &str = "/run/k3s/containerd/containerd.sock";
/// A socket at a path that no distribution uses.
const UNKNOWN: &str = "/run/elsewhere/containerd.sock";

#[test]
fn a_default_socket_that_is_a_symbolic_link_is_followed_below_the_root_of_the_host() {
    let host = SystemdHost::boot(Version::V2_4, "", UNKNOWN);
    host.sh(&format!("mkdir -p /run/containerd && ln -s {UNKNOWN} {SOCKET}"));
    host.wait_for("containerd", || host.path(UNKNOWN).exists());
    wait_for_check(&host);
    // The target does not exist in the pod's own root, so the link leads to containerd in the host's root only.
    let (text, _) = check_in_pod_root(&host);
    assert!(
        text.ends_with(&format!("no containerd that runs this pod listens at {SOCKET}\n")),
        "{text}"
    );
}

#[test]
fn a_containerd_that_listens_where_its_distribution_has_it_is_found() {
    let host = SystemdHost::boot(Version::V2_4, "", K3S);
    host.wait_for("containerd", || host.path(K3S).exists());
    wait_for_check(&host);
    let (text, _) = check_on(&host);
    assert!(text.contains(&format!("at {K3S}, pid")), "{text}");
}

#[test]
fn the_parent_of_the_agents_process_says_which_containerd_counts() {
    let host = SystemdHost::start(Version::V2_4, "");
    wait_for_check(&host);
    let under = |parent: &str| check_in_pod(&host, parent).0;
    let text = under(&format!(
        "containerd-shim-runc-v2 -namespace k8s.io -id b -address {K3S}"
    ));
    assert!(
        text.contains(&format!("refused, ContainerdDown: nothing answers at {K3S}")),
        "{text}"
    );
    let text = under(&format!(
        "containerd-shim-runc-v2 -namespace moby -id b -address {SOCKET}"
    ));
    assert!(
        text.contains("refused, NotContainerd: pods of this node are run by Docker"),
        "{text}"
    );
    let text = under(&format!(
        "containerd-shim-runc-v2 -namespace k8s.io -id b -address {SOCKET}"
    ));
    assert!(
        text.contains(&format!("no containerd that runs this pod listens at {SOCKET}")),
        "{text}"
    );
}
