//! Why a text is no name.

/// A name or a key that is not in this project's format; holds what was being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed {0}")]
pub struct ParseError(pub &'static str);
