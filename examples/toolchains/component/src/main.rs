//! What C and Go need to make components: the world of a program is in WIT, a directory with the world and, in deps/, what it
//! is made of.
//!
//! `component WIT WORLD LIBRARY OUTPUT`: makes a component of that world of a core module, whose WASI 0.1 is adapted. The
//! module is a library: it exports the functions of its world by the canonical ABI, and `_initialize` where its language
//! needs that.
//!
//! `component bindings WIT WORLD DIRECTORY`: writes the C declarations of that world there, as `wit-bindgen c` does.

use std::path::Path;

use anyhow::{Context, Result, bail};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_bindgen_c::Opts;
use wit_bindgen_core::Files;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["bindings", wit, world, directory] => bindings(wit, world, Path::new(directory)),
        [wit, world, library, output] => component(wit, world, library, output),
        _ => bail!("usage: component WIT WORLD LIBRARY OUTPUT, or component bindings WIT WORLD DIRECTORY"),
    }
}

fn read(wit: &str, world: &str) -> Result<(Resolve, WorldId)> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve
        .push_dir(Path::new(wit))
        .with_context(|| format!("cannot read {wit}"))?;
    let world = resolve.select_world(&[package], Some(world))?;
    Ok((resolve, world))
}

fn component(wit: &str, world: &str, library: &str, output: &str) -> Result<()> {
    let (resolve, world) = read(wit, world)?;
    let mut module = std::fs::read(library).with_context(|| format!("cannot read {library}"))?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    let component = ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| {
            encoder.adapter(
                WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
                WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
            )
        })
        .and_then(|encoder| encoder.validate(true).encode())
        .with_context(|| format!("{library} makes no component"))?;
    std::fs::write(output, component).with_context(|| format!("cannot write {output}"))
}

fn bindings(wit: &str, world: &str, directory: &Path) -> Result<()> {
    let (mut resolve, world) = read(wit, world)?;
    let mut files = Files::default();
    Opts::default().build().generate(&mut resolve, world, &mut files)?;
    for (name, content) in files.iter() {
        let path = directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
