//! The bootstrap room.
