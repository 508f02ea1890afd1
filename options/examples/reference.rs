//! Prints docs/options.md.

fn main() {
    print!("{}", kubewasi_options::markdown());
}
