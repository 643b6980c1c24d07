//! What a round finds in the lists of deployments, and what it takes up of them.

use std::collections::{BTreeMap, HashSet, VecDeque};

use secrecy::SecretString;

use crate::pull::deployments::follow::Listing;
use crate::pull::deployments::list::{HISTORY_AT_ONCE, Listed, Look};
use crate::pull::deployments::memory::{DeploymentMemory, Following};
use crate::pull::deployments::records::EnvironmentRecord;
use crate::pull::files::PlaceError;
use crate::pull::round::RoundError;

/// With this many in the place no other deployment is taken up until some are read.
pub(super) const FOLLOWING_MAX: usize = 5000;

/// What became of the deployments that were listed of an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TakenUp {
    All,
    /// Some that had ended are left to the next round.
    Some,
    /// So many are followed that there is room only when some of them end.
    Full,
}

/// What a round has found in the lists so far.
pub(super) struct Found {
    /// The place's memory, with the deployments that are taken up.
    pub(super) memory: DeploymentMemory,
    /// What the lists say of the deployments that are followed.
    pub(super) known: BTreeMap<String, Listing>,
    pub(super) tokens: Vec<SecretString>,
    /// How many more deployments that had ended may be begun.
    pub(super) room: usize,
    /// Whether another round should follow at once.
    pub(super) more: bool,
    pub(super) first_error: Option<RoundError>,
}

impl Found {
    pub(super) fn nothing(memory: DeploymentMemory, first_error: Option<RoundError>) -> Found {
        let (known, tokens) = (BTreeMap::new(), Vec::new());
        Found { memory, known, tokens, room: HISTORY_AT_ONCE, more: false, first_error }
    }

    /// Adds what is listed of an environment.
    pub(super) fn add(&mut self, environment: &EnvironmentRecord, look: Look, now: i64) {
        self.tokens.extend(look.tokens);
        let taken_up = self.take_up(environment, look.deployments);
        let all = taken_up == TakenUp::All && !look.some_left;
        // Another round at once finds no room either.
        self.more |= !all && taken_up != TakenUp::Full;
        if taken_up == TakenUp::Full {
            self.fails(PlaceError::Full { following: FOLLOWING_MAX });
        }
        match look.bad {
            // The environment is listed again in the next round; until then its state is not remembered.
            Some(error) => self.fails(error),
            None if !all => {}
            None => {
                self.note_missing(&environment.id);
                self.memory.listed(&environment.id, &environment.state(), look.newest, now);
            }
        }
    }

    /// Follows from now on what was listed of `environment`, the oldest first.
    pub(super) fn take_up(&mut self, environment: &EnvironmentRecord, listed: VecDeque<Listed>) -> TakenUp {
        let mut taken_up = TakenUp::All;
        for Listed { id, kind, created, ended, listing, .. } in listed.into_iter().rev() {
            let has_ended = listing.has_ended();
            if !self.memory.following.contains_key(&id) {
                if self.memory.following.len() >= FOLLOWING_MAX {
                    taken_up = TakenUp::Full;
                    continue;
                }
                if has_ended && self.room == 0 {
                    taken_up = taken_up.max(TakenUp::Some);
                    continue;
                }
                // Those that are followed already take no room: a few that fail each time would keep all others out.
                self.room = self.room.saturating_sub(has_ended.into());
            }
            self.memory.following.entry(id.clone()).or_insert_with(|| Following {
                environment_id: environment.id.clone(),
                environment_name: environment.name.clone(),
                project_id: environment.project_id.clone(),
                kind,
                created,
                read_after_end: ended.filter(|_| has_ended),
                ..Following::default()
            });
            self.known.insert(id, listing);
        }
        taken_up
    }

    /// Notes that the list of `environment` doesn't hold those of its followed deployments that are not known.
    pub(super) fn note_missing(&mut self, environment: &str) {
        for (id, _) in self.memory.followed().filter(|(_, following)| following.environment_id == environment) {
            self.known.entry(id.clone()).or_insert(Listing::Missing);
        }
    }

    pub(super) fn fails(&mut self, error: impl Into<RoundError>) {
        self.first_error.get_or_insert(error.into());
    }

    /// Adds the followed deployments of environments that were not looked at, as far as their records tell of them.
    pub(super) fn with_followed(mut self, environments: &[EnvironmentRecord]) -> Found {
        let running: HashSet<&String> = environments.iter().filter_map(|record| record.running.as_ref()).collect();
        for (id, _) in self.memory.followed() {
            let listing = || if running.contains(id) { Listing::Running } else { Listing::Unread };
            self.known.entry(id.clone()).or_insert_with(listing);
        }
        self
    }
}
