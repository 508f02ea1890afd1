//! What an artifact is for, in one name: the wasm, the engine and the profile (pure).

use std::fmt;
use std::hash::{Hash, Hasher};

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

/// What every key of one profile has in common: this build's engine and this node's CPU.
#[derive(Clone, Copy, Debug)]
pub struct Compatibility([u8; 32]);

/// Changes when artifacts of older builds must not be found any more, for a reason that wasmtime does not know.
const GENERATION: &[u8] = b"kubewasi artifact 1\0";

impl Compatibility {
    /// The compatibility of `profile` in this build on this node. Builds an engine to ask it.
    pub fn of(profile: Profile) -> wasmtime::Result<Compatibility> {
        Ok(Compatibility::of_engine(&engine::engine(profile)?, profile))
    }

    fn of_engine(engine: &Engine, profile: Profile) -> Compatibility {
        let mut hasher = Feed(Sha256::new_with_prefix(GENERATION));
        engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.0.update(format!("{profile:?}"));
        Compatibility(hasher.0.finalize().into())
    }

    /// The key of `wasm`'s artifact.
    pub fn key(&self, wasm: &Digest) -> Key {
        let hasher = Sha256::new_with_prefix(self.0).chain_update(wasm.0);
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

    #[test]
    fn equal_engines_give_equal_keys_and_each_part_changes_them() {
        let [command, again] = [(); 2].map(|()| Compatibility::of(Profile::Command).expect("engine"));
        let service = Compatibility::of(Profile::Service).expect("engine");
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(command.key(&a), again.key(&a));
        assert_ne!(command.key(&a), command.key(&b));
        assert_ne!(command.key(&a), service.key(&a));
        assert_eq!(command.key(&a).to_string().len(), 64);
    }

    #[test]
    fn another_engine_setting_is_another_key() {
        let default = Engine::default();
        let mut config = wasmtime::Config::new();
        config.consume_fuel(true);
        let fuel = Engine::new(&config).expect("engine");
        let key = |engine| Compatibility::of_engine(engine, Profile::Command).key(&Digest::of(b"a"));
        assert_ne!(key(&default), key(&fuel));
    }
}
