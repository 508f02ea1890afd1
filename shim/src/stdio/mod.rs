//! The stdio room.
