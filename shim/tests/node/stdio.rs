//! Standard streams: nothing is lost, nothing is mixed, the end of input arrives.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::guests::Probe;
use crate::image_builder::Image;

fn image(probe: Probe) -> Image {
    let name = format!("stdio-{}", probe.file().replace(".wasm", ""));
    Image::with_files(&name, &[("/probe.wasm", &probe.bytes())])
}

/// What a reader gets that opens a fifo now, which waits for a writer first. It must not wait for ever.
fn late(fifo: &Path) -> String {
    let (done, read) = mpsc::channel();
    let fifo = fifo.to_owned();
    thread::spawn(move || done.send(std::fs::read_to_string(fifo).unwrap()));
    read.recv_timeout(Duration::from_secs(20)).expect("the output ends")
}

on_every_containerd! {
    fn input_passes_through_and_its_end_arrives(node) {
        // More than a pipe holds.
        let text: Vec<u8> = (0..40_000u32).flat_map(|index| format!("{index:07}\n").into_bytes()).collect();
        for probe in Probe::WASM {
            let image = image(probe);
            node.import(&image);
            let echo = node.run(&image).args(&["/probe.wasm", "cat"]).stdin(&text).finish().ok();
            assert!(echo.stdout.as_bytes() == text, "{probe:?}: {} of {} bytes came back", echo.stdout.len(), text.len());
        }
    }

    fn a_megabyte_of_output_arrives_whole(node) {
        for probe in Probe::WASM {
            let image = image(probe);
            node.import(&image);
            let said = node.run(&image).args(&["/probe.wasm", "lines", "65536"]).finish().ok();
            assert_eq!(said.stdout.len(), 65536 * 16, "{probe:?}");
            for (index, line) in said.stdout.lines().enumerate() {
                assert_eq!(line.parse::<usize>().unwrap(), index, "{probe:?}");
            }
        }
    }

    fn without_streams_a_guest_runs_all_the_same(node) {
        let image = image(Probe::P1);
        node.import(&image);
        let (id, _) = node.run(&image).args(&["/probe.wasm", "lines", "65536"]).detach();
        node.wait_until(&id, "STOPPED");
        assert_eq!(node.delete(&id), 0);
    }

    fn output_is_appended_to_a_log_file(node) {
        let image = image(Probe::P2);
        node.import(&image);
        let (id, _, log) = node.run(&image).args(&["/probe.wasm", "say", "to the file"]).detach_with_log();
        node.wait_until(&id, "STOPPED");
        assert_eq!(std::fs::read_to_string(log).unwrap(), "to the file\n");
        node.remove(&id);
    }

    fn output_that_is_unread_when_its_container_is_deleted_waits_for_its_reader(node) {
        let image = image(Probe::P1);
        node.import(&image);
        let (id, _, fifo) = node.run(&image).args(&["/probe.wasm", "say", "late"]).detach_with_fifo();
        node.wait_until(&id, "STOPPED");
        node.remove(&id);
        assert_eq!(late(&fifo), "late\n");
        std::fs::remove_file(fifo).unwrap();
    }

    fn a_reader_that_comes_after_the_end_of_a_process_gets_its_output_and_the_end_of_that(node) {
        let image = image(Probe::P1);
        node.import(&image);
        for said in ["late\n", ""] {
            let args = if said.is_empty() { ["/probe.wasm", "exit", "0"] } else { ["/probe.wasm", "say", "late"] };
            let (id, _, fifo) = node.run(&image).args(&args).detach_with_fifo();
            node.wait_until(&id, "STOPPED");
            assert_eq!(late(&fifo), said);
            node.remove(&id);
            std::fs::remove_file(fifo).unwrap();
        }
    }
}
