//! Lists an organization's environments, and an environment's deployments.

use std::collections::{HashSet, VecDeque};

use secrecy::SecretString;

use crate::pull::api::pages::PageSize;
use crate::pull::api::{Api, ApiError, Endpoint};
use crate::pull::deployments::follow::Listing;
use crate::pull::deployments::memory::DeploymentMemory;
use crate::pull::deployments::records::{
    DeploymentRecord, EnvironmentRecord, ID_MAX_BYTES, LONG_ID, ListedEnvironment,
};

/// env0 gives no more in one page.
const PAGE_MAX: usize = 100;
/// If the last page of environments is full, there may be another behind it. It is asked for only in every eighth
/// round, as long as it does not exist.
const PAGE_BEHIND_ROUNDS: u64 = 8;
/// An organization has far fewer environments. More than these would fill the memory.
const ENVIRONMENTS_MAX: usize = 20_000;
/// What their texts may have in sum; those of 20,000 have some 4 MB.
const ENVIRONMENTS_MAX_BYTES: usize = 16 * 1024 * 1024;
/// What is wrong with a list of more.
const TOO_MANY_ENVIRONMENTS: &str = "there are more than 20,000, or their names have more than 16 MiB";
/// What is wrong with a list whose next page brings nothing new although it is full.
const REPEATED: &str = "page after page holds the same records, so the parameter `offset` is ignored";
/// An environment has far fewer, so a list that goes on beyond them has no end.
const DEPLOYMENTS_MAX: usize = 200_000;
/// A list keeps this many of the deployments that had ended, the oldest. The others are left to the next round.
pub(super) const HISTORY_AT_ONCE: usize = 128;
/// The newest tokens of an environment are enough.
const TOKENS_MAX: usize = 16;
/// Stands for the time of a deployment that has none: after all others, so that it is never forgotten as an old one.
const NO_TIME: i64 = i64::MAX;

/// The lists of one organization.
pub(in crate::pull) struct Lists {
    api: Api,
    organization: String,
    environments_page: PageSize,
    deployments_page: PageSize,
    /// How often the environments were listed.
    rounds: u64,
    /// How many there were the last time.
    listed: usize,
}

/// What env0 lists of an organization.
pub(in crate::pull) struct Environments {
    /// Each once.
    pub(in crate::pull) records: Vec<EnvironmentRecord>,
    /// What is missing in the first record that can't be read.
    pub(in crate::pull) bad: Option<ApiError>,
    /// How many requests it took.
    pub(in crate::pull) requests: usize,
}

/// A deployment that is still to be read.
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) kind: Option<String>,
    pub(super) created: i64,
    pub(super) ended: Option<i64>,
    pub(super) listing: Listing,
    /// Whether it is followed already.
    followed: bool,
}

#[cfg(test)]
impl Listed {
    /// One without a time.
    pub(super) fn of(id: &str, listing: Listing) -> Listed {
        Listed { id: id.to_owned(), kind: None, created: NO_TIME, ended: None, listing, followed: false }
    }
}

/// What env0 lists of an environment.
#[derive(Default)]
pub(super) struct Look {
    /// The newest first.
    pub(super) deployments: VecDeque<Listed>,
    /// Whether some that had ended are left out.
    pub(super) some_left: bool,
    pub(super) tokens: Vec<SecretString>,
    /// When the newest of all was made, in milliseconds since 1970.
    pub(super) newest: i64,
    /// What is missing in the first answer that is not what env0 documents.
    pub(super) bad: Option<ApiError>,
}

impl Lists {
    pub(in crate::pull) fn new(api: Api, organization: &str) -> Lists {
        let page = || PageSize::between(1, PAGE_MAX);
        Lists {
            api,
            organization: organization.to_owned(),
            environments_page: page(),
            deployments_page: page(),
            rounds: 0,
            listed: 0,
        }
    }

