//! Where a stream leads, from its name in a request (pure): as containerd's own shim reads it
//! (cmd/containerd-shim-runc-v2/process/io.go, `createIO`).

use std::collections::HashSet;
use std::path::PathBuf;

use url::Url;

use super::streams::StreamError;

/// Where a stream leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Nothing,
    Fifo(PathBuf),
    File(PathBuf),
    Logger(Program),
}

/// A program that takes the output of a process.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// The query's names, each followed by its first value.
    pub arguments: Vec<String>,
    /// The query's `env.NAME` keys, each with its first value.
    pub environment: Vec<(String, String)>,
    /// It says that it is ready by a byte (`binary-v2`), where the end of its pipe is enough for others.
    pub must_report: bool,
}

/// The target of `stream`, which the request names by `name`: a path, or a URI with a scheme.
///
/// # Errors
///
/// For an unknown scheme, and a URI without an absolute path.
pub fn target(stream: &'static str, name: &str) -> Result<Target, StreamError> {
    let Some((scheme, rest)) = name.split_once("://") else {
        return Ok(match name {
            "" => Target::Nothing,
            path => Target::Fifo(path.into()),
        });
    };
    match scheme {
        "fifo" => Ok(Target::Fifo(rest.into())),
        "file" => Ok(Target::File(path(stream, name)?.1)),
        "binary" | "binary-v2" => {
            let (uri, path) = path(stream, name)?;
            let (environment, arguments) = query(&uri);
            Ok(Target::Logger(Program {
                path,
                arguments,
                environment,
                must_report: scheme == "binary-v2",
            }))
        }
        scheme => Err(StreamError::Scheme {
            stream,
            uri: name.to_owned(),
            scheme: scheme.to_owned(),
        }),
    }
}

fn path(stream: &'static str, name: &str) -> Result<(Url, PathBuf), StreamError> {
    let parsed = Url::parse(name).ok().and_then(|uri| {
        let path = uri.to_file_path().ok().filter(|path| path.parent().is_some())?;
        Some((uri, path))
    });
    parsed.ok_or_else(|| StreamError::Path {
        stream,
        uri: name.to_owned(),
    })
}

/// The environment and the arguments of a logger (containerd, `NewBinaryCmd`). The names by which it is told its container
/// are not the query's to set.
fn query(uri: &Url) -> (Vec<(String, String)>, Vec<String>) {
    let mut names = HashSet::new();
    let (mut environment, mut arguments) = (Vec::new(), Vec::new());
    for (name, value) in uri.query_pairs() {
        if !names.insert(name.clone()) {
            continue;
        }
        match name.strip_prefix("env.") {
            Some("" | "CONTAINER_ID" | "CONTAINER_NAMESPACE") => {}
            Some(variable) => environment.push((variable.to_owned(), value.into_owned())),
            None => arguments.extend([name.into_owned(), value.into_owned()]),
        }
    }
    (environment, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_uri_is_decoded_and_its_query_is_no_part_of_it() {
        let file = |name| target("stdout", name).unwrap();
        assert_eq!(
            file("file:///var/log/a%20b.log?max=3"),
            Target::File("/var/log/a b.log".into())
        );
        assert_eq!(file("file:///plain"), Target::File("/plain".into()));
        assert_eq!(file("/run/a%20b"), Target::Fifo("/run/a%20b".into()));
        assert_eq!(file("fifo:///run/f"), Target::Fifo("/run/f".into()));
        assert_eq!(file(""), Target::Nothing);
    }

    #[test]
    fn a_loggers_arguments_are_the_pairs_of_the_query() {
        let program = |name| match target("stdout", name).unwrap() {
            Target::Logger(program) => program,
            other => panic!("{other:?}"),
        };
        let plain = program("binary:///usr/bin/log%20ger");
        assert_eq!(
            (plain.path, plain.arguments.len()),
            (PathBuf::from("/usr/bin/log ger"), 0)
        );
        let asked = program("binary-v2:///l?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib&x=a+b&flag&x=again");
        assert_eq!(
            asked.arguments,
            ["_NERDCTL_INTERNAL_LOGGING", "/var/lib", "x", "a b", "flag", ""]
        );
        assert!(asked.must_report && !plain.must_report);
        let told = program("binary:///l?env.A=b&env.CONTAINER_ID=x&env.CONTAINER_NAMESPACE=y&c=d");
        assert_eq!(told.environment, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(told.arguments, ["c", "d"]);
    }

    #[test]
    fn what_is_no_target_is_named() {
        for (name, word) in [
            ("http://x/y", "http"),
            ("file://", "file://"),
            ("binary://host/l", "absolute"),
            ("binary:///", "absolute"),
        ] {
            let error = target("stderr", name).unwrap_err().to_string();
            assert!(error.contains("stderr") && error.contains(word), "{error}");
        }
    }
}
