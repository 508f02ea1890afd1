//! wasi:sockets 0.2 and 0.3 in the pod's network namespace.

use std::net::SocketAddr;

use serde_json::json;

use crate::container::{Run, root_folder, spec};
use crate::containerd::Node;
use crate::guests::Probe;
use crate::nameserver;
use crate::network::Network;

const COMPONENTS: [Probe; 2] = [Probe::P2, Probe::P3];
const ADDRESSES: [&str; 2] = ["127.0.0.1:7000", "[::1]:7000"];

/// A probe in `network`, with what a pod's /etc says of names.
fn probe<'a>(node: &'a Node, network: &Network, world: Probe, args: &[&str]) -> Run<'a> {
    let files: [(&str, &[u8]); 3] = [
        ("probe.wasm", &world.bytes()),
        ("etc/resolv.conf", nameserver::RESOLV_CONF),
        ("etc/hosts", b"10.9.8.7 neighbour\n"),
    ];
    let mut spec = spec(node, &root_folder(node, &files), &[&["/probe.wasm"], args].concat());
    network.join(&mut spec);
    Run::of_spec(node, &spec)
}

on_newest_containerd! {
    fn a_component_is_a_tcp_client_and_server_by_ipv4_and_ipv6(node) {
        let network = Network::new();
        for world in COMPONENTS {
            for address in ADDRESSES {
                let at: SocketAddr = address.parse().unwrap();
                let server = network.echo(at);
                let said = probe(node, &network, world, &["tcp-client", address, "ping"]).finish().ok().stdout;
                assert_eq!(said, "ping\n", "{world:?} {address}");
                server.join().unwrap();
                let guest = probe(node, &network, world, &["tcp-server", address]).spawn();
                assert_eq!(network.ask(at, "pong"), "pong", "{world:?} {address}");
                guest.wait().ok();
            }
        }
    }

    fn a_component_is_a_udp_client_and_server_by_ipv4_and_ipv6(node) {
        let network = Network::new();
        for world in COMPONENTS {
            for address in ADDRESSES {
                let at: SocketAddr = address.parse().unwrap();
                let server = network.echo_datagram(at);
                let said = probe(node, &network, world, &["udp-client", address, "ping"]).finish().ok().stdout;
                assert_eq!(said, "ping\n", "{world:?} {address}");
                server.join().unwrap();
                let guest = probe(node, &network, world, &["udp-server", address]).spawn();
                assert_eq!(network.ask_by_datagram(at, "pong"), "pong", "{world:?} {address}");
                guest.wait().ok();
            }
        }
    }

    fn names_are_looked_up_as_the_pods_files_say(node) {
        let network = Network::new();
        nameserver::serve(&network);
        for world in COMPONENTS {
            let resolve = |name: &str| probe(node, &network, world, &["resolve", name]).finish().ok().stdout;
            assert_eq!(resolve("service.test"), "10.1.2.3\nfd00::3\n", "{world:?}");
            assert_eq!(resolve("neighbour"), "10.9.8.7\n", "{world:?}");
            // As headless services of many pods are.
            assert_eq!(resolve("long.service.test"), "10.1.2.3\nfd00::3\n", "{world:?}, by TCP");
        }
    }

    fn the_network_is_the_pods_alone(node) {
        // In the node's network, where no guest of a pod's own network gets.
        let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = outside.local_addr().unwrap().to_string();
        let network = Network::new();
        for world in COMPONENTS {
            let refused = probe(node, &network, world, &["tcp-client", &address, "x"]).finish().expect_code(1);
            assert!(refused.stderr.to_lowercase().contains("refused"), "{refused}");
        }
    }

    fn a_port_that_is_taken_or_privileged_is_refused_and_a_capability_opens_it(node) {
        let network = Network::new();
        let _taken = network.within(|| std::net::TcpListener::bind("127.0.0.1:7001").unwrap());
        for (world, in_use, denied) in [(Probe::P2, "in use", "denied"), (Probe::P3, "AddressInUse", "AccessDenied")] {
            probe(node, &network, world, &["tcp-server", "127.0.0.1:7001"]).finish().expect_code(1).expect_error(&[in_use]);
            let root = root_folder(node, &[("probe.wasm", &world.bytes())]);
            let mut spec = spec(node, &root, &["/probe.wasm", "tcp-server", "127.0.0.1:80"]);
            network.join(&mut spec);
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["process"]["capabilities"] = json!({});
            Run::of_spec(node, &spec).finish().expect_code(1).expect_error(&[denied]);
            let one = json!(["CAP_NET_BIND_SERVICE"]);
            spec["process"]["capabilities"] =
                json!({"bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one});
            let guest = Run::of_spec(node, &spec).spawn();
            assert_eq!(network.ask("127.0.0.1:80".parse().unwrap(), "open"), "open", "{world:?}");
            guest.wait().ok();
        }
    }

    fn a_core_module_has_no_sockets(node) {
        let network = Network::new();
        probe(node, &network, Probe::P1, &["tcp-client", ADDRESSES[0], "x"]).finish().expect_code(1);
    }
}
