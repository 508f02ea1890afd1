//! `component WIT WORLD LIBRARY OUTPUT`: makes a component of that world of a core module, whose WASI 0.1 is adapted.
//!
//! WIT is a folder with the world and, in deps/, what it is made of. The module is a library: it exports the functions of
//! its world by the canonical ABI, and `_initialize` where its language needs that.

use std::path::Path;

use anyhow::{Context, Result, bail};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [wit, world, library, output] = arguments.as_slice() else {
        bail!("usage: component WIT WORLD LIBRARY OUTPUT");
    };
    let mut resolve = Resolve::default();
    let (package, _) = resolve
        .push_dir(Path::new(wit))
        .with_context(|| format!("cannot read {wit}"))?;
    let world = resolve.select_world(&[package], Some(world))?;
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
