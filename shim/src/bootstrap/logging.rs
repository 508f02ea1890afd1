//! From tracing's events to lines in the containers' log fifos.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::logfmt::{self, Fields};
use super::sinks::{Key, Sinks};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("the log filter {filter:?} is not in the syntax of RUST_LOG: {cause}")]
    Filter {
        filter: String,
        cause: tracing_subscriber::filter::ParseError,
    },
    #[error("logging is set up twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The filter that is used, and the environment's when that is not used since it is invalid.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    filter: String,
    invalid: Option<String>,
}

/// Which filter counts: the environment's, else the handler's own, else containerd's level. The environment is meant for
/// containerd and all that it starts, so a filter that is invalid there stops nothing (pure).
pub fn choose(environment: Option<&OsStr>, option: &str, debug: bool) -> Choice {
    let default = kubewasi_options::Options::default().log;
    let environment = environment.filter(|filter| !filter.is_empty());
    let valid = environment
        .and_then(OsStr::to_str)
        .filter(|filter| EnvFilter::try_new(filter).is_ok());
    let invalid = environment.filter(|_| valid.is_none());
    let filter = match valid {
        Some(filter) => filter.to_owned(),
        None if option != default => option.to_owned(),
        None if debug => "debug".to_owned(),
        None => default,
    };
    Choice {
        filter,
        invalid: invalid.map(|filter| filter.to_string_lossy().into_owned()),
    }
}

/// Sends the events that the chosen filter lets through to `sinks`, and panics with them.
///
/// # Errors
///
/// When the handler's own filter is invalid.
pub fn set_up(sinks: Arc<Sinks>, choice: &Choice) -> Result<(), LoggingError> {
    let filter = &choice.filter;
    let malformed = |cause| LoggingError::Filter {
        filter: filter.clone(),
        cause,
    };
    // libcgroups warns at every container of each controller that the kernel does not have.
    let quiet = "libcgroups=error".parse().map_err(malformed)?;
    let filter = EnvFilter::try_new(filter).map_err(malformed)?.add_directive(quiet);
    tracing_subscriber::registry()
        .with(filter)
        .with(ToSinks { sinks })
        .try_init()?;
    if let Some(invalid) = &choice.invalid {
        tracing::warn!(
            invalid,
            used = choice.filter,
            "the environment's RUST_LOG is not a valid filter"
        );
    }
    // stderr is /dev/null: without this nobody would hear of a panic.
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(at, "panic: {}", panic.payload_as_str().unwrap_or("of an unknown kind"));
    }));
    Ok(())
}

/// The layer that formats events; spans lend their fields to the events inside them.
struct ToSinks {
    sinks: Arc<Sinks>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ToSinks {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut all = Fields::default();
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(fields) = span.extensions().get::<Fields>() {
                all.pairs.extend(fields.pairs.iter().cloned());
            }
        }
        event.record(&mut all);
        let line = logfmt::line(SystemTime::now(), *event.metadata().level(), &all.message, &all.pairs);
        self.sinks.write(key(&all).as_ref(), &line);
    }
}

fn key(fields: &Fields) -> Option<Key> {
    Some((fields.get("namespace")?.to_owned(), fields.get("id")?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environments_filter_wins_then_the_handlers_then_containerds() {
        let filter = |environment: Option<&str>, option, debug| {
            let choice = choose(environment.map(OsStr::new), option, debug);
            assert_eq!(choice.invalid, None);
            choice.filter
        };
        assert_eq!(filter(Some("trace"), "warn", true), "trace");
        assert_eq!(filter(Some(""), "warn", true), "warn");
        assert_eq!(filter(None, "info", true), "debug");
        assert_eq!(filter(None, "info", false), "info");
    }

    #[test]
    fn an_invalid_filter_of_the_environment_is_as_if_there_were_none() {
        for invalid in ["not,a=valid[filter", "a=b=c"] {
            let choice = choose(Some(OsStr::new(invalid)), "warn", false);
            let expected = Choice {
                filter: "warn".to_owned(),
                invalid: Some(invalid.to_owned()),
            };
            assert_eq!(choice, expected);
        }
        let bytes = std::os::unix::ffi::OsStrExt::from_bytes(b"info,\xff");
        assert_eq!(choose(Some(bytes), "info", true).filter, "debug");
    }

    #[test]
    fn a_malformed_filter_is_named() {
        let message = set_up(Arc::default(), &choose(None, "a=b=c", false))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("the log filter \"a=b=c\" is not in the syntax of RUST_LOG"),
            "{message}"
        );
    }
}
