//! kubewasi's control plane: what the cluster is asked for, who decides, and who acts on a node.
//!
//! `api` is what users and the two programs say to each other, by way of the API server. `operator` is the controller:
//! it turns listed objects into a plan of writes, and performs it. `node` is the agent: it changes one node, while it
//! holds a permit, and proves that the node works. Neither imports the other.

pub mod api;
pub mod node;
pub mod operator;
