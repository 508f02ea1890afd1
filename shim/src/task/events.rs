//! What containerd is told of a container, as its own event types (pure).

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics;

use super::error::TaskError;
use super::phase::Owed;
use crate::image::Mount;
use crate::stdio::Streams;

/// What the events of a process say of it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// The process's own id, unless it is the container's first one.
    pub exec_id: Option<String>,
    pub bundle: PathBuf,
    pub rootfs: Vec<Mount>,
    pub streams: Streams,
    /// Its streams are one terminal.
    pub terminal: bool,
}

impl Facts {
    /// The process as messages name it: by its container's id, and its own if it has one.
    pub fn name(&self) -> String {
        match &self.exec_id {
            None => self.id.clone(),
            Some(exec_id) => format!("{}, process {exec_id}", self.id),
        }
    }

    /// That containerd asks for what is not there.
    pub fn unknown(&self) -> TaskError {
        match &self.exec_id {
            None => TaskError::NoContainer {
                namespace: self.namespace.clone(),
                id: self.id.clone(),
            },
            Some(exec_id) => TaskError::NoProcess {
                id: self.id.clone(),
                exec_id: exec_id.clone(),
            },
        }
    }
}

/// The envelope of an event that happened at `at`; nothing where containerd expects none.
pub fn envelope(facts: &Facts, pid: u32, owed: &Owed, at: SystemTime) -> Option<Envelope> {
    let container_id = facts.id.clone();
    let (topic, event) = match (owed, &facts.exec_id) {
        (Owed::Create, Some(exec_id)) => {
            let added = TaskExecAdded {
                container_id,
                exec_id: exec_id.clone(),
                ..TaskExecAdded::default()
            };
            (topics::TASK_EXEC_ADDED_EVENT_TOPIC, any("TaskExecAdded", &added))
        }
        (Owed::Start, Some(exec_id)) => {
            let started = TaskExecStarted {
                container_id,
                exec_id: exec_id.clone(),
                pid,
                ..TaskExecStarted::default()
            };
            (topics::TASK_EXEC_STARTED_EVENT_TOPIC, any("TaskExecStarted", &started))
        }
        // Its end is all that is told, as the shim of runc has it.
        (Owed::Delete(_), Some(_)) => return None,
        (Owed::Create, _) => {
            let io = TaskIO {
                stdin: facts.streams.stdin.clone(),
                stdout: facts.streams.stdout.clone(),
                stderr: facts.streams.stderr.clone(),
                terminal: facts.terminal,
                ..TaskIO::default()
            };
            let create = TaskCreate {
                container_id,
                bundle: facts.bundle.display().to_string(),
                rootfs: facts.rootfs.iter().map(mount).collect(),
                io: MessageField::some(io),
                pid,
                ..TaskCreate::default()
            };
            (topics::TASK_CREATE_EVENT_TOPIC, any("TaskCreate", &create))
        }
        (Owed::Start, _) => {
            let start = TaskStart {
                container_id,
                pid,
                ..TaskStart::default()
            };
            (topics::TASK_START_EVENT_TOPIC, any("TaskStart", &start))
        }
        (Owed::Paused, _) => {
            let paused = TaskPaused {
                container_id,
                ..TaskPaused::default()
            };
            (topics::TASK_PAUSED_EVENT_TOPIC, any("TaskPaused", &paused))
        }
        (Owed::Resumed, _) => {
            let resumed = TaskResumed {
                container_id,
                ..TaskResumed::default()
            };
            (topics::TASK_RESUMED_EVENT_TOPIC, any("TaskResumed", &resumed))
        }
        (Owed::OutOfMemory, _) => {
            let oom = TaskOOM {
                container_id,
                ..TaskOOM::default()
            };
            (topics::TASK_OOM_EVENT_TOPIC, any("TaskOOM", &oom))
        }
        (Owed::Exit(exit), _) => {
            let exit = TaskExit {
                // The id of a container's first process is the container's.
                id: facts.exec_id.clone().unwrap_or_else(|| container_id.clone()),
                container_id,
                pid,
                exit_status: exit.code,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..TaskExit::default()
            };
            (topics::TASK_EXIT_EVENT_TOPIC, any("TaskExit", &exit))
        }
        (Owed::Delete(exit), None) => {
            let delete = TaskDelete {
                container_id,
                pid,
                exit_status: exit.code,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..TaskDelete::default()
            };
            (topics::TASK_DELETE_EVENT_TOPIC, any("TaskDelete", &delete))
        }
    };
    Some(Envelope {
        timestamp: MessageField::some(timestamp(at)),
        namespace: facts.namespace.clone(),
        topic: topic.to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    })
}

