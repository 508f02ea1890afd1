//! What tests and measurements share: a containerd of their own, images, and a look at the machine before and after.

pub mod binary;
pub mod daemon;
pub mod hostile;
pub mod image;
pub mod index;
pub mod machine;
pub mod script;
pub mod systemd_host;
pub mod version;
