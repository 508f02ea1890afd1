//! The probe as a program: a core module for WASI 0.1, a component for 0.2, a static binary for runc.

fn main() {
    guests::run();
}