    /// Lists the organization's environments.
    pub(in crate::pull) async fn environments(&mut self) -> Result<Environments, ApiError> {
        self.rounds += 1;
        let mut environments: Vec<EnvironmentRecord> = Vec::new();
        let mut ids = HashSet::new();
        let (mut listed, mut bytes, mut bad, mut requests) = (0, 0, None, 0);
        loop {
            let offset = listed.to_string();
            let query =
                [("organizationId", &*self.organization), ("includeSubEnvironments", "true"), ("offset", &*offset)];
            let page = self.api.page(Endpoint::Environments, &["environments"], &query, &self.environments_page);
            let (answer, limit) = page.await?;
            let page = answer.list::<ListedEnvironment<'_>>()?;
            bad = bad.or(page.bad);
            listed += page.elements;
            requests += 1;
            let (mut any_read, mut endless, before) = (false, false, environments.len());
            for record in page.records.into_iter().map(EnvironmentRecord::from) {
                if record.id.len() > ID_MAX_BYTES {
                    bad.get_or_insert(answer.malformed(LONG_ID));
                    continue;
                }
                any_read = true;
                if environments.len() >= ENVIRONMENTS_MAX || bytes >= ENVIRONMENTS_MAX_BYTES {
                    endless = true;
                    break;
                }
                // A new environment moves others to the next page, so one may come twice.
                if ids.insert(record.id.clone()) {
                    bytes += record.bytes();
                    environments.push(record);
                }
            }
            let full = page.elements >= limit;
            let repeated = full && any_read && environments.len() == before;
            endless |= full && listed >= ENVIRONMENTS_MAX;
            if repeated || endless {
                bad.get_or_insert(answer.malformed(if repeated { REPEATED } else { TOO_MANY_ENVIRONMENTS }));
            }
            let behind = listed == self.listed && !self.rounds.is_multiple_of(PAGE_BEHIND_ROUNDS);
            if !full || repeated || endless || behind {
                self.listed = listed;
                return Ok(Environments { records: environments, bad, requests });
            }
        }
    }

    /// The environment's deployments, as far back as some may not be stored yet.
    pub(super) async fn deployments(&self, environment: &str, memory: &DeploymentMemory) -> Result<Look, ApiError> {
        let remembered = memory.environments.get(environment).cloned().unwrap_or_default();
        let mut look = Look::default();
        let mut page_before = HashSet::new();
        let (mut offset, mut ended_kept) = (0, 0);
        loop {
            let at = offset.to_string();
            let path = ["environments", environment, "deployments"];
            let query = [("offset", &*at)];
            let page = self.api.page(Endpoint::Deployments, &path, &query, &self.deployments_page);
            let (answer, limit) = page.await?;
            let page = answer.list::<DeploymentRecord<'_>>()?;
            look.bad = look.bad.or(page.bad);
            let (mut any_read, mut any_new, mut any_recent) = (false, false, false);
            let mut this_page = HashSet::new();
            for record in page.records {
                let texts = [Some(&record.id), Some(&record.status), record.kind.as_ref()];
                if texts.into_iter().flatten().any(|text| text.len() > ID_MAX_BYTES) {
                    look.bad.get_or_insert(answer.malformed(LONG_ID));
                    continue;
                }
                any_read = true;
                // One that was made since the page before has moved the others.
                let repeated = page_before.contains(&record.id);
                if !this_page.insert(record.id.clone()) || repeated {
                    continue;
                }
                any_new = true;
                // Also that of a deployment that is stored: after a restart it may be the only one.
                if look.tokens.len() < TOKENS_MAX {
                    look.tokens.extend(record.oidc_token());
                }
                let is_final = record.is_final();
                let followed = memory.following.contains_key(&record.id);
                let done = remembered.done.contains_key(&record.id);
                let created = match record.created_millis() {
                    Some(created) => {
                        look.newest = look.newest.max(created);
                        created
                    }
                    None if !is_final || followed || done => NO_TIME,
                    // It is not known from before, and without a time nobody could tell whether it was stored before.
                    None => {
                        look.bad.get_or_insert(answer.malformed("a deployment lacks the member createdAt"));
                        continue;
                    }
                };
                // Those that ran when the environment was listed before are followed, so what is older was stored, or
                // had ended before the pull's beginning.
                let seen = created < remembered.done_before;
                any_recent |= !seen;
                let ended = record.ended_millis();
                let old = seen || ended.unwrap_or(created).max(created) < memory.from;
                if !followed && (done || (old && is_final)) {
                    continue;
                }
                let listing = if is_final { Listing::Ended(record.outcome()) } else { Listing::Running };
                look.deployments.push_back(Listed {
                    id: record.id,
                    kind: record.kind,
                    created,
                    ended,
                    listing,
                    followed,
                });
                ended_kept += usize::from(is_final && !followed);
            }
            while ended_kept > HISTORY_AT_ONCE
                && let Some(newest) =
                    look.deployments.iter().position(|listed| listed.listing.has_ended() && !listed.followed)
            {
                look.deployments.remove(newest);
                ended_kept -= 1;
                look.some_left = true;
            }
            page_before = this_page;
            offset += page.elements;
            let full = page.elements >= limit;
            let repeated = full && any_read && !any_new;
            let endless = full && offset >= DEPLOYMENTS_MAX;
            if repeated || endless {
                look.bad.get_or_insert(answer.malformed(if repeated {
                    REPEATED
                } else {
                    "there are more than 200,000"
                }));
            }
            let all_old = any_new && !any_recent;
            if !full || repeated || endless || all_old {
                return Ok(look);
            }
        }
    }
}
