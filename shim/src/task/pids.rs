//! The processes of a container, as containerd lists them: whatever is in it, execs by name.

use std::collections::HashMap;

use containerd_shim_protos::api::ProcessInfo;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::ProcessDetails;

use super::container::Container;
use super::error::TaskError;

/// All processes, the first one always among them, also when it has exited: an empty answer makes a restarted containerd
/// give the container up.
pub async fn list(container: &Container) -> Result<Vec<ProcessInfo>, TaskError> {
    let (body, first) = (container.body()?, container.pid());
    let others = match body.pids().await {
        Ok(pids) => pids,
        // Its cgroup or its runtime's state may be gone already.
        Err(_) if container.phase().over() => Vec::new(),
        Err(cause) => {
            return Err(TaskError::Io {
                id: container.facts().name(),
                act: "list its processes",
                cause,
            });
        }
    };
    let execs: HashMap<u32, String> = container
        .exec_processes()
        .into_iter()
        .filter(|exec| !exec.phase().over())
        .filter_map(|exec| Some((exec.pid(), exec.facts.exec_id.clone()?)))
        .collect();
    let others = others.into_iter().filter(|pid| *pid != first);
    Ok(std::iter::once(first)
        .chain(others)
        .map(|pid| info(pid, execs.get(&pid)))
        .collect())
}

fn info(pid: u32, exec_id: Option<&String>) -> ProcessInfo {
    ProcessInfo {
        pid,
        info: exec_id.map(|exec_id| details(exec_id)).into(),
        ..ProcessInfo::default()
    }
}

/// What runc's shim says of an exec, which is what clients look for.
fn details(exec_id: &str) -> Any {
    let details = ProcessDetails {
        exec_id: exec_id.to_owned(),
        ..ProcessDetails::default()
    };
    Any {
        type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
        // Writing a message without required fields into memory cannot fail.
        value: details.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}
