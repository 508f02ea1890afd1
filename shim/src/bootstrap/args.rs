//! The command line: containerd's flags in Go's style, and our own subcommands (pure).

use std::path::PathBuf;

/// The flags that containerd passes to `start` and `delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// containerd's binary; unused, events go to the ttrpc socket.
    pub publish_binary: String,
    /// The container's id.
    pub id: String,
    /// The bundle, when it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// containerd logs at debug level.
    pub debug: bool,
}

/// What the process is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Start(Flags),
    Delete(Flags),
    Info,
    Version,
    Help,
    /// The server whose settings are in this folder.
    Serve(PathBuf),
    /// The state of all live servers, for people.
    Status,
    /// The launcher, with what its engines are like.
    Launch(String),
    Compile,
    /// What a `delete` had no time for: the text of a container's record.
    Sweep,
}

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    #[error("unknown flag {0}; see --help")]
    UnknownFlag(String),
    #[error("flag {0} needs a value; see --help")]
    NoValue(String),
    #[error("flag -debug: {0:?} is not true or false")]
    NotBool(String),
    #[error("no command; see --help")]
    NoCommand,
    #[error("unknown command {0:?}; see --help")]
    UnknownCommand(String),
    #[error("{command} needs -{flag}; containerd passes it")]
    Missing { command: &'static str, flag: &'static str },
    #[error("serve needs the folder of the server's settings")]
    NoFolder,
    #[error("launch needs the options of its engines")]
    NoEngine,
}

/// Reads the arguments behind argv\[0\]: flags with one dash or two, `-flag value` or `-flag=value`, then a command.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, ArgsError> {
    let mut flags = Flags::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(name) = arg
            .strip_prefix("--")
            .or_else(|| arg.strip_prefix('-'))
            .filter(|name| !name.is_empty())
        else {
            return command(&arg, flags, args);
        };
        let (name, given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let mut value = || {
            given
                .clone()
                .or_else(|| args.next())
                .ok_or_else(|| ArgsError::NoValue(arg.clone()))
        };
        match name {
            "namespace" => flags.namespace = value()?,
            "address" => flags.address = value()?,
            "publish-binary" => flags.publish_binary = value()?,
            "id" => flags.id = value()?,
            "bundle" => flags.bundle = Some(value()?.into()),
            "debug" => {
                flags.debug = match given.as_deref() {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(other) => return Err(ArgsError::NotBool(other.to_owned())),
                }
            }
            "info" => return Ok(Command::Info),
            "v" | "version" => return Ok(Command::Version),
            "h" | "help" => return Ok(Command::Help),
            _ => return Err(ArgsError::UnknownFlag(arg)),
        }
    }
    Err(ArgsError::NoCommand)
}

fn command(name: &str, flags: Flags, mut rest: impl Iterator<Item = String>) -> Result<Command, ArgsError> {
    match name {
        "start" => complete("start", flags).map(Command::Start),
        "delete" => complete("delete", flags).map(Command::Delete),
        "serve" => rest
            .next()
            .map(|folder| Command::Serve(folder.into()))
            .ok_or(ArgsError::NoFolder),
        "status" => Ok(Command::Status),
        "launch" => rest.next().map(Command::Launch).ok_or(ArgsError::NoEngine),
        "compile" => Ok(Command::Compile),
        "sweep" => Ok(Command::Sweep),
        _ => Err(ArgsError::UnknownCommand(name.to_owned())),
    }
}

fn complete(command: &'static str, flags: Flags) -> Result<Flags, ArgsError> {
    let missing = |flag| Err(ArgsError::Missing { command, flag });
    match &flags {
        flags if flags.namespace.is_empty() => missing("namespace"),
        flags if flags.id.is_empty() => missing("id"),
        flags if flags.address.is_empty() => missing("address"),
        _ => Ok(flags),
    }
}

