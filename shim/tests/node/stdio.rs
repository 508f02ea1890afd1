//! Standard streams: nothing is lost, nothing is mixed, the end of input arrives.

use crate::guests::Probe;
use crate::image_builder::Image;

fn image(probe: Probe) -> Image {
    let name = format!("stdio-{}", probe.file().replace(".wasm", ""));
    Image::with_files(&name, &[("/probe.wasm", &probe.bytes())])
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
}
