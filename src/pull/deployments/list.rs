//! Lists an organization's environments, and an environment's deployments.

use std::collections::{HashSet, VecDeque};

use secrecy::SecretString;

use crate::pull::api::pages::PageSize;
use crate::pull::api::{Api, ApiError, Endpoint};
use crate::pull::deployments::follow::Listing;
use crate::pull::deployments::memory::{DeploymentMemory, Environment};
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
const TOO_MANY_DEPLOYMENTS: &str = "there are more than 200,000";
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
#[derive(Default)]
pub(in crate::pull) struct Environments {
    /// Each once.
    pub(in crate::pull) records: Vec<EnvironmentRecord>,
    /// What is missing in the first record that can't be read.
    pub(in crate::pull) bad: Option<ApiError>,
    /// How many requests it took.
    pub(in crate::pull) requests: usize,
}

/// How far a list is read.
struct Paging {
    /// Records so far, which is where the next page begins.
    offset: usize,
    /// A list of more is taken for one without an end.
    most: usize,
    /// What is wrong with such a list.
    too_many: &'static str,
}

/// What a page of a list brought.
#[derive(Default)]
struct Brought {
    /// A record that could be read.
    any: bool,
    /// One that did not come before.
    any_new: bool,
    /// More than the memory takes.
    too_many: bool,
}

impl Paging {
    /// Whether another page may follow one of `elements` records, of `limit` that were asked for.
    ///
    /// # Errors
    /// What is wrong with the list, which goes on without bringing anything, or for ever.
    fn after(&mut self, elements: usize, limit: usize, brought: &Brought) -> Result<bool, &'static str> {
        self.offset += elements;
        let full = elements >= limit;
        match () {
            () if full && brought.any && !brought.any_new => Err(REPEATED),
            () if brought.too_many || (full && self.offset >= self.most) => Err(self.too_many),
            () => Ok(full),
        }
    }
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

impl Listed {
    /// Whether it had ended before it was listed first.
    fn is_history(&self) -> bool {
        self.listing.has_ended() && !self.followed
    }
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
        let mut found = Environments::default();
        let (mut ids, mut bytes) = (HashSet::new(), 0);
        let mut paging = Paging { offset: 0, most: ENVIRONMENTS_MAX, too_many: TOO_MANY_ENVIRONMENTS };
        loop {
            let offset = paging.offset.to_string();
            let query =
                [("organizationId", &*self.organization), ("includeSubEnvironments", "true"), ("offset", &*offset)];
            let page = self.api.page(Endpoint::Environments, &["environments"], &query, &self.environments_page);
            let (answer, limit) = page.await?;
            let page = answer.list::<ListedEnvironment<'_>>()?;
            found.bad = found.bad.or(page.bad);
            found.requests += 1;
            let mut brought = Brought::default();
            for record in page.records.into_iter().map(EnvironmentRecord::from) {
                if record.id.len() > ID_MAX_BYTES {
                    found.bad.get_or_insert(answer.malformed(LONG_ID));
                    continue;
                }
                brought.any = true;
                if found.records.len() >= ENVIRONMENTS_MAX || bytes >= ENVIRONMENTS_MAX_BYTES {
                    brought.too_many = true;
                    break;
                }
                // A new environment moves others to the next page, so one may come twice.
                if ids.insert(record.id.clone()) {
                    brought.any_new = true;
                    bytes += record.bytes();
                    found.records.push(record);
                }
            }
            let more = paging.after(page.elements, limit, &brought).unwrap_or_else(|wrong| {
                found.bad.get_or_insert(answer.malformed(wrong));
                false
            });
            let behind = paging.offset == self.listed && !self.rounds.is_multiple_of(PAGE_BEHIND_ROUNDS);
            if !more || behind {
                self.listed = paging.offset;
                return Ok(found);
            }
        }
    }

    /// The environment's deployments, as far back as some may not be stored yet.
    pub(super) async fn deployments(&self, environment: &str, memory: &DeploymentMemory) -> Result<Look, ApiError> {
        let remembered = memory.environments.get(environment).cloned().unwrap_or_default();
        let mut look = Look::default();
        let mut page_before = HashSet::new();
        let mut paging = Paging { offset: 0, most: DEPLOYMENTS_MAX, too_many: TOO_MANY_DEPLOYMENTS };
        loop {
            let offset = paging.offset.to_string();
            let path = ["environments", environment, "deployments"];
            let query = [("offset", &*offset)];
            let page = self.api.page(Endpoint::Deployments, &path, &query, &self.deployments_page);
            let (answer, limit) = page.await?;
            let page = answer.list::<DeploymentRecord<'_>>()?;
            look.bad = look.bad.or(page.bad);
            let (mut brought, mut any_recent) = (Brought::default(), false);
            let mut this_page = HashSet::new();
            for record in page.records {
                let texts = [Some(&record.id), Some(&record.status), record.kind.as_ref()];
                if texts.into_iter().flatten().any(|text| text.len() > ID_MAX_BYTES) {
                    look.bad.get_or_insert(answer.malformed(LONG_ID));
                    continue;
                }
                brought.any = true;
                // One that was made since the page before has moved the others.
                let repeated = page_before.contains(&record.id);
                if !this_page.insert(record.id.clone()) || repeated {
                    continue;
                }
                brought.any_new = true;
                match look.take(record, memory, &remembered) {
                    Ok(is_recent) => any_recent |= is_recent,
                    Err(wrong) => drop(look.bad.get_or_insert(answer.malformed(wrong))),
                }
            }
            look.leave_newest();
            page_before = this_page;
            let more = paging.after(page.elements, limit, &brought).unwrap_or_else(|wrong| {
                look.bad.get_or_insert(answer.malformed(wrong));
                false
            });
            let all_old = brought.any_new && !any_recent;
            if !more || all_old {
                return Ok(look);
            }
        }
    }
}

