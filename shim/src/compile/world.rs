//! Which world a wasm binary targets, read from its bytes alone (pure). Runs where hostile bytes may be parsed: in the
//! compile worker.

use wasmparser::{Encoding, Parser, Payload};

use super::World;

/// Why a binary has no world that can be run.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error("not a valid wasm module or component: {0}")]
    Malformed(#[from] wasmparser::BinaryReaderError),
    #[error(
        "the component is a command and a service, it exports {command} and {service}: export one of the two; in Rust a service is a library (crate-type \"cdylib\"), a program is a command"
    )]
    Two { command: String, service: String },
    #[error(
        "the component exports neither wasi:cli/run, wasi:http/incoming-handler 0.2 nor wasi:http/handler 0.3, so its world is unknown; exports: {exports}; imports: {imports}"
    )]
    Unknown { exports: String, imports: String },
}

/// As many names are shown in a message, each cut to so many characters.
const MOST_NAMES: usize = 12;
const LONGEST_NAME: usize = 80;

/// Reads the world of `bytes`. A core module is not read past its header: compiling validates it.
pub fn world(bytes: &[u8]) -> Result<World, WorldError> {
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    // Nested modules and components have imports and exports of their own.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } if depth == 0 => return Ok(World::Module),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    of_component(&imports, &exports)
}

/// The world of a component with these imports and exports; the newer one when it exports two versions of one.
fn of_component(imports: &[String], exports: &[String]) -> Result<World, WorldError> {
    let exported = |interface: &str, version: &str, world| {
        let found = exports.iter().find(|name| is(name, interface, version));
        found.map(|name| (name, world))
    };
    let command = exported("wasi:cli/run", "0.3.", World::Command03)
        .or_else(|| exported("wasi:cli/run", "0.2.", World::Command02));
    let service = exported("wasi:http/handler", "0.3.", World::Http03)
        .or_else(|| exported("wasi:http/incoming-handler", "0.2.", World::Http02));
    match (command, service) {
        (Some((_, world)), None) | (None, Some((_, world))) => Ok(world),
        (Some((command, _)), Some((service, _))) => Err(WorldError::Two {
            command: shown(command),
            service: shown(service),
        }),
        (None, None) => Err(WorldError::Unknown {
            exports: list(exports),
            imports: list(imports),
        }),
    }
}

/// Whether `name` is `interface` in a version that begins with `version`; release candidates too.
fn is(name: &str, interface: &str, version: &str) -> bool {
    name.strip_prefix(interface)
        .and_then(|rest| rest.strip_prefix('@'))
        .is_some_and(|found| found.starts_with(version))
}

fn list(names: &[String]) -> String {
    let mut text = names
        .iter()
        .take(MOST_NAMES)
        .map(|name| shown(name))
        .collect::<Vec<_>>()
        .join(", ");
    match names.len() {
        0 => text.push_str("none"),
        count if count > MOST_NAMES => text.push_str(&format!(" and {} more", count - MOST_NAMES)),
        _ => {}
    }
    text
}

fn shown(name: &str) -> String {
    name.chars().take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<World, WorldError> {
        world(&wat::parse_str(text).expect("valid text"))
    }

    /// A component that exports an empty instance under each name, and has a component inside that exports another.
    fn exporting(names: &[&str]) -> String {
        let exports: String = names
            .iter()
            .map(|name| format!("(export \"{name}\" (instance $i))\n"))
            .collect();
        let nested = r#"(component (instance $n) (export "wasi:cli/run@0.2.0" (instance $n)))"#;
        format!(r#"(component (import "wasi:io/poll@0.2.0" (instance)) {nested} (instance $i) {exports})"#)
    }

    #[test]
    fn a_core_module_is_known_by_its_header() {
        assert_eq!(of("(module)").expect("world"), World::Module);
        assert_eq!(world(b"\0asm\x01\0\0\0garbage").expect("world"), World::Module);
    }

    #[test]
    fn a_component_is_known_by_its_own_exports() {
        assert_eq!(
            of(&exporting(&["wasi:cli/run@0.2.6"])).expect("world"),
            World::Command02
        );
        assert_eq!(
            of(&exporting(&["wasi:cli/run@0.3.0"])).expect("world"),
            World::Command03
        );
        assert_eq!(
            of(&exporting(&["wasi:cli/run@0.3.0-rc-2025-09-16"])).expect("world"),
            World::Command03
        );
        assert_eq!(
            of(&exporting(&["wasi:cli/run@0.2.0", "wasi:cli/run@0.3.0"])).expect("world"),
            World::Command03
        );
    }

    #[test]
    fn a_service_is_known_by_its_handler_and_the_newer_one_counts() {
        let (older, newer) = ("wasi:http/incoming-handler@0.2.10", "wasi:http/handler@0.3.0");
        assert_eq!(of(&exporting(&[older])).expect("world"), World::Http02);
        assert_eq!(of(&exporting(&[newer])).expect("world"), World::Http03);
        assert_eq!(of(&exporting(&[older, newer])).expect("world"), World::Http03);
    }

    #[test]
    fn a_component_of_two_worlds_is_refused_by_both_their_names() {
        let (command, service) = ("wasi:cli/run@0.2.0", "wasi:http/incoming-handler@0.2.0");
        let message = of(&exporting(&[service, command])).expect_err("two").to_string();
        assert!(message.contains(command) && message.contains(service), "{message}");
    }

    #[test]
    fn an_unknown_world_names_imports_and_exports() {
        let message = of(&exporting(&["example:game/loop@1.0.0"]))
            .expect_err("unknown")
            .to_string();
        assert!(
            message.contains("exports: example:game/loop@1.0.0; imports: wasi:io/poll@0.2.0"),
            "{message}"
        );
        let message = of("(component)").expect_err("unknown").to_string();
        assert!(message.ends_with("exports: none; imports: none"), "{message}");
        let many: Vec<String> = (0..40).map(|number| format!("a:b/c{number}@1.0.0")).collect();
        let message = of_component(&[], &many).expect_err("unknown").to_string();
        assert!(message.contains("and 28 more") && message.len() < 1000, "{message}");
    }

    #[test]
    fn neither_arbitrary_nor_cut_nor_damaged_bytes_panic() {
        let whole = wat::parse_str(exporting(&["wasi:cli/run@0.2.0"])).expect("valid text");
        for length in 0..whole.len() {
            // Cut between two sections it is a whole component, with the exports that are left.
            let cut = world(&whole[..length]);
            assert!(
                length > whole.len() / 2 || cut.is_err(),
                "{length} bytes of {}",
                whole.len()
            );
        }
        // A generator of our own keeps the run the same each time (Marsaglia, xorshift64).
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..=random() % 8 {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
            let _ = world(&bytes);
            let mut noise = b"\0asm\x0d\0\x01\0".to_vec();
            noise.extend((0..random() % 64).map(|_| random() as u8));
            let _ = world(&noise);
        }
    }
}
