//! Every option of kubewasi, in one typed table.
//!
//! A key stands in the table with its kind (unit and range), its default, where it may be set and what it does; the
//! parsers of TOML and of annotations, the defaults and the documentation are views of the table. Pure: nothing here
//! reads a file or the environment.

mod annotations;
mod cache_file;
mod engine;
mod http;
mod kind;
mod parse;
mod reference;
mod table;
mod world;

pub use annotations::{AnnotationError, annotated};
pub use cache_file::is_cache_file;
pub use engine::{Engine, Optimization};
pub use http::Http;
pub use kind::{Kind, ValueError};
pub use parse::{OptionsError, parse};
pub use reference::{markdown, reference, size};
pub use table::{Entry, Guest, Options, Place, Scope, TABLE};
pub use world::{NoChoice, WorldChoice};
