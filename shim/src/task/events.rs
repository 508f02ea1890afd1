//! What containerd is told of a container, as its own event types (pure).

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics;

use super::phase::Owed;
use crate::image::Mount;
use crate::stdio::streams::Streams;

/// What the events of a container say of it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub namespace: String,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Vec<Mount>,
    pub streams: Streams,
}

/// The envelope of an event that happened at `at`.
pub fn envelope(facts: &Facts, pid: u32, owed: &Owed, at: SystemTime) -> Envelope {
    let container_id = facts.id.clone();
    let (topic, event) = match owed {
        Owed::Create => {
            let io = TaskIO {
                stdin: facts.streams.stdin.clone(),
                stdout: facts.streams.stdout.clone(),
                stderr: facts.streams.stderr.clone(),
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
        Owed::Start => {
            let start = TaskStart {
                container_id,
                pid,
                ..TaskStart::default()
            };
            (topics::TASK_START_EVENT_TOPIC, any("TaskStart", &start))
        }
        Owed::Paused => {
            let paused = TaskPaused {
                container_id,
                ..TaskPaused::default()
            };
            (topics::TASK_PAUSED_EVENT_TOPIC, any("TaskPaused", &paused))
        }
        Owed::Resumed => {
            let resumed = TaskResumed {
                container_id,
                ..TaskResumed::default()
            };
            (topics::TASK_RESUMED_EVENT_TOPIC, any("TaskResumed", &resumed))
        }
        Owed::OutOfMemory => {
            let oom = TaskOOM {
                container_id,
                ..TaskOOM::default()
            };
            (topics::TASK_OOM_EVENT_TOPIC, any("TaskOOM", &oom))
        }
        Owed::Exit(exit) => {
            let exit = TaskExit {
                // The id of a container's first process is the container's.
                id: container_id.clone(),
                container_id,
                pid,
                exit_status: exit.code,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..TaskExit::default()
            };
            (topics::TASK_EXIT_EVENT_TOPIC, any("TaskExit", &exit))
        }
        Owed::Delete(exit) => {
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
    Envelope {
        timestamp: MessageField::some(timestamp(at)),
        namespace: facts.namespace.clone(),
        topic: topic.to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    }
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
    use crate::sandbox::process::Exit;

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
        let envelope = envelope(&facts(), 9, &owed, at);
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
            let envelope = envelope(&facts(), 1, &owed, UNIX_EPOCH);
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
}
