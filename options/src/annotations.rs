//! From a pod's annotations to what its guests run with: they narrow the handler's options, container by container.
//!
//! `kubewasi.dev/request-timeout` sets the key `request_timeout`, and `kubewasi.dev/config.NAME` the value that a guest
//! reads as NAME by wasi:config. CRI puts the annotations of pod and container into one map, where the container's win.

use crate::kind::ValueError;
use crate::table::{Entry, Guest, Options, Place, TABLE};

/// What our annotations begin with.
pub const PREFIX: &str = "kubewasi.dev/";

/// What is before the name of a value of wasi:config.
const CONFIG: &str = "config.";

/// Why an annotation is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    #[error("unknown annotation {PREFIX}{name}; {}", known(nearest))]
    Unknown { name: String, nearest: Vec<&'static str> },
    #[error("annotation {PREFIX}{name}={value}: only the handler's options may set {key}, on the node")]
    Handler {
        name: String,
        value: String,
        key: &'static str,
    },
    #[error("annotation {PREFIX}{name}: {cause}")]
    Value { name: String, cause: ValueError },
    #[error("annotation {PREFIX}{CONFIG} has no name, it must be {PREFIX}{CONFIG}NAME")]
    Nameless,
}

fn known(nearest: &[&'static str]) -> String {
    let shown = |keys: &mut dyn Iterator<Item = &'static str>, separator| {
        keys.map(|key| format!("{PREFIX}{}", name(key)))
            .collect::<Vec<_>>()
            .join(separator)
    };
    if nearest.is_empty() {
        let mut keys = TABLE
            .iter()
            .filter(|entry| entry.place == Place::Pod)
            .map(|entry| entry.key);
        format!("known are {}, {PREFIX}{CONFIG}NAME", shown(&mut keys, ", "))
    } else {
        format!("did you mean {}?", shown(&mut nearest.iter().copied(), " or "))
    }
}

/// The annotation of `key`, without the prefix: Kubernetes writes dashes.
pub(crate) fn name(key: &str) -> String {
    key.replace('_', "-")
}

/// What a guest runs with: what the handler's options say, changed by those of `annotations` that are ours.
///
/// # Errors
///
/// Names the annotation that is unknown, the handler's alone, or out of range, with its value.
pub fn annotated<'a>(
    options: &Options,
    annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Guest, AnnotationError> {
    let mut options = options.clone();
    for (written, value) in annotations {
        let Some(written) = written.strip_prefix(PREFIX) else {
            continue;
        };
        match written.strip_prefix(CONFIG) {
            Some("") => return Err(AnnotationError::Nameless),
            Some(name) => {
                options.guest.config.insert(name.to_owned(), value.to_owned());
            }
            None => set(&mut options, entry(written)?, value)?,
        }
    }
    Ok(options.guest)
}

fn entry(written: &str) -> Result<&'static Entry, AnnotationError> {
    TABLE
        .iter()
        .find(|entry| name(entry.key) == written)
        .ok_or_else(|| AnnotationError::Unknown {
            name: written.to_owned(),
            nearest: crate::parse::nearest(written, |entry| entry.place == Place::Pod),
        })
}

fn set(options: &mut Options, entry: &Entry, value: &str) -> Result<(), AnnotationError> {
    let name = name(entry.key);
    match entry.place {
        Place::Handler => Err(AnnotationError::Handler {
            name,
            value: value.to_owned(),
            key: entry.key,
        }),
        Place::Pod => {
            let value = entry.kind.read(value);
            (entry.set)(options, value.map_err(|cause| AnnotationError::Value { name, cause })?);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Guest, String> {
        annotated(&Options::default(), annotations.iter().copied()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_annotation_beats_the_handlers_option_and_the_rest_stays() {
        let options = crate::parse("memory_limit = '64Mi'").unwrap();
        let guest = annotated(&options, [("kubewasi.dev/memory-limit", "32Mi")]).unwrap();
        assert_eq!(guest.memory_limit, 32 << 20);
        assert_eq!(annotated(&options, []).unwrap().memory_limit, 64 << 20);
    }

    #[test]
    fn annotations_of_others_are_none_of_our_business() {
        let others = [("io.kubernetes.cri.sandbox-id", "x"), ("kubewasi.development/a", "b")];
        assert_eq!(of(&others).unwrap(), Options::default().guest);
    }

    #[test]
    fn values_of_wasi_config_keep_their_names() {
        let guest = of(&[
            ("kubewasi.dev/config.Greeting.de_DE", "Hallo"),
            ("kubewasi.dev/config.b", ""),
        ])
        .unwrap();
        let values: Vec<_> = guest
            .config
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(values, [("Greeting.de_DE", "Hallo"), ("b", "")]);
        assert!(
            of(&[("kubewasi.dev/config.", "x")])
                .unwrap_err()
                .contains("kubewasi.dev/config.NAME")
        );
    }

    #[test]
    fn what_is_unknown_the_handlers_or_out_of_range_is_refused_by_name_and_value() {
        assert_eq!(
            of(&[("kubewasi.dev/memory_limit", "1Gi")]).unwrap_err(),
            "unknown annotation kubewasi.dev/memory_limit; did you mean kubewasi.dev/memory-limit?"
        );
        let unlike = of(&[("kubewasi.dev/zzz", "1")]).unwrap_err();
        assert!(
            unlike.starts_with("unknown annotation kubewasi.dev/zzz; known are kubewasi.dev/"),
            "{unlike}"
        );
        assert!(!unlike.contains("cache-dir"), "{unlike}");
        assert_eq!(
            of(&[("kubewasi.dev/cache-dir", "/etc")]).unwrap_err(),
            "annotation kubewasi.dev/cache-dir=/etc: only the handler's options may set cache_dir, on the node"
        );
        assert_eq!(
            of(&[("kubewasi.dev/memory-limit", "1")]).unwrap_err(),
            "annotation kubewasi.dev/memory-limit: 1 is out of range, it must be 64Ki to 1024Gi"
        );
        assert!(
            of(&[("kubewasi.dev/memory-limit", "much")])
                .unwrap_err()
                .contains("is not a number of bytes")
        );
    }

    #[test]
    fn what_a_pod_may_set_is_the_guests_alone() {
        for entry in TABLE.iter().filter(|entry| entry.place == Place::Pod) {
            let mut options = Options {
                guest: Guest::default(),
                ..Options::default()
            };
            (entry.set)(
                &mut options,
                entry.kind.read(entry.default).unwrap_or_else(|error| panic!("{error}")),
            );
            options.guest = Options::default().guest;
            assert_eq!(options, Options::default(), "{}", entry.key);
        }
    }
}
