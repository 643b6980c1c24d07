//! What is remembered of an organization's deployments.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::protocols::body::members;
use crate::pull::deployments::records::EnvironmentRecord;
use crate::pull::identity::{Identity, Known, Mark, Taken};
use crate::pull::line::json_of;
use crate::pull::place::Memory;
use crate::pull::whose::{Owner, Whose};

/// A deployment may appear in the list up to this long after newer ones; milliseconds.
const LATE_MILLIS: i64 = 3_600_000;
/// An environment that env0 no longer lists may come back. Its deployments are remembered for this long; milliseconds.
const UNLISTED_MILLIS: i64 = 90 * 24 * 3_600_000;
/// A deployment that is gone may come back. Where it was left is remembered for this long; milliseconds.
const GIVEN_UP_MILLIS: i64 = 24 * 3_600_000;
/// So many events of a deployment are remembered at most: of one page, or of all where env0
/// gives no cursor. They take 13 MiB.
const TAKEN_MAX: usize = 400_000;
/// So many lines of an uncertain origin are remembered at most, in the place. They take 2 MiB there.
const ANYWHERE_MAX: usize = 50_000;
/// The members of a line that say which event of which step it is. An event that is cut keeps them.
pub(super) const EVENT_STEP_DEPLOYMENT: [&str; 4] = ["eventId", "stepName", "deploymentLogId", "timestamp"];

/// What is remembered; times are milliseconds since 1970.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DeploymentMemory {
    /// Where the pull began; `None` in a place from before this was noted.
    #[serde(default)]
    pub(crate) began: Option<i64>,
    /// Deployments that had ended before this are not stored.
    pub(super) from: i64,
    /// Everything before this is stored.
    pub(in crate::pull) reached: i64,
    /// By id.
    pub(super) environments: BTreeMap<String, Environment>,
    /// Deployments that are being read, by id.
    pub(super) following: BTreeMap<String, Following>,
    /// Lines that a start has found and that may come from elsewhere than they say, because their events may have brought
    /// these members; by their bytes. Here until all that is followed was read once since.
    #[serde(default, skip_serializing_if = "Taken::is_empty")]
    pub(super) anywhere: Taken,
}

/// An environment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Environment {
    /// The state of its record when its deployments were last listed.
    pub(super) state: String,
    /// The time of that listing.
    pub(super) looked_at: i64,
    /// All deployments made before this are stored.
    pub(super) done_before: i64,
    /// Stored deployments made since then: id and time.
    pub(super) done: BTreeMap<String, i64>,
}

/// A deployment that is being read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Following {
    pub(super) environment_id: String,
    pub(super) environment_name: Option<String>,
    pub(super) project_id: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) created: i64,
    /// How far each step was read. Here only while the deployment is being read, or where its own file
    /// (see `Parts`) can't be written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) steps: Steps,
    /// Whether its last line is in the spool.
    pub(super) finished: bool,
    /// Whether all of its steps had ended when they were last listed.
    #[serde(default)]
    pub(super) steps_ended: bool,
    /// When it was first read after its end, or last read with something new. A deployment that had ended when it was
    /// found has the time of its end.
    #[serde(default)]
    pub(super) read_after_end: Option<i64>,
    /// Since when env0 doesn't know it.
    #[serde(default)]
    pub(super) gone_since: Option<i64>,
    /// When it was taken to be gone for good. If env0 lists it again after all, it is read on.
    #[serde(default)]
    pub(super) given_up_at: Option<i64>,
}

/// How far the logs of a deployment's steps were read, by the step's name: one that is tried again goes on in its log.
pub(crate) type Steps = BTreeMap<String, Step>;

/// How far a step's log was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// What the next page is asked with; `None` for the first.
    pub(super) next: Option<String>,
    /// Events that were read from there on, and the end of the page before, because a page may repeat it.
    taken: Taken,
    /// Whether it was read whole after it had ended.
    pub(super) ended: bool,
    /// When it was first read after its end, or last read with something new.
    #[serde(default)]
    pub(super) read_after_end: Option<i64>,
    /// Since when env0 doesn't know its log.
    #[serde(default)]
    pub(super) gone_since: Option<i64>,
    /// Which attempt at the step was read.
    #[serde(default)]
    pub(super) attempt: Option<String>,
    /// Identity of the log's first event, from its bytes.
    #[serde(default)]
    pub(super) first: Option<Identity>,
    /// Whether another attempt began the log anew. Its events may repeat the ids of the first attempt, so their bytes
    /// identify them.
    #[serde(default)]
    restarted: bool,
}

impl Step {
    /// The log begins anew.
    pub(super) fn restarted() -> Step {
        Step { restarted: true, ..Step::default() }
    }

    /// The same without the events that were taken.
    pub(super) fn outline(&self) -> Step {
        Step { taken: Taken::default(), next: self.next.clone(), attempt: self.attempt.clone(), ..*self }
    }

    /// The mark of an event of this log, from its stored line and that line's `eventId`.
    pub(super) fn mark(&self, deployment_step: [&str; 2], id: Option<&RawValue>, line: &[u8]) -> Mark {
        Mark::new(&deployment_step, id.filter(|_| !self.restarted), line)
    }

