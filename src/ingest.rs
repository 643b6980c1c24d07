//! The HTTP front.
pub mod body;
pub mod protocol;