impl Look {
    /// Takes a deployment, unless all of it is stored. True where older ones of its environment may not be stored yet.
    ///
    /// # Errors
    /// What the record lacks.
    fn take(
        &mut self,
        record: DeploymentRecord<'_>,
        memory: &DeploymentMemory,
        remembered: &Environment,
    ) -> Result<bool, &'static str> {
        // Also that of a deployment that is stored: after a restart it may be the only one.
        if self.tokens.len() < TOKENS_MAX {
            self.tokens.extend(record.oidc_token());
        }
        let is_final = record.is_final();
        let followed = memory.following.contains_key(&record.id);
        let done = remembered.done.contains_key(&record.id);
        let created = match record.created_millis() {
            Some(created) => {
                self.newest = self.newest.max(created);
                created
            }
            None if !is_final || followed || done => NO_TIME,
            // It is not known from before, and without a time nobody could tell whether it was stored before.
            None => return Err("a deployment lacks the member createdAt"),
        };
        // Those that ran when the environment was listed before are followed, so what is older was stored, or had ended
        // before the pull's beginning.
        let seen = created < remembered.done_before;
        let ended = record.ended_millis();
        let old = seen || ended.unwrap_or(created).max(created) < memory.from;
        if followed || !(done || (old && is_final)) {
            let listing = if is_final { Listing::Ended(record.outcome()) } else { Listing::Running };
            self.deployments.push_back(Listed { id: record.id, kind: record.kind, created, ended, listing, followed });
        }
        Ok(!seen)
    }

    /// Leaves the newest out of those that had ended, where there are more than a round takes.
    fn leave_newest(&mut self) {
        let history = self.deployments.iter().filter(|listed| listed.is_history()).count();
        for _ in HISTORY_AT_ONCE..history {
            if let Some(newest) = self.deployments.iter().position(Listed::is_history) {
                self.deployments.remove(newest);
            }
            self.some_left = true;
        }
    }
}