/// What `-v` prints.
pub fn version() -> String {
    format!("containerd-shim-wasi-v1:\n  Version: {}\n", env!("CARGO_PKG_VERSION"))
}

/// What `--help` prints.
pub fn help() -> String {
    format!(
        "containerd-shim-wasi-v1 {version}: runs WebAssembly images as containerd tasks\n\
         \n\
         containerd starts this program itself, for the runtime io.containerd.wasi.v1:\n\
         \x20 ctr run --rm --runtime io.containerd.wasi.v1 IMAGE ID\n\
         \n\
         For people:\n\
         \x20 status    the live servers of this node and their counters, a JSON line each\n\
         \x20 -v        the version\n\
         \x20 --help    this text\n\
         \n\
         For containerd:\n\
         \x20 [flags] start     find or start the node's server and print its address\n\
         \x20 [flags] delete    clean up what a dead server left of a container\n\
         \x20 -info             describe the runtime, as a protobuf\n\
         \x20 flags: -namespace NAME -address SOCKET -id ID [-bundle FOLDER] [-publish-binary PATH] [-debug]\n\
         \n\
         For itself: serve, launch, compile\n\
         \n\
         Options of the runtime handler (TOML, in containerd's configuration):\n\
         {options}",
        version = env!("CARGO_PKG_VERSION"),
        options = kubewasi_options::reference(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, ArgsError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn flags() -> Flags {
        Flags {
            namespace: "k8s.io".into(),
            address: "/run/containerd/containerd.sock".into(),
            publish_binary: "/usr/bin/containerd".into(),
            id: "c1".into(),
            bundle: None,
            debug: false,
        }
    }

    const COMMON: &str =
        "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id c1";

    #[test]
    fn start_as_containerd_calls_it_is_understood() {
        assert_eq!(parsed(&format!("{COMMON} start")), Ok(Command::Start(flags())));
        assert_eq!(
            parsed(&format!("{COMMON} -debug start")),
            Ok(Command::Start(Flags { debug: true, ..flags() }))
        );
    }

    #[test]
    fn delete_as_containerd_calls_it_carries_the_bundle() {
        assert_eq!(
            parsed(&format!("{COMMON} -bundle /b delete")),
            Ok(Command::Delete(Flags {
                bundle: Some("/b".into()),
                ..flags()
            }))
        );
    }

    #[test]
    fn two_dashes_and_equal_signs_mean_the_same() {
        assert_eq!(
            parsed("--namespace=k8s.io --address=/a -id=c1 -debug=false start"),
            Ok(Command::Start(Flags {
                namespace: "k8s.io".into(),
                address: "/a".into(),
                id: "c1".into(),
                ..Flags::default()
            }))
        );
    }

    #[test]
    fn info_version_and_help_need_nothing_else() {
        assert_eq!(parsed("-info"), Ok(Command::Info));
        assert_eq!(parsed("-v"), Ok(Command::Version));
        assert_eq!(parsed("--help"), Ok(Command::Help));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        assert_eq!(parsed(""), Err(ArgsError::NoCommand));
        assert_eq!(
            parsed("-socket /x start"),
            Err(ArgsError::UnknownFlag("-socket".into()))
        );
        assert_eq!(parsed("-id"), Err(ArgsError::NoValue("-id".into())));
        assert_eq!(
            parsed("-id c1 start"),
            Err(ArgsError::Missing {
                command: "start",
                flag: "namespace"
            })
        );
        assert_eq!(
            parsed("-debug=perhaps start"),
            Err(ArgsError::NotBool("perhaps".into()))
        );
        assert_eq!(parsed("stop"), Err(ArgsError::UnknownCommand("stop".into())));
        assert_eq!(parsed("serve"), Err(ArgsError::NoFolder));
    }

    #[test]
    fn the_help_names_every_option() {
        let help = help();
        assert!(kubewasi_options::TABLE.iter().all(|entry| help.contains(entry.key)));
    }
}
