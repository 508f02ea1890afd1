//! Every option of kubewasi, in one typed table.
//!
//! A key stands in the table with its kind (unit and range), its default, where it may be set and what it does; the
//! parser, the defaults and the documentation are views of the table. Pure: nothing here reads a file or the
//! environment.

mod parse;
mod table;

pub use parse::{OptionsError, parse};
pub use table::{Entry, Kind, Options, Place, Scope, TABLE, reference, size};
