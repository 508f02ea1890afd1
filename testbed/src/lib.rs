//! What node tests and measurements share: a containerd of their own, and a look at the machine before and after.

pub mod daemon;
pub mod hostile;
pub mod machine;
pub mod script;
pub mod version;
