//! The confined child that compiles: one input fd, one output fd, nothing else.

/// `containerd-shim-wasi-v1 compile`: compiles what the input fd holds and exits.
pub fn run() -> ! {
    todo!()
}
