//! Which world a wasm binary targets, read from its bytes and, where they leave a choice, by that (pure). Runs where hostile bytes may be parsed: in the
//! compile worker.

use kubewasi_options::WorldChoice;
use wasmparser::{Encoding, Parser, Payload};

use super::{Profile, World, Worlds};

/// Why a binary has no world that can be run.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error("not a valid wasm module or component: {0}")]
    Malformed(#[from] wasmparser::BinaryReaderError),
    #[error(
        "the component exports {exported}, which is none of the supported versions: {SUPPORTED}; build it with a toolchain for one of these"
    )]
    Version { exported: String },
    #[error(
        "the component exports none of {SUPPORTED}, so its world is unknown; exports: {exports}; imports: {imports}"
    )]
    Unknown { exports: String, imports: String },
    #[error(
        "the option or annotation `world` is {choice}, but {found}; set it to {} or remove it",
        WorldChoice::Auto
    )]
    NotExported { choice: WorldChoice, found: String },
}

/// What a component may export, as messages say it. Releases of one minor version are compatible (WASI's proposals,
/// "Semantic versioning"); a release candidate is compatible with nothing.
const SUPPORTED: &str = "wasi:cli/run 0.2.x and 0.3.x, wasi:http/incoming-handler 0.2.x and wasi:http/handler 0.3.x (releases, no candidates)";

/// The exports by which a world is known, with the minor version that each must have. The newer one of a kind comes first:
/// it is the one that runs.
const KNOWN: [(&str, &str, World); 4] = [
    ("wasi:http/handler", "0.3", World::Http03),
    ("wasi:http/incoming-handler", "0.2", World::Http02),
    ("wasi:cli/run", "0.3", World::Command03),
    ("wasi:cli/run", "0.2", World::Command02),
];

/// As many names are shown in a message, each cut to so many characters.
const MOST_NAMES: usize = 12;
const LONGEST_NAME: usize = 80;

/// Reads what `bytes` run as by `choice`. A core module is not read past its header: compiling validates it.
pub fn worlds(bytes: &[u8], choice: WorldChoice) -> Result<Worlds, WorldError> {
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    // Nested modules and components have imports and exports of their own.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } if depth == 0 => return of_module(choice),
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
    of_component(&imports, &exports, choice)
}

fn of_module(choice: WorldChoice) -> Result<Worlds, WorldError> {
    match choice {
        WorldChoice::Auto | WorldChoice::Command => Ok(Worlds {
            world: World::Module,
            other: None,
        }),
        WorldChoice::Service => Err(WorldError::NotExported {
            choice,
            found: "this is a core module, which is always a command".to_owned(),
        }),
    }
}

/// What a component with these imports and exports runs as. One that is a command and a service is a service: what makes
/// services of programs with a `main` exports both, and its command does nothing.
fn of_component(imports: &[String], exports: &[String], choice: WorldChoice) -> Result<Worlds, WorldError> {
    let found = |profile| {
        let mut known = KNOWN.iter().filter(|(_, _, world)| world.profile() == profile);
        known.find_map(|(interface, minor, world)| {
            let exported = exports.iter().any(|name| is(name, interface, minor));
            exported.then_some(*world)
        })
    };
    let (command, service) = (found(Profile::Command), found(Profile::Service));
    let (first, second) = match choice {
        WorldChoice::Command => (command, service),
        WorldChoice::Service => (service, command),
        WorldChoice::Auto => (service.or(command), service.and(command)),
    };
    match (first, second) {
        (Some(world), other) => Ok(Worlds { world, other }),
        (None, Some(_)) => Err(WorldError::NotExported {
            choice,
            found: format!("the component exports {}", list(exports)),
        }),
        (None, None) => Err(unsupported(imports, exports)),
    }
}

fn unsupported(imports: &[String], exports: &[String]) -> WorldError {
    let known = |name: &&String| {
        let interface = name.split('@').next();
        KNOWN.iter().any(|(known, _, _)| Some(*known) == interface)
    };
    let of_other_versions: Vec<String> = exports.iter().filter(known).cloned().collect();
    match of_other_versions.is_empty() {
        false => WorldError::Version {
            exported: list(&of_other_versions),
        },
        true => WorldError::Unknown {
            exports: list(exports),
            imports: list(imports),
        },
    }
}

