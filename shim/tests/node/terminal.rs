//! Terminals: a process sees one, what is typed reaches it, what it writes arrives whole, its size follows.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::command::{LIMIT, eventually};
use crate::container::Run;
use crate::containerd::Node;
use crate::exec::{exec_command, idle, image};

/// A person at a terminal, in which a client of containerd runs.
pub struct Person {
    master: File,
    client: Child,
    seen: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Person {
    /// Runs `command` in a terminal of 80 columns and 24 rows.
    pub fn runs(command: &Command) -> Person {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let end = || OwnedFd::from(File::from(terminal.try_clone().unwrap()));
        let mut person = Person {
            master: File::from(master),
            // In a session of its own, whose terminal this is: it hears of new sizes.
            client: Command::new("setsid")
                .args(["--ctty", "--wait"])
                .arg(command.get_program())
                .args(command.get_args())
                .stdin(end())
                .stdout(end())
                .stderr(end())
                .spawn()
                .unwrap(),
            seen: Arc::default(),
            reader: None,
        };
        person.resize(80, 24);
        let (seen, mut master) = (person.seen.clone(), person.master.try_clone().unwrap());
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the end of the last process in the terminal.
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                seen.lock().unwrap().extend(&buffer[..length]);
            }
        });
        person.reader = Some(reader);
        person
    }

    pub fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// What was printed, without what terminals do to line ends, and without what containerd 2.x warns of.
    pub fn seen(&self) -> String {
        let all = String::from_utf8_lossy(&self.seen.lock().unwrap()).replace('\r', "");
        all.split_inclusive('\n')
            .filter(|line| !line.contains(" DEPRECATION: "))
            .collect()
    }

    #[track_caller]
    pub fn sees(&self, text: &str) {
        let since = Instant::now();
        while !self.seen().contains(text) {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "{text:?} was not seen in {:?}",
                self.seen()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    /// Resizes the terminal, and waits until the shell in it knows.
    pub fn resizes_the_shells_terminal(&mut self) {
        self.resize(132, 43);
        eventually("the new size arrives", Duration::from_secs(20), || {
            self.types("stty size\r");
            thread::sleep(Duration::from_millis(200));
            self.seen().contains("43 132\n").then_some(())
        });
    }

    /// Waits for the client's end: its exit code and all that was seen.
    pub fn waits(mut self) -> (Option<i32>, String) {
        let since = Instant::now();
        let code = loop {
            if let Some(status) = self.client.try_wait().unwrap() {
                break status.code();
            }
            if since.elapsed() > LIMIT {
                self.client.kill().unwrap();
                panic!("over its limit: {:?}", self.seen());
            }
            thread::sleep(Duration::from_millis(5));
        };
        // The last process in the terminal has ended, so the reader comes to the end of what was written.
        self.reader.take().unwrap().join().unwrap();
        (code, self.seen())
    }
}

/// A `ctr run` in a terminal.
fn run_in_terminal(node: &Node, args: &[&str]) -> Person {
    let image = image();
    node.import(&image);
    Person::runs(&Run::of_image(node, &image).flag(&["--tty"]).args(args).foreground())
}

fn exec_in_terminal(node: &Node, id: &str, args: &[&str]) -> Person {
    Person::runs(&exec_command(node, id, &["--tty"], args))
}

on_every_containerd! {
    fn a_guest_sees_that_its_streams_are_a_terminal(node) {
        for program in ["/probe.wasm", "/bin/probe2.wasm", "/bin/probe3.wasm"] {
            let (code, seen) = run_in_terminal(node, &[program, "isatty"]).waits();
            assert_eq!((code, seen.as_str()), (Some(0), "true true true\n"), "{program}");
        }
        let image = image();
        let plain = node.run(&image).args(&["/probe.wasm", "isatty"]).finish().ok();
        assert_eq!(plain.stdout, "false false false\n");
    }

    fn what_is_typed_reaches_an_exec_line_by_line(node) {
        let (id, _) = idle(node);
        for args in [&["/probe.wasm", "cat"][..], &["/bin/probe2.wasm", "cat"]] {
            let mut person = exec_in_terminal(node, &id, args);
            person.types("hello\r");
            person.sees("hello\nhello\n");
            // Ctrl-D on an empty line.
            person.types("\x04");
            assert_eq!(person.waits().0, Some(0), "{args:?}");
        }
        node.remove(&id);
    }

    fn ctrl_c_ends_a_guest_with_130(node) {
        let mut person = run_in_terminal(node, &["/probe.wasm", "idle"]);
        person.sees("idle\n");
        person.types("\x03");
        assert_eq!(person.waits().0, Some(130));
    }

    fn a_shell_in_a_terminal_knows_its_size_and_hears_of_another(node) {
        let (id, _) = idle(node);
        let mut person = exec_in_terminal(node, &id, &["sh"]);
        person.sees("# ");
        person.types("stty size\r");
        person.sees("24 80\n");
        person.resizes_the_shells_terminal();
        person.types("exit 3\r");
        assert_eq!(person.waits().0, Some(3));
        node.remove(&id);
    }

    fn all_that_was_written_to_a_terminal_arrives_before_the_exit(node) {
        let lines = 65536;
        let (code, seen) = run_in_terminal(node, &["/probe.wasm", "lines", &lines.to_string()]).waits();
        assert_eq!(code, Some(0));
        assert_eq!(seen.lines().count(), lines);
        assert!(seen.lines().enumerate().all(|(index, line)| line.parse() == Ok(index)));
    }
}

on_newest_containerd! {
    // The ctr of 1.6 and 1.7 closes its end of an exec's output when that is deleted, whatever there is left to read.
    fn all_that_an_exec_wrote_to_a_terminal_arrives_before_its_exit(node) {
        let (id, _) = idle(node);
        for round in 0..20 {
            let (code, seen) = exec_in_terminal(node, &id, &["sh", "-c", "echo said; exit 9"]).waits();
            assert_eq!((code, seen.as_str()), (Some(9), "said\n"), "round {round}");
        }
        node.remove(&id);
    }
}
