//! The kubewasi shim: one binary that containerd starts, that serves the node, and that runs guests.

mod bootstrap;
mod compile;
mod guest;
mod image;
mod observe;
mod sandbox;
mod stdio;
mod sys;
mod task;

fn main() {}