    /// Takes note of an event with this `timestamp`, and tells whether it was taken before.
    pub(super) fn take(&mut self, mark: &Mark, timestamp: Option<&str>) -> Known {
        self.taken.insert(mark, sign_of(timestamp))
    }

    /// Notes that a page was read whole. The next one may repeat its last events, `end`, and all that have `last_time`;
    /// others are forgotten. True if `next` is new.
    pub(super) fn go_on(&mut self, next: Option<String>, end: VecDeque<Mark>, last_time: Option<&str>) -> bool {
        if next.is_none() || next == self.next {
            return false;
        }
        self.next = next;
        if !end.is_empty() {
            let sign = sign_of(last_time);
            match last_time {
                Some(_) => self.taken.keep_only(sign),
                None => self.taken = Taken::default(),
            }
            for mark in end {
                self.taken.insert(&mark, sign);
            }
        }
        true
    }
}

/// Stands for a step's `timestamp`, which is env0's to write in any form, where [`Taken`] keeps a time. Two that differ
/// have the same sign with a chance of 1 to 10^14, and then an event is remembered for a page longer.
fn sign_of(timestamp: Option<&str>) -> i64 {
    timestamp.map_or(0, |timestamp| Identity::new(&[], None, timestamp.as_bytes()).short())
}

impl Following {
    /// How far a step was read: a new one, not at all.
    pub(super) fn step(&mut self, name: &str) -> &mut Step {
        self.steps.entry(name.to_owned()).or_default()
    }

    /// Members that a line of this `deployment` is given where it lacks them.
    pub(super) fn members<'a>(
        &'a self,
        deployment: &'a str,
        step: Option<&'a str>,
        organization: &'a str,
    ) -> [(&'static str, Option<&'a str>); 7] {
        [
            ("deploymentLogId", Some(deployment)),
            ("stepName", step),
            ("environmentId", Some(&self.environment_id)),
            ("environmentName", self.environment_name.as_deref()),
            ("projectId", self.project_id.as_deref()),
            ("organizationId", Some(organization)),
            ("deploymentType", self.kind.as_deref()),
        ]
    }

    /// Whether so many events are remembered that no further page can be taken.
    pub(super) fn is_full(&self) -> bool {
        self.steps.values().map(|step| step.taken.len()).sum::<usize>() > TAKEN_MAX
    }
}

impl DeploymentMemory {
    /// The memory of a pull that begins at `from`.
    pub(crate) fn beginning(from: DateTime<Utc>) -> DeploymentMemory {
        let from = from.timestamp_millis();
        DeploymentMemory { began: Some(from), from, reached: from, ..DeploymentMemory::default() }
    }

    /// Whether a line that was `found` may come from elsewhere than it says: it doesn't end in all the members that a line
    /// of that step is given.
    fn may_be_from_anywhere(&self, line: &[u8], found: Option<&Found<'_>>, whose: &Whose<'_>) -> bool {
        let Some(found) = found else {
            let [organization] = members(json_of(line), ["organizationId"]);
            // Another organization's own lines end in it.
            return whose.owner(organization) != Owner::Another || !ends_in(line, organization);
        };
        let Some(following) = self.following.get(&found.deployment) else { return true };
        if found.is_last_line() {
            return false;
        }
        let given = following.members(&found.deployment, found.step.as_deref(), whose.organization).into_iter();
        let given = given.filter_map(|(name, value)| Some(format!("\"{name}\":{}", Value::from(value?))));
        found.step.is_none() || !line.ends_with((given.collect::<Vec<_>>().join(",") + "}").as_bytes())
    }

    /// The deployments that are to be read in every round, with their ids.
    pub(super) fn followed(&self) -> impl Iterator<Item = (&String, &Following)> {
        self.following.iter().filter(|(_, following)| following.given_up_at.is_none())
    }

    /// When the one of `listed` was looked at whose last look is the oldest; `now` without any. Environments that env0
    /// no longer lists are not looked at.
    pub(super) fn oldest_look(&self, listed: &[EnvironmentRecord], now: i64) -> i64 {
        let known = listed.iter().filter_map(|record| self.environments.get(&record.id));
        known.map(|known| known.looked_at).min().unwrap_or(now)
    }

    /// Notes that the deployment is stored to its end.
    pub(super) fn done(&mut self, id: &str) {
        if let Some(following) = self.following.remove(id) {
            let environment = self.environments.entry(following.environment_id).or_default();
            environment.done.insert(id.to_owned(), following.created);
        }
    }

    /// All deployments of an environment in the state `state` were listed at `now`; the newest was made at `newest`.
    /// One that was made in the future, by a wrong clock, must not make those old that come before it.
    pub(super) fn listed(&mut self, environment_id: &str, state: &str, newest: i64, now: i64) {
        let followed = self.following.values().filter(|following| following.environment_id == environment_id);
        let open = followed.map(|following| following.created).min().unwrap_or(i64::MAX);
        let environment = self.environments.entry(environment_id.to_owned()).or_default();
        (environment.state, environment.looked_at) = (state.to_owned(), now);
        environment.done_before = environment.done_before.max(newest.min(open).min(now) - LATE_MILLIS);
        let done_before = environment.done_before;
        environment.done.retain(|_, created| *created >= done_before);
    }

