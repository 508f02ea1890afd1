//! A wasi:http service that runs, and clients in its network namespace.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;

use crate::command::{eventually, run};
use crate::containerd::Node;
use crate::guests::Service;
use crate::image_builder::Image;

/// The longest a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A service in a network namespace of its own.
pub struct Served<'a> {
    pub node: &'a Node,
    pub id: String,
    pub pid: u32,
    log: PathBuf,
    port: u16,
}

/// The image of a service.
pub fn image(node: &Node, service: Service) -> Image {
    let name = format!("{service:?}").to_lowercase();
    let image = Image::with_files(&name, &[("/service.wasm", &service.bytes())])
        .platform("wasi", "wasm")
        .entrypoint(&["/service.wasm"]);
    node.import(&image);
    image
}

impl<'a> Served<'a> {
    /// Starts `service` with these annotations, `kubewasi.dev/` before each, and waits until it listens on `port`.
    #[track_caller]
    pub fn start(node: &'a Node, service: Service, annotations: &[&str]) -> Served<'a> {
        Served::start_with(node, service, annotations, &[], 8080)
    }

    /// As [`Served::start`], with flags of `ctr run`, on a port that they lead to.
    #[track_caller]
    pub fn start_with(node: &'a Node, service: Service, annotations: &[&str], flags: &[&str], port: u16) -> Served<'a> {
        Served::start_image(node, &image(node, service), annotations, flags, port)
    }

    /// As [`Served::start_with`], of any image that is there.
    #[track_caller]
    pub fn start_image(node: &'a Node, image: &Image, annotations: &[&str], flags: &[&str], port: u16) -> Served<'a> {
        let mut container = node.run(image).flag(flags);
        for annotation in annotations {
            container = container.flag(&["--annotation", &format!("kubewasi.dev/{annotation}")]);
        }
        let (id, pid, log) = container.detach_with_log();
        run(Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "ip", "link", "set", "lo", "up"])).ok();
        let served = Served {
            node,
            id,
            pid,
            log,
            port,
        };
        eventually("the service listens", PATIENCE, || {
            assert!(
                served
                    .node
                    .task(&served.id)
                    .is_some_and(|(_, state)| state == "RUNNING"),
                "{}",
                served.log()
            );
            served.inside(|| served.connect().map(drop)).ok()
        });
        served
    }

    /// The same service by another of its ports.
    pub fn at(&self, port: u16) -> Served<'a> {
        Served {
            id: self.id.clone(),
            log: self.log.clone(),
            port,
            ..*self
        }
    }

    /// What the service wrote, on either stream.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until every one of `words` is in a line of the log.
    #[track_caller]
    pub fn log_line(&self, words: &[&str]) -> String {
        eventually(&format!("a line with {words:?}"), PATIENCE, || {
            let log = self.log();
            let found = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            found.map(str::to_owned)
        })
    }

    /// Runs `client` in the service's network namespace.
    pub fn inside<T: Send>(&self, client: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid)).unwrap();
        let enter = || move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                enter();
                client()
            });
            match entered.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A connection; to be called inside.
    pub fn connect(&self) -> std::io::Result<TcpStream> {
        self.connect_to("127.0.0.1")
    }

    /// As [`Served::connect`], to an address of the pod.
    pub fn connect_to(&self, address: &str) -> std::io::Result<TcpStream> {
        let address = SocketAddr::new(address.parse().unwrap(), self.port);
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"
        ))
    }

    /// Whatever is sent on a connection of its own, until the service closes it.
    #[track_caller]
    pub fn send(&self, request: &str) -> Reply {
        self.inside(|| {
            let mut stream = self.connect().unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            Reply::read(stream)
        })
    }

    /// Ends it by SIGTERM; its exit code.
    #[track_caller]
    pub fn end(self) -> i32 {
        self.node.ctr(&["task", "kill", "--signal", "SIGTERM", &self.id]).ok();
        self.node.wait_until(&self.id, "STOPPED");
        self.node.delete(&self.id)
    }

    /// The processor time it has used, in hundredths of a second.
    pub fn ticks(&self) -> u64 {
        ticks(self.pid)
    }
}

/// The processor time that a process has used, in hundredths of a second.
pub fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// What a client got until the connection ended.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    /// As it came, with the sizes of chunks.
    pub body: String,
}

impl Reply {
    pub fn read(mut stream: TcpStream) -> Reply {
        let mut bytes = Vec::new();
        // An answer may be cut off; what came counts.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Reply {
            status: status.unwrap_or_default(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }
}
