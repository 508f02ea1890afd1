//! `kubewasi-image`: packs a `.wasm` file, and whatever else it needs, as an OCI image. No daemon, no root, no registry.
//!
//! The image is an index with an entry for each platform, and the entries share their layers. That is the form that every
//! containerd pulls and unpacks, whatever it is configured to (docs/images.md).

mod arguments;
mod error;
mod image;
mod layer;
mod layout;
mod name;
mod source;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;
use crate::error::Error;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kubewasi-image: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the image and writes it. Returns the line to print.
fn run(arguments: &Arguments) -> Result<String, Error> {
    let config = arguments.config()?;
    let image = image::build(&arguments.sources, config, !arguments.uncompressed)?;
    let platforms = image.platforms.join(", ");
    let (output, name) = (&arguments.output, &arguments.name);
    if output.extension().is_some_and(|extension| extension == "tar") {
        image.layout.write_archive(output, name)?;
    } else {
        image.layout.write_directory(output, name)?;
    }
    Ok(format!(
        "{}: {} for {platforms}, {}",
        output.display(),
        name.short,
        image.layout.target_digest()
    ))
}
