//! The capabilities of the agent's container, with which `kubewasi-node check` on a host gets the agent's verdict.

use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, remove_capability_from_bounding_set,
    set_capabilities,
};

/// The one capability of the agent's container, as the controller writes it into the DaemonSet.
const AGENT: CapabilitySet = CapabilitySet::SYS_PTRACE;

/// Gives up every capability that the agent's container does not have, for this thread and for what it starts.
///
/// # Errors
///
/// As prctl(2) and capset(2).
pub fn restrict_to_agent() -> io::Result<()> {
    let mut permitted = capabilities(None)?.permitted;
    if permitted.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            // The kernel does not know more of them.
            if capability_is_in_bounding_set(capability).is_err() {
                break;
            }
            if capability != AGENT {
                remove_capability_from_bounding_set(capability)?;
            }
        }
    }
    permitted &= AGENT;
    set_capabilities(
        None,
        CapabilitySets {
            effective: permitted,
            permitted,
            inheritable: CapabilitySet::empty(),
        },
    )
}
