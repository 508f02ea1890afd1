//! Requests for an exec'd process that is being started.

use std::thread;
use std::time::Duration;

use containerd_shim_protos::TaskClient;
use containerd_shim_protos::api::{
    DeleteRequest, ExecProcessRequest, KillRequest, PidsRequest, StartRequest, StateRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::ttrpc::Code;
use rustix::process::{Pid, Signal, kill_process};

use crate::command::eventually;
use crate::containerd::Node;
use crate::exec::process;
use crate::server;
use crate::task_api::{connect, context, create, end_server, probe_bundle, refusal};

/// A running container of a client, whose launcher can be held.
struct Held<'a> {
    node: &'a Node,
    id: &'static str,
    client: TaskClient,
    pid: u32,
    launcher: Pid,
}

impl<'a> Held<'a> {
    fn new(node: &'a Node, id: &'static str) -> Held<'a> {
        let bundle = probe_bundle(node, id, &["idle"]);
        let client = connect(node, &node.namespace, id, &bundle);
        let pid = client.create(context(node), &create(id, &bundle)).unwrap().pid;
        let start = StartRequest {
            id: id.into(),
            ..Default::default()
        };
        client.start(context(node), &start).unwrap();
        let mut launchers = server::pids_of(node, "launch");
        launchers.retain(|launcher| launcher.unsigned_abs() != pid);
        Held {
            node,
            id,
            client,
            pid,
            launcher: Pid::from_raw(launchers[0]).unwrap(),
        }
    }

    fn exec(&self) {
        let request = ExecProcessRequest {
            id: self.id.into(),
            exec_id: "one".into(),
            spec: MessageField::some(process(&["/probe.wasm", "idle"])),
            ..Default::default()
        };
        self.client.exec(context(self.node), &request).unwrap();
    }

    fn start(&self) -> StartRequest {
        StartRequest {
            id: self.id.into(),
            exec_id: "one".into(),
            ..Default::default()
        }
    }

    fn kill(&self) -> KillRequest {
        KillRequest {
            id: self.id.into(),
            exec_id: "one".into(),
            signal: 9,
            ..Default::default()
        }
    }

    fn delete(&self) -> DeleteRequest {
        DeleteRequest {
            id: self.id.into(),
            exec_id: "one".into(),
            ..Default::default()
        }
    }

    fn end(self) {
        let (node, id) = (self.node, self.id.to_owned());
        let kill = KillRequest {
            id: id.clone(),
            signal: 9,
            ..Default::default()
        };
        self.client.kill(context(node), &kill).unwrap();
        let wait = WaitRequest {
            id: id.clone(),
            ..Default::default()
        };
        self.client.wait(context(node), &wait).unwrap();
        let delete = DeleteRequest {
            id,
            ..Default::default()
        };
        self.client.delete(context(node), &delete).unwrap();
        end_server(node);
    }
}

/// Longer than a request takes to arrive, shorter than the server waits for a launcher.
const HELD: Duration = Duration::from_secs(2);

on_newest_containerd! {
    fn a_signal_to_a_process_that_is_being_started_reaches_it_when_it_is(node) {
        let held = Held::new(node, "killed");
        held.exec();
        kill_process(held.launcher, Signal::STOP).unwrap();
        thread::scope(|scope| {
            let starting = scope.spawn(|| held.client.clone().start(context(node), &held.start()));
            thread::sleep(HELD / 2);
            let killing = scope.spawn(|| held.client.clone().kill(context(node), &held.kill()));
            thread::sleep(HELD / 2);
            assert!(!starting.is_finished() && !killing.is_finished());
            kill_process(held.launcher, Signal::CONT).unwrap();
            starting.join().unwrap().unwrap();
            killing.join().unwrap().unwrap();
        });
        let wait = WaitRequest { id: held.id.into(), exec_id: "one".into(), ..Default::default() };
        assert_eq!(held.client.wait(context(node), &wait).unwrap().exit_status, 137);
        assert_eq!(held.client.delete(context(node), &held.delete()).unwrap().exit_status, 137);
        held.end();
    }

    fn a_process_that_is_deleted_while_it_is_being_started_does_not_run(node) {
        let held = Held::new(node, "deleted");
        held.exec();
        kill_process(held.launcher, Signal::STOP).unwrap();
        thread::scope(|scope| {
            let starting = scope.spawn(|| held.client.clone().start(context(node), &held.start()));
            thread::sleep(HELD);
            assert!(!starting.is_finished());
            assert_eq!(held.client.delete(context(node), &held.delete()).unwrap().pid, 0);
            kill_process(held.launcher, Signal::CONT).unwrap();
            let (code, message) = refusal(starting.join().unwrap());
            assert!(code == Code::FAILED_PRECONDITION && message.contains("deleted while it was being started"), "{message}");
        });
        let state = StateRequest { id: held.id.into(), exec_id: "one".into(), ..Default::default() };
        assert_eq!(refusal(held.client.state(context(node), &state)).0, Code::NOT_FOUND);
        let pids = PidsRequest { id: held.id.into(), ..Default::default() };
        eventually("the container's own process alone is left", Duration::from_secs(5), || {
            let left = held.client.pids(context(node), &pids).unwrap().processes;
            (left.len() == 1 && left[0].pid == held.pid).then_some(())
        });
        // Its id is free again.
        held.exec();
        held.client.start(context(node), &held.start()).unwrap();
        held.end();
    }
}
