//! What std does not offer alike for every world: random numbers, exit codes, a trap, the working directory.

#[cfg(all(target_os = "wasi", target_env = "p1"))]
mod world {
    use std::io;
    use std::path::PathBuf;

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn random_get(buffer: *mut u8, length: usize) -> u16;
    }

    pub fn random(count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        // SAFETY: the buffer is ours and as long as we say.
        match unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) } {
            0 => Ok(bytes),
            code => Err(io::Error::from_raw_os_error(code.into())),
        }
    }

    pub fn insecure_random() -> Vec<u8> {
        super::hash_seed()
    }

    pub fn exit_with_code(code: u8) -> ! {
        std::process::exit(code.into())
    }

    /// WASI 0.1 has no working directory of its own: PWD is how a guest learns it.
    pub fn cwd() -> io::Result<PathBuf> {
        std::env::var_os("PWD")
            .map(PathBuf::from)
            .ok_or_else(|| io::Error::other("PWD is not set"))
    }
}

#[cfg(all(target_os = "wasi", target_env = "p2"))]
mod world {
    use std::io;
    use std::path::PathBuf;

    pub fn random(count: usize) -> io::Result<Vec<u8>> {
        Ok(wasip2::random::random::get_random_bytes(count as u64))
    }

    pub fn insecure_random() -> Vec<u8> {
        let (a, b) = wasip2::random::insecure_seed::insecure_seed();
        let mut bytes = wasip2::random::insecure::get_insecure_random_bytes(8);
        bytes.extend(a.to_be_bytes());
        bytes.extend(b.to_be_bytes());
        bytes.extend(super::hash_seed());
        bytes
    }

    pub fn exit_with_code(code: u8) -> ! {
        wasip2::cli::exit::exit_with_code(code);
        unreachable!("exit-with-code returned")
    }

    pub fn cwd() -> io::Result<PathBuf> {
        wasip2::cli::environment::initial_cwd()
            .map(PathBuf::from)
            .ok_or_else(|| io::Error::other("initial-cwd is none"))
    }
}

#[cfg(not(target_os = "wasi"))]
mod world {
    use std::io::{self, Read};
    use std::path::PathBuf;

    pub fn random(count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn insecure_random() -> Vec<u8> {
        super::hash_seed()
    }

    pub fn exit_with_code(code: u8) -> ! {
        std::process::exit(code.into())
    }

    pub fn cwd() -> io::Result<PathBuf> {
        std::env::current_dir()
    }
}

pub use world::{cwd, exit_with_code, insecure_random, random};

/// What std seeds its hash maps with.
fn hash_seed() -> Vec<u8> {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8).to_be_bytes().to_vec()
}

/// Ends with wasm's `unreachable`; natively by abort.
pub fn trap() -> ! {
    #[cfg(target_os = "wasi")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_os = "wasi"))]
    std::process::abort()
}
