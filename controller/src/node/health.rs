//! What a running CRI plugin says of itself, and whether containerd is as well after a change as it was before.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// What CRI's `Version` and verbose `Status` tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `containerd`, or another runtime's name.
    pub runtime_name: String,
    /// The release as it names itself, like `v2.4.2`.
    pub release: String,
    pub runtime_ready: bool,
    pub network_ready: bool,
    pub default_runtime: String,
    /// The handlers, each with its entry of the running configuration: camel-case JSON.
    pub handlers: BTreeMap<String, Json>,
}

/// What is missing in an answer to `Status`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("CRI's Status has no {0}: is this containerd?")]
    Missing(&'static str),
    #[error("the configuration in CRI's Status does not parse: {0}")]
    Unparsable(String),
}

/// How containerd is worse than it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unhealthy {
    #[error("CRI says that the runtime is not ready")]
    RuntimeNotReady,
    #[error("CRI says that the network is not ready, which it was before")]
    NetworkLost,
    #[error("the handler {0:?} is gone, which was there before")]
    HandlerLost(String),
    #[error("the default runtime is {now:?}, and was {before:?}")]
    DefaultChanged { before: String, now: String },
    #[error("the running containerd does not list the handler {0:?}")]
    NotListed(String),
    #[error("the running containerd still lists the handler {0:?}")]
    StillListed(String),
}

impl Unhealthy {
    /// Whether waiting does not help: containerd reads its configuration once, when it starts.
    pub fn is_lasting(&self) -> bool {
        match self {
            Unhealthy::RuntimeNotReady | Unhealthy::NetworkLost => false,
            Unhealthy::HandlerLost(_)
            | Unhealthy::DefaultChanged { .. }
            | Unhealthy::NotListed(_)
            | Unhealthy::StillListed(_) => true,
        }
    }
}

impl Health {
    /// Reads the `config` of a verbose Status.
    pub fn read_config(&mut self, config: &str) -> Result<(), AnswerError> {
        let config: Json = serde_json::from_str(config).map_err(|error| AnswerError::Unparsable(error.to_string()))?;
        let containerd = &config["containerd"];
        let default = containerd["defaultRuntimeName"].as_str();
        self.default_runtime = default.ok_or(AnswerError::Missing("default runtime"))?.to_owned();
        let runtimes = containerd["runtimes"].as_object();
        self.handlers = runtimes
            .ok_or(AnswerError::Missing("map of runtimes"))?
            .iter()
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect();
        Ok(())
    }

    /// Whether `handler` is listed, and its shim is the one at `path`.
    pub fn leads_to(&self, handler: &str, path: &Path) -> bool {
        let entry = self.handlers.get(handler);
        entry.is_some_and(|entry| entry["runtimePath"].as_str() == path.to_str())
    }

    /// The entry of the default runtime, with its name.
    pub fn default_entry(&self) -> (String, Json) {
        let entry = self.handlers.get(&self.default_runtime);
        (self.default_runtime.clone(), entry.cloned().unwrap_or(Json::Null))
    }

    /// Whether ordinary pods get systemd's scopes as cgroups.
    pub fn systemd_cgroups(&self) -> bool {
        let (_, entry) = self.default_entry();
        entry["options"]["SystemdCgroup"].as_bool() == Some(true)
    }
}

/// Compares: everything that worked `before` works, and `handler` is listed or not, as `listed` says.
pub fn compare(before: &Health, now: &Health, handler: &str, listed: bool) -> Result<(), Unhealthy> {
    if before.runtime_ready && !now.runtime_ready {
        return Err(Unhealthy::RuntimeNotReady);
    }
    if before.network_ready && !now.network_ready {
        return Err(Unhealthy::NetworkLost);
    }
    let lost = before
        .handlers
        .keys()
        .find(|name| *name != handler && !now.handlers.contains_key(*name));
    if let Some(name) = lost {
        return Err(Unhealthy::HandlerLost(name.clone()));
    }
    if before.default_runtime != now.default_runtime {
        return Err(Unhealthy::DefaultChanged {
            before: before.default_runtime.clone(),
            now: now.default_runtime.clone(),
        });
    }
    match (now.handlers.contains_key(handler), listed) {
        (false, true) => Err(Unhealthy::NotListed(handler.to_owned())),
        (true, false) => Err(Unhealthy::StillListed(handler.to_owned())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn health(handlers: &[&str]) -> Health {
        let mut health = Health {
            runtime_name: "containerd".into(),
            release: "v2.4.2".into(),
            runtime_ready: true,
            network_ready: true,
            default_runtime: String::new(),
            handlers: BTreeMap::new(),
        };
        let runtimes: serde_json::Map<_, _> = handlers
            .iter()
            .map(|name| ((*name).to_owned(), json!({"options": {"SystemdCgroup": true}})))
            .collect();
        let config = json!({"containerd": {"defaultRuntimeName": "runc", "runtimes": runtimes}});
        health.read_config(&config.to_string()).unwrap();
        health
    }

    #[test]
    fn a_handler_more_or_less_is_healthy_when_it_is_ours() {
        let (without, with) = (health(&["runc"]), health(&["runc", "wasi"]));
        assert_eq!(compare(&without, &with, "wasi", true), Ok(()));
        assert_eq!(compare(&with, &without, "wasi", false), Ok(()));
        assert_eq!(
            compare(&without, &without, "wasi", true),
            Err(Unhealthy::NotListed("wasi".into()))
        );
        assert_eq!(
            compare(&with, &with, "wasi", false),
            Err(Unhealthy::StillListed("wasi".into()))
        );
        assert!(with.systemd_cgroups());
    }

    #[test]
    fn whatever_worked_before_has_to_work() {
        let before = health(&["runc", "kata"]);
        let worse = |change: fn(&mut Health)| {
            let mut now = health(&["runc", "kata", "wasi"]);
            change(&mut now);
            compare(&before, &now, "wasi", true).unwrap_err()
        };
        assert_eq!(worse(|now| now.runtime_ready = false), Unhealthy::RuntimeNotReady);
        assert_eq!(worse(|now| now.network_ready = false), Unhealthy::NetworkLost);
        let lost = worse(|now| drop(now.handlers.remove("runc")));
        assert_eq!(lost, Unhealthy::HandlerLost("runc".into()));
        assert!(matches!(
            worse(|now| now.default_runtime = "kata".into()),
            Unhealthy::DefaultChanged { .. }
        ));
    }

    #[test]
    fn a_network_that_was_not_ready_need_not_be() {
        let (mut before, mut now) = (health(&["runc"]), health(&["runc", "wasi"]));
        before.network_ready = false;
        now.network_ready = false;
        assert_eq!(compare(&before, &now, "wasi", true), Ok(()));
    }

    #[test]
    fn an_answer_of_another_form_is_an_error() {
        let mut health = health(&["runc"]);
        assert_eq!(health.read_config("{}"), Err(AnswerError::Missing("default runtime")));
        assert!(matches!(health.read_config("no"), Err(AnswerError::Unparsable(_))));
    }
}
