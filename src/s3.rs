//! (to come)
pub mod read;
