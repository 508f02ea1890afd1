//! From a handler's TOML to options, or to a message that names the key, the value and the mend.

use crate::kind::{Kind, Value, ValueError};
use crate::table::{Entry, Options, TABLE};

/// Why options are refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("the runtime options are not TOML: {0}")]
    Syntax(String),
    #[error("unknown option {key:?}; {}", known(nearest))]
    Unknown { key: String, nearest: Vec<&'static str> },
    #[error("option {key}: {cause}")]
    Value { key: &'static str, cause: ValueError },
}

fn known(nearest: &[&'static str]) -> String {
    if nearest.is_empty() {
        format!(
            "known are {}",
            TABLE.iter().map(|entry| entry.key).collect::<Vec<_>>().join(", ")
        )
    } else {
        format!("did you mean {}?", nearest.join(" or "))
    }
}

/// Reads the options of a handler from its TOML; a key that is missing has its default.
pub fn parse(toml: &str) -> Result<Options, OptionsError> {
    let table: toml::Table = toml
        .parse()
        .map_err(|error: toml::de::Error| OptionsError::Syntax(error.to_string().trim_end().to_owned()))?;
    let mut options = Options::default();
    for (key, value) in &table {
        // containerd's own key beside ours: it says what the body is (runtimeoptions.v1.Options.type_url).
        if key == "TypeUrl" {
            continue;
        }
        let entry = TABLE
            .iter()
            .find(|entry| entry.key == key)
            .ok_or_else(|| OptionsError::Unknown {
                key: key.clone(),
                nearest: nearest(key, |_| true),
            })?;
        let value = checked(entry.kind, value).map_err(|cause| OptionsError::Value { key: entry.key, cause })?;
        (entry.set)(&mut options, value);
    }
    Ok(options)
}

fn checked(kind: Kind, value: &toml::Value) -> Result<Value, ValueError> {
    match value {
        toml::Value::String(written) => kind.read(written),
        toml::Value::Integer(number) => match kind {
            Kind::Bytes { .. } | Kind::Seconds { .. } | Kind::Count { .. } => kind.read(&number.to_string()),
            Kind::Word(_) | Kind::Text | Kind::Path | Kind::Switch | Kind::Instance { .. } => {
                Err(kind.wrong(number.to_string()))
            }
        },
        toml::Value::Boolean(on) if kind == Kind::Switch => Ok(Value::Switch(*on)),
        other => Err(kind.wrong(other.to_string())),
    }
}

/// The keys, of those that `may` be set here, that a mistyped one may have meant, best first.
pub(crate) fn nearest(key: &str, may: impl Fn(&Entry) -> bool) -> Vec<&'static str> {
    // Below this likeness a suggestion confuses more than it helps.
    const LIKE: f64 = 0.8;
    let mut near: Vec<(f64, &'static str)> = TABLE
        .iter()
        .filter(|entry| may(entry))
        .map(|entry| {
            (
                strsim::jaro_winkler(&key.to_lowercase().replace('-', "_"), entry.key),
                entry.key,
            )
        })
        .filter(|(likeness, _)| *likeness >= LIKE)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(2).map(|(_, key)| key).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Engine, Guest, Optimization, Scope, WorldChoice};

    fn refused(toml: &str) -> String {
        parse(toml).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_body_is_all_defaults() {
        assert_eq!(parse(""), Ok(Options::default()));
    }

    #[test]
    fn every_key_is_read() {
        let options = parse(
            "scope = 'pod'\nlog = 'debug,ttrpc=info'\ncache_dir = '/c'\ncache_size = '100Mi'\ncompile_timeout = 5\n\
             compile_memory = 134217728\nidle_timeout = 0\nlauncher_max_forks = '7'\n\
             launcher_max_age = 9\nworld = 'command'\nrunc_binary = 'crun'\nrunc_no_pivot_root = true\n\
             runc_no_new_keyring = 'true'\nmemory_limit = '1Mi'\n\
             optimization = 'none'\nstack_size = '1Mi'\nwasm_gc = false\nwasm_exceptions = false\nwasm_threads = false\n\
             wasm_tail_call = false\nwasm_memory64 = false\nwasm_wide_arithmetic = true\n",
        )
        .unwrap();
        assert_eq!(
            options,
            Options {
                scope: Scope::Pod,
                log: "debug,ttrpc=info".to_owned(),
                cache_dir: "/c".into(),
                cache_size: 100 << 20,
                compile_timeout: Duration::from_secs(5),
                compile_memory: 128 << 20,
                idle_timeout: Duration::ZERO,
                launcher_max_forks: 7,
                launcher_max_age: Duration::from_secs(9),
                runc_binary: "crun".to_owned(),
                runc_no_pivot_root: true,
                runc_no_new_keyring: true,
                engine: Engine {
                    optimization: Optimization::None,
                    stack_size: 1 << 20,
                    gc: false,
                    exceptions: false,
                    threads: false,
                    tail_call: false,
                    memory64: false,
                    wide_arithmetic: true,
                },
                guest: Guest {
                    memory_limit: 1 << 20,
                    stack_size: 1 << 20,
                    world: WorldChoice::Command,
                    ..Guest::default()
                },
            }
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_ones() {
        assert_eq!(
            refused("cache-dirr = '/x'"),
            "unknown option \"cache-dirr\"; did you mean cache_dir or cache_size?"
        );
        assert_eq!(
            refused("idle_timout = 1"),
            "unknown option \"idle_timout\"; did you mean idle_timeout?"
        );
    }

    #[test]
    fn a_key_like_no_other_is_refused_with_all_known_ones() {
        let message = refused("SystemdCgroup = true");
        assert!(
            message.starts_with("unknown option \"SystemdCgroup\"; known are scope, log, cache_dir"),
            "{message}"
        );
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_key_value_and_range() {
        assert_eq!(
            refused("cache_size = '1Mi'"),
            "option cache_size: 1Mi is out of range, it must be 64Mi to 1024Gi"
        );
        assert_eq!(
            refused("idle_timeout = -1"),
            "option idle_timeout: -1 is out of range, it must be 0 to 86400"
        );
        assert_eq!(
            refused("compile_timeout = 9223372036854775807"),
            "option compile_timeout: 9223372036854775807 is out of range, it must be 1 to 86400"
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_with_what_is_wanted() {
        assert_eq!(
            refused("scope = 'cluster'"),
            "option scope: \"cluster\" is not one of node, namespace, pod"
        );
        assert_eq!(
            refused("cache_dir = 'cache'"),
            "option cache_dir: \"cache\" is not an absolute path in quotes"
        );
        assert_eq!(
            refused("idle_timeout = true"),
            "option idle_timeout: true is not a whole number of seconds"
        );
        assert_eq!(
            refused("runc_no_pivot_root = 1"),
            "option runc_no_pivot_root: 1 is not true or false"
        );
        assert!(refused("cache_size = '2GB'").contains("is not a number of bytes"));
        assert!(refused("log = 3").contains("option log: 3 is not text in quotes"));
    }

    #[test]
    fn what_is_not_toml_is_refused_as_such() {
        assert!(refused("scope = ").starts_with("the runtime options are not TOML: "));
    }

    #[test]
    fn containerds_own_type_url_beside_our_keys_is_accepted() {
        assert_eq!(parse("TypeUrl = 'x'\nscope = 'node'"), Ok(Options::default()));
    }
}
