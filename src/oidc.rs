//! OIDC tokens, the issuer's keys, and the judge of a token that somebody presents.

mod keys;
mod refusal;
mod token;
mod verifier;

pub use keys::ask_issuer;
pub use refusal::{BrokenRule, Reason, VerifyError};
pub use token::{OidcToken, ShownClaims, Source, looks_like_jwt, moment};
pub use verifier::{IssuerError, Verifier};

#[cfg(test)]
mod tests;
