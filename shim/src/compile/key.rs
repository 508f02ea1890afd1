//! What an artifact is for, in one name: the wasm, the engines and the choice of its world (pure).
//!
//! Which of the two engines an artifact is compiled for, only its world says, which is not known before it is compiled.

use std::fmt;
use std::hash::{Hash, Hasher};

use kubewasi_options::{Engine as Options, WorldChoice};
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;

use super::{Profile, engine};
use crate::image::Digest;

/// The name of an artifact, 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key(Digest);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.hex())
    }
}

/// What every key has in common: this build's engines with their options, and this node's CPU.
#[derive(Clone, Copy, Debug)]
pub struct Compatibility([u8; 32]);

/// Changes when artifacts of older builds must not be found any more, for a reason that wasmtime does not know.
const GENERATION: &[u8] = b"kubewasi artifact 1\0";

impl Compatibility {
    /// The compatibility of this build on this node. Builds its engines to ask them.
    pub fn own(options: &Options) -> wasmtime::Result<Compatibility> {
        let engine = |profile| engine::engine(profile, options);
        Ok(Compatibility::of([
            &engine(Profile::Command)?,
            &engine(Profile::Service)?,
        ]))
    }

    fn of(engines: [&Engine; 2]) -> Compatibility {
        let mut hasher = Feed(Sha256::new_with_prefix(GENERATION));
        for engine in engines {
            engine.precompile_compatibility_hash().hash(&mut hasher);
        }
        Compatibility(hasher.0.finalize().into())
    }

    /// The key of `wasm`'s artifact, compiled for the world that is chosen.
    pub fn key(&self, wasm: &Digest, choice: WorldChoice) -> Key {
        let mut hasher = Sha256::new_with_prefix(self.0).chain_update(wasm.0);
        if choice != WorldChoice::Auto {
            hasher.update(choice.as_str());
        }
        Key(Digest(hasher.finalize().into()))
    }
}

/// Feeds what `Hash` writes to sha256; the 64-bit result of `Hasher` is not used.
struct Feed(Sha256);

impl Hasher for Feed {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WorldChoice::{Auto, Command, Service};

    #[test]
    fn equal_engines_give_equal_keys_and_each_part_changes_them() {
        let [own, again] = [(); 2].map(|()| Compatibility::own(&Options::default()).expect("engines"));
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(own.key(&a, Auto), again.key(&a, Auto));
        assert_ne!(own.key(&a, Auto), own.key(&b, Auto));
        assert_eq!(own.key(&a, Auto).to_string().len(), 64);
    }

    #[test]
    fn another_choice_of_the_world_is_another_key() {
        let own = Compatibility::own(&Options::default()).expect("engines");
        let [auto, command, service] = [Auto, Command, Service].map(|choice| own.key(&Digest::of(b"a"), choice));
        assert!(auto != command && command != service && service != auto);
    }

    #[test]
    fn another_option_of_the_engine_is_another_key() {
        let key = |options: Options| {
            Compatibility::own(&options)
                .expect("engines")
                .key(&Digest::of(b"a"), Auto)
        };
        let default = Options::default();
        let optimization = kubewasi_options::Optimization::None;
        assert_ne!(
            key(default),
            key(Options {
                optimization,
                ..default
            })
        );
        assert_ne!(
            key(default),
            key(Options {
                tail_call: false,
                ..default
            })
        );
    }

    #[test]
    fn another_engine_setting_is_another_key() {
        let default = Engine::default();
        let mut config = wasmtime::Config::new();
        config.consume_fuel(true);
        let fuel = Engine::new(&config).expect("engine");
        let key = |engines| Compatibility::of(engines).key(&Digest::of(b"a"), Auto);
        assert_ne!(key([&default, &default]), key([&fuel, &default]));
        assert_ne!(key([&default, &default]), key([&default, &fuel]));
    }
}
