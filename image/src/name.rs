//! What an image is called: as it was asked for, and in full.

use std::str::FromStr;

/// The name of an image, with a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it was given; its tag is `latest` where it had none.
    pub short: String,
    /// With the registry that Docker and containerd assume where none is given.
    pub full: String,
}

impl FromStr for Name {
    type Err = String;

    /// Reads `[REGISTRY/]REPOSITORY[:TAG]` (distribution's reference grammar, without digests).
    fn from_str(text: &str) -> Result<Name, String> {
        let refuse = |why: &str| Err(format!("{why}: must be like registry.example/team/hello:1.0"));
        if text.contains('@') {
            return refuse("a digest cannot be chosen");
        }
        let last = text.rsplit('/').next().unwrap_or(text);
        let (repository, tag) = match last.rsplit_once(':') {
            Some((_, tag)) => (&text[..text.len() - tag.len() - 1], tag),
            None => (text, "latest"),
        };
        let in_tag = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if tag.is_empty() || tag.len() > 128 || !tag.chars().all(in_tag) {
            return refuse("invalid tag");
        }
        let (registry, path) = match repository.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (Some(first), rest),
            _ => (None, repository),
        };
        let in_path = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let is_component = |part: &str| !part.is_empty() && part.chars().all(in_path);
        if !path.split('/').all(is_component) {
            return refuse("the repository must be of lower case letters, digits and . _ -");
        }
        let full = match registry.filter(|registry| !["docker.io", "index.docker.io"].contains(registry)) {
            Some(_) => format!("{repository}:{tag}"),
            None if path.contains('/') => format!("docker.io/{path}:{tag}"),
            None => format!("docker.io/library/{path}:{tag}"),
        };
        Ok(Name {
            short: format!("{repository}:{tag}"),
            full,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_completed_as_docker_and_containerd_complete_it() {
        for (given, short, full) in [
            ("hello", "hello:latest", "docker.io/library/hello:latest"),
            ("me/hello:1", "me/hello:1", "docker.io/me/hello:1"),
            ("docker.io/hello:1", "docker.io/hello:1", "docker.io/library/hello:1"),
            (
                "index.docker.io/me/hello:1",
                "index.docker.io/me/hello:1",
                "docker.io/me/hello:1",
            ),
            ("localhost/hello", "localhost/hello:latest", "localhost/hello:latest"),
            (
                "127.0.0.1:5000/a/b:V1",
                "127.0.0.1:5000/a/b:V1",
                "127.0.0.1:5000/a/b:V1",
            ),
        ] {
            let name: Name = given.parse().unwrap();
            assert_eq!((name.short.as_str(), name.full.as_str()), (short, full));
        }
    }

    #[test]
    fn what_is_no_name_of_an_image_is_refused() {
        for given in [
            "",
            "Hello",
            "a//b",
            "hello:",
            "hello:a b",
            "registry.example/",
            "hello@sha256:00",
        ] {
            assert!(given.parse::<Name>().is_err(), "{given:?}");
        }
    }
}
