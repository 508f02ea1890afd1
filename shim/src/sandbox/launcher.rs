//! The process that forks guests: one thread, warm engines and linkers.

/// `containerd-shim-wasi-v1 launch`: serves fork requests from the socket at fd 3 until it closes.
pub fn run() -> ! {
    todo!()
}
