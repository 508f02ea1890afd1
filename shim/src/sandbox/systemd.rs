//! What is asked of systemd, over D-Bus (org.freedesktop.systemd1(5)): a scope to live in, its limits, its end.
//!
//! Each call makes a connection of its own and blocks: there is no state to lose when the bus or systemd starts again.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, Variant, message};

use super::scope::{Property, Scope};
use crate::sys::cgroup::Version;

const SERVICE: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Errors of systemd's that are told apart (sd-bus's bus-common-errors.h).
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// The longest that starting a scope may take; a busy systemd is seconds behind.
const START: Duration = Duration::from_secs(30);
/// The longest that other calls may take: containerd gives `delete` five seconds for everything.
const CALL: Duration = Duration::from_secs(3);

/// Why systemd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("the connection to systemd over D-Bus could not be made")]
    Runtime(#[source] io::Error),
    #[error("D-Bus: {0}")]
    Bus(#[from] zbus::Error),
    #[error("the unit exists already, and is in use: is another container called so?")]
    Exists,
    #[error("systemd's job ended as {0:?}: see `journalctl -u` of the unit")]
    Job(String),
    #[error("systemd did not answer within {} seconds", .0.as_secs())]
    TimedOut(Duration),
}

/// Starts `scope` with the process `pid` in it and `limits` as its properties, and waits until it is there.
pub fn start(scope: &Scope, pid: u32, limits: &[Property], version: Version) -> Result<(), SystemdError> {
    let accounting = match version {
        Version::V1 => "BlockIOAccounting",
        Version::V2 => "IOAccounting",
    };
    let properties = || -> Vec<(&str, Variant<'_>)> {
        let mut properties = vec![
            ("Description", Variant::from("kubewasi container")),
            ("Slice", Variant::from(scope.slice.as_str())),
            ("PIDs", Variant::from(vec![pid])),
            // The controllers are ours to use, and systemd leaves the files of those that it does not know alone.
            ("Delegate", Variant::from(true)),
            // Also one that has failed is forgotten when it is empty: its name is free again.
            ("CollectMode", Variant::from("inactive-or-failed")),
            ("DefaultDependencies", Variant::from(false)),
        ];
        for name in ["MemoryAccounting", "CPUAccounting", "TasksAccounting", accounting] {
            properties.push((name, Variant::from(true)));
        }
        properties.extend(limits.iter().map(variant));
        properties
    };
    let none: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    on_bus(START, async |bus| {
        let jobs = jobs(bus).await?;
        // `fail`: a scope of this name that is about to stop is not ours to take over.
        let attempt = async || call(bus, "StartTransientUnit", &(&scope.unit, "fail", properties(), &none)).await;
        let job = match attempt().await {
            Err(error) if is(&error, UNIT_EXISTS) => {
                // What is left of one that failed; a live one stays, and is told of.
                let _ = call(bus, "ResetFailedUnit", &(&scope.unit,)).await;
                attempt().await
            }
            answer => answer,
        };
        match job {
            Ok(job) => finished(jobs, job).await,
            Err(error) if is(&error, UNIT_EXISTS) => Err(SystemdError::Exists),
            Err(error) => Err(error.into()),
        }
    })
}

/// Gives `scope` other limits, until the next boot.
pub fn change(scope: &Scope, limits: &[Property]) -> Result<(), SystemdError> {
    if limits.is_empty() {
        return Ok(());
    }
    let properties: Vec<(&str, Variant<'_>)> = limits.iter().map(variant).collect();
    on_bus(CALL, async |bus| {
        call(bus, "SetUnitProperties", &(&scope.unit, true, &properties)).await?;
        Ok(())
    })
}

/// Stops `scope` and forgets it; one that is gone is fine.
pub fn stop(scope: &Scope) -> Result<(), SystemdError> {
    on_bus(CALL, async |bus| {
        let jobs = jobs(bus).await?;
        match call(bus, "StopUnit", &(&scope.unit, "replace")).await {
            Ok(job) => finished(jobs, job).await?,
            Err(error) if is(&error, NO_SUCH_UNIT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        match call(bus, "ResetFailedUnit", &(&scope.unit,)).await {
            Err(error) if !is(&error, NO_SUCH_UNIT) => Err(error.into()),
            _ => Ok(()),
        }
    })
}

fn variant(property: &Property) -> (&'static str, Variant<'_>) {
    match property {
        Property::Number(name, value) => (name, Variant::from(*value)),
        Property::Set(name, bits) => (name, Variant::from(bits.clone())),
    }
}

fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(found, ..) if found.as_str() == name)
}

/// Runs `work` on a connection to the system bus, for `limit` at most.
fn on_bus<T>(
    limit: Duration,
    work: impl AsyncFnOnce(&Connection) -> Result<T, SystemdError>,
) -> Result<T, SystemdError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SystemdError::Runtime)?;
    let all = async {
        let bus = Connection::system().await?;
        work(&bus).await
    };
    runtime.block_on(within(limit, all))
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, SystemdError>>) -> Result<T, SystemdError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(SystemdError::TimedOut(limit)),
    }
}

async fn call<B>(bus: &Connection, method: &str, body: &B) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    bus.call_method(Some(SERVICE), OBJECT, Some(MANAGER), method, body)
        .await
}

/// Hears of the ends of jobs from now on.
async fn jobs(bus: &Connection) -> Result<MessageStream, SystemdError> {
    let rule = MatchRule::builder()
        .msg_type(message::Type::Signal)
        .sender(SERVICE)
        .interface(MANAGER)
        .member("JobRemoved")
        .build()?;
    let stream = MessageStream::for_match_rule(rule, bus, None).await?;
    // Without a subscriber systemd sends no signals.
    call(bus, "Subscribe", &()).await?;
    Ok(stream)
}

/// Waits for the end of the job that a call has answered with.
async fn finished(mut jobs: MessageStream, answer: zbus::Message) -> Result<(), SystemdError> {
    let job: OwnedObjectPath = answer.body().deserialize()?;
    while let Some(signal) = jobs.next().await {
        let signal = signal?;
        let body = signal.body();
        let (_, path, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize()?;
        if path == job {
            return match result.as_str() {
                "done" => Ok(()),
                _ => Err(SystemdError::Job(result)),
            };
        }
    }
    Err(SystemdError::Job("unheard: the bus closed the connection".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_have_the_types_that_systemd_wants() {
        let limits = [Property::Number("MemoryMax", 7), Property::Set("AllowedCPUs", vec![1])];
        let signatures = limits
            .iter()
            .map(|limit| variant(limit).1.value_signature().to_string());
        assert_eq!(signatures.collect::<Vec<_>>(), ["t", "ay"]);
    }
}