fn any(name: &str, event: &dyn MessageDyn) -> Any {
    Any {
        type_url: format!("containerd.events.{name}"),
        // Writing a message without required fields into memory cannot fail.
        value: event.write_to_bytes_dyn().unwrap_or_default(),
        ..Any::default()
    }
}

fn mount(mount: &Mount) -> api::Mount {
    api::Mount {
        type_: mount.kind.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
        ..api::Mount::default()
    }
}

/// A time as protobuf has it; the epoch for a clock before it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Timestamp::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use containerd_shim_protos::protobuf::Message;

    use super::*;
    use crate::sys::child::Exit;

    fn facts() -> Facts {
        Facts {
            namespace: "k8s.io".into(),
            id: "c1".into(),
            bundle: "/b".into(),
            ..Facts::default()
        }
    }

    #[test]
    fn an_exit_names_the_container_as_its_first_process() {
        let at = UNIX_EPOCH + Duration::new(5, 6);
        let owed = Owed::Exit(Exit {
            code: 134,
            at,
            message: None,
        });
        let envelope = envelope(&facts(), 9, &owed, at).unwrap();
        assert_eq!(
            (envelope.topic.as_str(), envelope.namespace.as_str()),
            ("/tasks/exit", "k8s.io")
        );
        assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
        let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!((exit.id.as_str(), exit.container_id.as_str()), ("c1", "c1"));
        assert_eq!(
            (exit.pid, exit.exit_status, exit.exited_at.seconds, exit.exited_at.nanos),
            (9, 134, 5, 6)
        );
    }

    #[test]
    fn each_event_has_containerds_topic_and_type() {
        let exit = || Exit {
            code: 0,
            at: UNIX_EPOCH,
            message: None,
        };
        let named = |owed| {
            let envelope = envelope(&facts(), 1, &owed, UNIX_EPOCH).unwrap();
            (envelope.topic.clone(), envelope.event.type_url.clone())
        };
        let pair = |topic: &str, kind: &str| (topic.to_owned(), format!("containerd.events.{kind}"));
        assert_eq!(named(Owed::Create), pair("/tasks/create", "TaskCreate"));
        assert_eq!(named(Owed::Start), pair("/tasks/start", "TaskStart"));
        assert_eq!(named(Owed::Paused), pair("/tasks/paused", "TaskPaused"));
        assert_eq!(named(Owed::Resumed), pair("/tasks/resumed", "TaskResumed"));
        assert_eq!(named(Owed::OutOfMemory), pair("/tasks/oom", "TaskOOM"));
        assert_eq!(named(Owed::Delete(exit())), pair("/tasks/delete", "TaskDelete"));
    }

    #[test]
    fn the_events_of_an_exec_name_it_and_its_delete_is_not_told() {
        let facts = Facts {
            exec_id: Some("e1".into()),
            ..facts()
        };
        let topic = |owed| envelope(&facts, 1, &owed, UNIX_EPOCH).map(|envelope| envelope.topic);
        let exit = Exit {
            code: 3,
            at: UNIX_EPOCH,
            message: None,
        };
        assert_eq!(topic(Owed::Create).as_deref(), Some("/tasks/exec-added"));
        assert_eq!(topic(Owed::Start).as_deref(), Some("/tasks/exec-started"));
        assert_eq!(topic(Owed::Delete(exit.clone())), None);
        let ended = envelope(&facts, 9, &Owed::Exit(exit), UNIX_EPOCH).unwrap();
        let ended = TaskExit::parse_from_bytes(&ended.event.value).unwrap();
        assert_eq!((ended.id.as_str(), ended.container_id.as_str()), ("e1", "c1"));
    }
}
