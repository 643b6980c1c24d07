//! The HTTP front.
pub mod body;
pub mod native;
pub mod protocol;
