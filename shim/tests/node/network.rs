//! A network as a pod has it: a namespace of its own with a loopback device, in which tests are clients and servers too.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

/// A network namespace, until it is dropped.
pub struct Network {
    holder: Child,
}

impl Network {
    pub fn new() -> Network {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo up && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "up\n");
        Network { holder }
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// Has the guest of `spec` join it.
    pub fn join(&self, spec: &mut Value) {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "network", "path": self.path()}));
    }

    /// Does `work` in it, on a thread of its own.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = File::open(self.path()).unwrap();
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    /// As [`Network::spawn`], and waits for the end.
    #[track_caller]
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    /// A server of one client, which it answers with its own text.
    pub fn echo(&self, address: SocketAddr) -> JoinHandle<()> {
        let listener = self.within(move || TcpListener::bind(address).unwrap());
        thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut text = Vec::new();
            client.read_to_end(&mut text).unwrap();
            client.write_all(&text).unwrap();
        })
    }

    /// As [`Network::echo`], by UDP.
    pub fn echo_datagram(&self, address: SocketAddr) -> JoinHandle<()> {
        let socket = self.within(move || UdpSocket::bind(address).unwrap());
        thread::spawn(move || {
            let mut text = [0; 512];
            let (length, from) = socket.recv_from(&mut text).unwrap();
            socket.send_to(&text[..length], from).unwrap();
        })
    }

    /// What a server that is about to listen answers to `text`.
    #[track_caller]
    pub fn ask(&self, address: SocketAddr, text: &'static str) -> String {
        self.within(move || {
            crate::command::eventually("the server listens", Duration::from_secs(20), || {
                let mut stream = TcpStream::connect(address).ok()?;
                stream.write_all(text.as_bytes()).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                Some(answer)
            })
        })
    }

    /// As [`Network::ask`], by UDP.
    #[track_caller]
    pub fn ask_by_datagram(&self, address: SocketAddr, text: &'static str) -> String {
        self.within(move || {
            crate::command::eventually("the server answers", Duration::from_secs(20), || {
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).unwrap();
                socket.connect(address).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                socket.send(text.as_bytes()).ok()?;
                let mut answer = [0; 512];
                let length = socket.recv(&mut answer).ok()?;
                Some(String::from_utf8_lossy(&answer[..length]).into_owned())
            })
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Its standard input ends.
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}
