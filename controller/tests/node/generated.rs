//! Configurations as people write them, made from a seed, on real containerds.
//!
//! `make test` has a few of them. `CONFIG_FILES=500 CONFIG_INSTALLS=100 CONFIG_SEED=7` has more, and prints how they ended:
//! `CONFIG_FILES` are asked about as `kubewasi-node check` does, and containerd is started with one in `CONFIG_START_EVERY`;
//! `CONFIG_INSTALLS` are installed, edited and uninstalled.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use kubewasi_controller::node::check::examine;
use kubewasi_controller::node::config::{Dump, Handler};
use kubewasi_controller::node::cri::Cri;
use kubewasi_controller::node::host::{Containerd, Host, HostError};
use kubewasi_controller::node::observe::install_change;
use kubewasi_testbed::daemon::Daemon;
use rustix::process::Signal;

use crate::advice::paste;
use crate::containerd::{Node, Version};
use crate::generator::{Generated, Random};
use crate::lifecycle::{Ended, install_unproven, uninstall};

/// How many of 100 that were installed have to end with every byte as it was.
const WANTED: usize = 80;

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is not a number"))
    })
}

#[tokio::test]
async fn configurations_are_installed_and_come_back_or_are_refused_with_what_helps_on_1_7() {
    Node::with(Version::V1_7, tried).await;
}

#[tokio::test]
async fn configurations_are_installed_and_come_back_or_are_refused_with_what_helps_on_2_4() {
    Node::with(Version::V2_4, tried).await;
}

async fn tried(node: &Node) {
    let mut random = Random::new(number("CONFIG_SEED", 18));
    checked(node, &mut random, number("CONFIG_FILES", 10)).await;
    installed(node, &mut random, number("CONFIG_INSTALLS", 4)).await;
}

/// Asks about files as `check` does, and follows the advice of each refusal.
async fn checked(node: &Node, random: &mut Random, files: u64) {
    let every = number("CONFIG_START_EVERY", 5);
    let containerd = node.running().await;
    let (mut good, mut started, mut refusals) = (0, 0, BTreeMap::<String, u64>::new());
    for number in 0..files {
        let directory = node.folder.join(format!("generated-{number}"));
        let generated = Generated::new(random, node.version, &directory).spoiled(random);
        generated.write(&directory);
        let root = directory.join("config.toml");
        let context = || {
            let text = fs::read_to_string(&root).unwrap_or_default();
            format!("{number}: {}\n{text}", generated.name())
        };
        let mut handler = node.handler.clone();
        let mut advised = 0;
        while let Err((reason, message)) = verdict(node, &containerd, &root, &handler).await {
            match reason.as_str() {
                "HandlerTaken" => handler.name = "wasi-other".into(),
                _ => paste(node, &message),
            }
            *refusals.entry(reason).or_default() += 1;
            advised += 1;
            assert!(advised < 4, "after {message}: {}", context());
        }
        good += u64::from(advised == 0);
        if number % every == 0 {
            start(node, &directory)
                .await
                .unwrap_or_else(|error| panic!("{error}: {}", context()));
            started += 1;
        }
        fs::remove_dir_all(&directory).unwrap();
    }
    report(&format!(
        "{:?}: of {files} files {good} are good, refused: {refusals:?}; each refusal's advice led to an installation, and \
         containerd started with the {started} that it was started with",
        node.version
    ));
}

/// Starts a containerd with what was found good, and expects it to have the handlers that its dump has.
async fn start(node: &Node, directory: &Path) -> Result<(), String> {
    let root = directory.join("config.toml");
    let dump = Dump::parse(&node.try_dump(&root)?).map_err(|error| error.to_string())?;
    let mut daemon = Daemon::new(node.binaries(), directory.to_owned());
    let text = fs::read_to_string(&root).map_err(|error| error.to_string())?;
    daemon.start(&text).map_err(|error| error.to_string())?;
    let mut found = Err("CRI does not answer".to_owned());
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = async { Cri::connect(&daemon.socket()).await?.health().await };
        if let Ok(health) = asked.await {
            found = Ok(health);
            break;
        }
    }
    daemon.end(Signal::TERM).map_err(|error| error.to_string())?;
    let found: BTreeSet<String> = found?.handlers.into_keys().collect();
    let expected: BTreeSet<String> = dump.runtimes().into_iter().map(str::to_owned).collect();
    match found == expected {
        true => Ok(()),
        false => Err(format!("CRI has {found:?}, the dump {expected:?}")),
    }
}

/// Prints a line that a passing test shows too.
fn report(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// What `check` and the agent say of a root file; both have to say the same.
async fn verdict(node: &Node, running: &Containerd, root: &Path, handler: &Handler) -> Result<(), (String, String)> {
    let configuration = match node.configuration_of(root, &running.health) {
        Ok(configuration) => configuration,
        Err(HostError::Refused(refusal)) => return Err((refusal.reason.to_owned(), refusal.message)),
        Err(error) => panic!("{error}"),
    };
    let containerd = Containerd {
        configuration,
        ..running.clone()
    };
    let change = install_change(&Host::itself(), &containerd, &node.layout, handler).await;
    let found = examine(&Host::itself(), &containerd, &node.layout, &handler.name).await;
    assert_eq!(found.is_good, change.is_ok(), "{}", found.text);
    if change.is_ok() {
        return Ok(());
    }
    let verdict = found
        .text
        .lines()
        .find_map(|line| line.strip_prefix("verdict        refused, "))
        .unwrap();
    let (reason, message) = verdict.split_once(": ").unwrap();
    let message = format!("{message}{}", found.text.split_once(message).unwrap().1);
    Err((reason.to_owned(), message))
}

/// Installs, edits as somebody else would, and uninstalls.
async fn installed(node: &Node, random: &mut Random, installs: u64) {
    let plain = node.config_text();
    let (mut same, mut ended) = (0, BTreeMap::<String, u64>::new());
    for number in 0..installs {
        let directory = node.folder.clone();
        let generated = Generated::new(random, node.version, &directory);
        let before = generated.write(&directory);
        let context = || format!("{number}: {}\n{}", generated.name(), node.config_text());
        let outcome = match node.restart().await {
            Err(error) => panic!("{error}: {}", context()),
            Ok(()) => install_unproven(node).await,
        };
        match outcome {
            Ended::Done => {
                assert!(node.handlers().await.contains(&"wasi".to_owned()), "{}", context());
                let (edited, edit) = generated.edit(random, &node.config_text());
                fs::write(node.config(), edited).unwrap();
                assert_eq!(uninstall(node).await, Ended::Done, "{edit}, {}", context());
                assert!(!node.handlers().await.contains(&"wasi".to_owned()), "{}", context());
                for (path, bytes) in &before {
                    let expected = match path == &node.config() {
                        true => edit.apply(&String::from_utf8_lossy(bytes)),
                        false => String::from_utf8_lossy(bytes).into_owned(),
                    };
                    assert_eq!(
                        fs::read_to_string(path).unwrap(),
                        expected,
                        "{}: {edit}, {}",
                        path.display(),
                        context()
                    );
                }
                same += 1;
            }
            Ended::Refused(reason, _) => *ended.entry(reason.to_owned()).or_default() += 1,
            Ended::Failed(why) => panic!("{why}: {}", context()),
        }
        generated.remove(&directory);
    }
    fs::write(node.config(), plain).unwrap();
    report(&format!(
        "{:?}: of {installs} installations {same} came back byte for byte, refused: {ended:?}",
        node.version
    ));
    assert!(
        same * 100 >= WANTED * usize::try_from(installs).unwrap(),
        "{same} of {installs}: {ended:?}"
    );
}