    /// Forgets environments that have not been listed for long, and deployments that have long been gone. One that is
    /// missing from a single list is still known: else all of its deployments would be stored again. Returns the ids of
    /// the deployments.
    pub(super) fn forget_unlisted(&mut self, listed: &[EnvironmentRecord], now: i64) -> Vec<String> {
        let listed: BTreeSet<&str> = listed.iter().map(|environment| &*environment.id).collect();
        self.environments.retain(|id, known| listed.contains(&**id) || now - known.looked_at < UNLISTED_MILLIS);
        let given_up = |following: &Following| following.given_up_at.is_some_and(|at| now - at >= GIVEN_UP_MILLIS);
        let gone = self.following.iter().filter(|(_, following)| given_up(following)).map(|(id, _)| id.clone());
        let gone: Vec<String> = gone.collect();
        gone.iter().for_each(|id| self.done(id));
        gone
    }
}

/// Whether a line ends in this `organizationId`, or in that and a `deploymentType`, as [`Following::members`] are given.
fn ends_in(line: &[u8], organization: Option<&RawValue>) -> bool {
    let given = format!("\"organizationId\":{}", organization.unwrap_or(RawValue::NULL));
    let Some(at) = memchr::memmem::rfind(line, given.as_bytes()) else { return false };
    let kind = line[at + given.len()..].strip_prefix(b",\"deploymentType\":").and_then(|rest| rest.strip_suffix(b"}"));
    line.ends_with((given + "}").as_bytes()) || kind.is_some_and(|kind| serde_json::from_slice::<&str>(kind).is_ok())
}

/// The `eventId` of the line that says how a deployment ended.
pub(super) fn finished_id(deployment: &str) -> String {
    format!("{deployment}-finished")
}

impl Memory for DeploymentMemory {
    type Part = Steps;

    fn part_of(&self, line: &[u8], whose: &Whose<'_>) -> Option<String> {
        let found = Found::of(line, whose)?;
        (found.step.is_some() && self.following.contains_key(&found.deployment)).then_some(found.deployment)
    }

    fn kept(&mut self, id: &str) -> Option<&mut Steps> {
        self.following.get_mut(id).map(|following| &mut following.steps)
    }

    fn found(&mut self, line: &[u8], whose: &Whose<'_>, part: Option<&mut Steps>) {
        let found = Found::of(line, whose);
        if self.may_be_from_anywhere(line, found.as_ref(), whose) && self.anywhere.len() < ANYWHERE_MAX {
            self.anywhere.insert(&Mark::new(&[], None, line), 0);
        }
        let Some(found) = found else { return };
        let is_last = found.is_last_line();
        let Found { deployment, step, event, timestamp } = found;
        match (step, part) {
            (Some(step), Some(steps)) => {
                let read = steps.entry(step.clone()).or_default();
                let mark = read.mark([&deployment, &step], event, line);
                read.take(&mark, timestamp.map(RawValue::get));
            }
            (Some(_), None) => {}
            (None, _) => {
                if let Some(following) = self.following.get_mut(&deployment) {
                    following.finished |= is_last;
                }
            }
        }
    }

    fn parts(&self) -> impl Iterator<Item = &String> {
        self.following.keys()
    }
}

/// What a line says of where it comes from.
struct Found<'a> {
    deployment: String,
    step: Option<String>,
    event: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
}

impl<'a> Found<'a> {
    fn of(line: &'a [u8], whose: &Whose<'_>) -> Option<Found<'a>> {
        let [event, step, deployment, timestamp] = members(json_of(line), EVENT_STEP_DEPLOYMENT);
        let [organization] = members(json_of(line), ["organizationId"]);
        if whose.owner(organization) != Owner::This {
            return None;
        }
        Some(Found { deployment: text(deployment)?, step: text(step), event, timestamp })
    }

    /// Whether it says how its deployment ended.
    fn is_last_line(&self) -> bool {
        self.step.is_none() && text(self.event) == Some(finished_id(&self.deployment))
    }
}

fn text(value: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(value?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_a_page_its_last_events_and_those_of_its_last_time_are_known_and_no_others() {
        let mark = |number: u64| Mark::new(&["d", "s"], None, &number.to_be_bytes());
        let mut step = Step::default();
        // Found by a start, or taken by a version that remembered no times.
        step.take(&mark(0), None);
        for number in 0..1000 {
            let time = if (300..=990).contains(&number) { "5" } else { "9" };
            step.take(&mark(number), Some(time));
        }
        assert!(step.go_on(Some("next".into()), (900..1000).map(mark).collect(), Some("9")));
        let known = |number| step.taken.knows(&mark(number)) == Known::Yes;
        assert!((0..300).all(known) && (900..1000).all(known) && !(300..900).any(known));
        assert!(!step.go_on(Some("next".into()), VecDeque::new(), None), "the same page again");
    }
}
