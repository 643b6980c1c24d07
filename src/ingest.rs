//! The HTTP front.
pub mod auth;
pub mod body;
pub mod native;
pub mod protocol;
pub mod tls;
mod watched;