/// Whether `name` is `interface` in a release of the version `minor`.
fn is(name: &str, interface: &str, minor: &str) -> bool {
    name.strip_prefix(interface)
        .and_then(|rest| rest.strip_prefix('@')?.strip_prefix(minor)?.strip_prefix('.'))
        .is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit()))
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

    fn chosen(text: &str, choice: WorldChoice) -> Result<(World, Option<World>), WorldError> {
        let worlds = worlds(&wat::parse_str(text).expect("valid text"), choice)?;
        Ok((worlds.world, worlds.other))
    }

    fn of(text: &str) -> Result<(World, Option<World>), WorldError> {
        chosen(text, WorldChoice::Auto)
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
        assert_eq!(of("(module)").expect("world"), (World::Module, None));
        let garbage = worlds(b"\0asm\x01\0\0\0garbage", WorldChoice::Auto);
        assert_eq!(garbage.expect("world").world, World::Module);
    }

    #[test]
    fn a_component_is_known_by_its_own_exports_in_any_release_of_a_minor_version() {
        for (export, world) in [
            ("wasi:cli/run@0.2.0", World::Command02),
            ("wasi:cli/run@0.2.6", World::Command02),
            ("wasi:cli/run@0.2.99", World::Command02),
            ("wasi:cli/run@0.3.0", World::Command03),
            ("wasi:cli/run@0.3.12", World::Command03),
            ("wasi:http/incoming-handler@0.2.10", World::Http02),
            ("wasi:http/handler@0.3.0", World::Http03),
        ] {
            assert_eq!(of(&exporting(&[export])).expect("world"), (world, None), "{export}");
        }
    }

    #[test]
    fn the_newer_version_of_a_command_or_of_a_service_counts_alone() {
        let commands = ["wasi:cli/run@0.2.0", "wasi:cli/run@0.3.0"];
        assert_eq!(of(&exporting(&commands)).expect("world"), (World::Command03, None));
        let services = ["wasi:http/incoming-handler@0.2.10", "wasi:http/handler@0.3.0"];
        assert_eq!(of(&exporting(&services)).expect("world"), (World::Http03, None));
    }

    #[test]
    fn a_component_that_is_a_command_and_a_service_is_a_service_unless_the_command_is_chosen() {
        use World::{Command02, Command03, Http02, Http03};
        let (run02, run03) = ("wasi:cli/run@0.2.6", "wasi:cli/run@0.3.0");
        let (handler02, handler03) = ("wasi:http/incoming-handler@0.2.0", "wasi:http/handler@0.3.1");
        for (exports, command, service) in [
            (vec![run02, handler02], Command02, Http02),
            (vec![handler03, run02], Command02, Http03),
            (vec![run03, handler02], Command03, Http02),
            (vec![run02, run03, handler02, handler03], Command03, Http03),
        ] {
            let both = exporting(&exports);
            for choice in [WorldChoice::Auto, WorldChoice::Service] {
                assert_eq!(
                    chosen(&both, choice).expect("world"),
                    (service, Some(command)),
                    "{exports:?}"
                );
            }
            let command_first = chosen(&both, WorldChoice::Command).expect("world");
            assert_eq!(command_first, (command, Some(service)), "{exports:?}");
        }
    }

    #[test]
    fn a_world_that_is_chosen_and_not_exported_is_refused_by_what_is() {
        let message = |text: &str, choice| chosen(text, choice).expect_err("refused").to_string();
        let handler = "wasi:http/incoming-handler@0.2.0";
        assert_eq!(
            message(&exporting(&[handler]), WorldChoice::Command),
            format!(
                "the option or annotation `world` is command, but the component exports {handler}; set it to auto or remove it"
            )
        );
        let service = message(&exporting(&["wasi:cli/run@0.2.0"]), WorldChoice::Service);
        assert!(
            service.contains("is service, but the component exports wasi:cli/run@0.2.0"),
            "{service}"
        );
        assert!(message("(module)", WorldChoice::Service).contains("core module"));
        assert_eq!(
            chosen("(module)", WorldChoice::Command).expect("world"),
            (World::Module, None)
        );
    }

    #[test]
    fn a_version_that_is_not_supported_is_refused_by_itself_and_those_that_are() {
        for export in [
            "wasi:cli/run@0.3.0-rc-2025-09-16",
            "wasi:http/handler@0.3.0-rc-2026-01-06",
            "wasi:cli/run@0.2.0-rc-2023-11-10",
            "wasi:http/incoming-handler@0.3.0",
            "wasi:cli/run@0.4.0",
            "wasi:cli/run",
        ] {
            let message = of(&exporting(&[export])).expect_err("refused").to_string();
            assert!(
                message.contains(&format!("exports {export}, which is none")),
                "{message}"
            );
            assert!(message.contains("wasi:cli/run 0.2.x and 0.3.x"), "{message}");
        }
        // It does not matter when another one is.
        let both = ["wasi:cli/run@0.3.0-rc-2025-09-16", "wasi:cli/run@0.2.6"];
        assert_eq!(of(&exporting(&both)).expect("world"), (World::Command02, None));
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
        let message = of_component(&[], &many, WorldChoice::Auto)
            .expect_err("unknown")
            .to_string();
        assert!(message.contains("and 28 more") && message.len() < 1000, "{message}");
    }

    #[test]
    fn neither_arbitrary_nor_cut_nor_damaged_bytes_panic() {
        let whole = wat::parse_str(exporting(&["wasi:cli/run@0.2.0"])).expect("valid text");
        for length in 0..whole.len() {
            // Cut between two sections it is a whole component, with the exports that are left.
            let cut = worlds(&whole[..length], WorldChoice::Auto);
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
            let _ = worlds(&bytes, WorldChoice::Auto);
            let mut noise = b"\0asm\x0d\0\x01\0".to_vec();
            noise.extend((0..random() % 64).map(|_| random() as u8));
            let _ = worlds(&noise, WorldChoice::Auto);
        }
    }
}
