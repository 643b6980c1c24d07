//! Whose a line is that a start has found in the spool.

use serde_json::value::RawValue;

/// Whose place a line that was found may belong to.
pub(super) struct Whose<'a> {
    pub(super) organization: &'a str,
    /// All that have a place of the log type.
    pub(super) organizations: &'a [String],
}

/// Whose a line is, by the `organizationId` that it names. An event may bring any of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// It names this organization, or none.
    This,
    /// It names another one that has a place.
    Another,
    /// It names one that has no place, so it may be an event of this organization's all the same.
    Unknown,
}

impl Whose<'_> {
    /// Whose a line with this `organizationId` is.
    pub(super) fn owner(&self, organization: Option<&RawValue>) -> Owner {
        match organization.and_then(|id| serde_json::from_str::<String>(id.get()).ok()) {
            Some(id) if id == self.organization => Owner::This,
            Some(id) if self.organizations.contains(&id) => Owner::Another,
            Some(_) => Owner::Unknown,
            None => Owner::This,
        }
    }

    /// Whether no other organization of the log type has a place.
    pub(super) fn is_alone(&self) -> bool {
        self.organizations.len() == 1
    }
}
