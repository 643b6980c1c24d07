//! What the lines of both encodings have in common.

use std::io::{self, Write};

use crate::protocols::body::Line;

/// The members that end an entry's line.
pub(super) fn write_tenant(tenant: Option<&str>, out: &mut Line<'_>) -> io::Result<()> {
    if let Some(tenant) = tenant {
        out.write_all(br#","tenant":"#)?;
        out.text(tenant.as_bytes())?;
    }
    out.write_all(b"}")
}
