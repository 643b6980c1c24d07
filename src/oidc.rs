//! Whose token is it: tokens, the issuer's keys, and the judge of a token that somebody presents.

mod keys;
mod token;
mod verifier;

pub use token::{OidcToken, Source, VerifyError, looks_like_jwt};
pub use verifier::{IssuerError, Verifier};

#[cfg(test)]
mod tests;
