//! Chooses the environments whose deployments a round lists: those that changed, those with a running deployment, and
//! those whose hourly turn it is.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::pull::deployments::memory::DeploymentMemory;
use crate::pull::deployments::records::EnvironmentRecord;

const HOUR_MILLIS: i64 = 3_600_000;

/// Spreads the turns evenly over the rounds, so that every environment's comes within an hour.
pub(super) struct Sweep {
    /// The time between two turns of an environment, in milliseconds.
    period: i64,
    /// Until when turns have been given, in milliseconds since 1970.
    given_until: i64,
}

impl Sweep {
    /// With a round every `interval`.
    pub(super) fn new(interval: Duration) -> Sweep {
        let interval = i64::try_from(interval.as_millis()).unwrap_or(HOUR_MILLIS);
        // A turn may wait one interval for its round, and that round may be one interval late.
        Sweep { period: (HOUR_MILLIS - 2 * interval.min(HOUR_MILLIS)).max(1), given_until: 0 }
    }

    /// The environments whose deployments are to be listed at `now`: those that moved first.
    pub(super) fn due<'e>(
        &mut self,
        environments: &'e [EnvironmentRecord],
        memory: &DeploymentMemory,
        now: i64,
    ) -> Vec<&'e EnvironmentRecord> {
        // The list of environments says of the latest deployment of each whether it runs; the end of any other deployment
        // is only in the environment's own list.
        let latest: BTreeSet<&str> = environments.iter().filter_map(|record| record.running.as_deref()).collect();
        let open = memory.followed().filter(|(id, following)| following.steps_ended || !latest.contains(&***id));
        let open: BTreeSet<&str> = open.map(|(_, following)| &*following.environment_id).collect();
        let moved = |environment: &EnvironmentRecord| {
            let known = memory.environments.get(&environment.id);
            known.is_none_or(|known| known.state != environment.state()) || open.contains(&*environment.id)
        };
        let (mut due, mut rest): (Vec<_>, Vec<_>) = environments.iter().partition(|environment| moved(environment));
        // A whole history may have to be listed for new ones, so they come last.
        due.sort_by_key(|environment| !memory.environments.contains_key(&environment.id));
        let looked_at = |environment: &EnvironmentRecord| {
            // A look that was noted by a clock that was ahead says nothing.
            let known = memory.environments.get(&environment.id).filter(|known| known.looked_at <= now);
            known.map_or(0, |known| known.looked_at)
        };
        rest.sort_by_key(|environment| looked_at(environment));
        // When the daemon was down for a while, all of them may be late.
        let late = rest.iter().take_while(|environment| now - looked_at(environment) >= self.period).count();
        let turns = self.turns(environments.len(), now);
        due.extend(rest.into_iter().take(turns.max(late)));
        due
    }

    /// At most `count` further environments, those with the newest deployments first: their records may have a token.
    pub(super) fn newest<'e>(
        environments: &'e [EnvironmentRecord],
        memory: &DeploymentMemory,
        due: &[&EnvironmentRecord],
        count: usize,
    ) -> Vec<&'e EnvironmentRecord> {
        let due: BTreeSet<&str> = due.iter().map(|environment| &*environment.id).collect();
        let mut rest: Vec<_> = environments.iter().filter(|environment| !due.contains(&*environment.id)).collect();
        let newest =
            |environment: &EnvironmentRecord| memory.environments.get(&environment.id).map(|known| known.done_before);
        rest.sort_by_key(|environment| Reverse(newest(environment)));
        rest.truncate(count);
        rest
    }

    /// How many of `environments` have their turn at `now`.
    fn turns(&mut self, environments: usize, now: i64) -> usize {
        let count = i64::try_from(environments).unwrap_or(i64::MAX).max(1);
        // The first round gives no turns, and neither does a clock that is set back.
        let passed = if self.given_until == 0 { 0 } else { (now - self.given_until).max(0) };
        let turns = passed.saturating_mul(count) / self.period;
        // The part of a turn that is left over counts in the next round.
        self.given_until = now - (passed - turns * self.period / count);
        usize::try_from(turns).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::deployments::memory::Following;

    const MINUTE: i64 = 60_000;
    const START: i64 = 1_800_000_000_000;
    const END: i64 = START + 5 * HOUR_MILLIS;

    fn environments(count: usize) -> Vec<EnvironmentRecord> {
        (0..count).map(|number| EnvironmentRecord::unlisted(format!("env-{number}"), None, None)).collect()
    }

    /// Notes that these were listed at `now`.
    fn list(memory: &mut DeploymentMemory, due: &[&EnvironmentRecord], now: i64) {
        for environment in due {
            let known = memory.environments.entry(environment.id.clone()).or_default();
            (known.state, known.looked_at) = (environment.state(), now);
        }
    }

    #[test]
    fn every_idle_environment_is_listed_each_hour_and_the_hour_is_spread_evenly() {
        for interval in [5, 30, 7 * 60, 3600] {
            let (environments, mut memory) = (environments(300), DeploymentMemory::default());
            let mut sweep = Sweep::new(Duration::from_secs(interval));
            let mut last = vec![START; 300];
            let mut most = 0;
            for now in (0..).map(|round| START + round * interval as i64 * 1000).take_while(|now| *now <= END) {
                let due = sweep.due(&environments, &memory, now);
                for environment in &due {
                    let number: usize = environment.id.trim_start_matches("env-").parse().unwrap();
                    last[number] = now;
                }
                let oldest = last.iter().min().unwrap();
                assert!(now - oldest <= HOUR_MILLIS, "not listed for {} s, every {interval} s", (now - oldest) / 1000);
                most = if now == START { 0 } else { most.max(due.len()) };
                list(&mut memory, &due, now);
            }
            let share = (300 * interval).div_ceil(3600_u64.saturating_sub(2 * interval).max(1)).min(300);
            assert!(most as u64 <= share, "{most} in a round, every {interval} s");
        }
    }

    #[test]
    fn three_hundred_idle_environments_take_five_requests_a_minute_beside_their_list() {
        let (environments, mut memory) = (environments(300), DeploymentMemory::default());
        let mut sweep = Sweep::new(Duration::from_secs(30));
        let mut requests = 0;
        for now in (START..=END).step_by(30_000) {
            let due = sweep.due(&environments, &memory, now);
            // In the first round all of them are new.
            requests += if now == START { 0 } else { due.len() };
            list(&mut memory, &due, now);
        }
        let a_minute = requests as f64 / ((END - START) / MINUTE) as f64;
        assert!((4.9..5.2).contains(&a_minute), "{a_minute}");
    }

    #[test]
    fn after_a_clock_that_was_ahead_all_are_listed_at_once_and_then_in_even_turns() {
        let (environments, mut memory) = (environments(300), DeploymentMemory::default());
        list(&mut memory, &environments.iter().collect::<Vec<_>>(), START);
        let mut sweep = Sweep::new(Duration::from_secs(30));
        let mut due = |now| {
            let due = sweep.due(&environments, &memory, now);
            list(&mut memory, &due, now);
            due.len()
        };
        let hours = |hours: i64| START + hours * HOUR_MILLIS;
        assert_eq!([due(START), due(START + 10 * MINUTE), due(hours(30))], [0, 50, 300]);
        // What was looked at by the clock that was ahead counts as never looked at.
        assert_eq!(due(hours(1)), 300);
        let turns: Vec<usize> = (1..=120).map(|round| due(hours(1) + round * MINUTE / 2)).collect();
        assert!(turns.iter().all(|turns| (2..=3).contains(turns)), "{turns:?}");
    }

    #[test]
    fn what_moved_comes_first_then_what_is_new_and_what_only_runs_is_not_listed() {
        let mut environments = environments(6);
        environments[3].running = Some("d-3".to_owned());
        environments[4].running = Some("d-4".to_owned());
        let mut memory = DeploymentMemory::default();
        list(&mut memory, &environments.iter().collect::<Vec<_>>(), START);
        memory.environments.remove("env-0");
        memory.environments.get_mut("env-2").unwrap().state = "before it moved".to_owned();
        for (number, steps_ended) in [(3, false), (4, true), (5, false)] {
            let environment_id = format!("env-{number}");
            let following = Following { environment_id, steps_ended, ..Following::default() };
            memory.following.insert(format!("d-{number}"), following);
        }
        let due = Sweep::new(Duration::from_secs(30)).due(&environments, &memory, START);
        let ids: Vec<&str> = due.iter().map(|environment| &*environment.id).collect();
        assert_eq!(ids, ["env-2", "env-4", "env-5", "env-0"]);
    }

    #[test]
    fn all_that_are_late_after_a_day_without_a_daemon_are_listed_in_the_first_round() {
        let (environments, mut memory) = (environments(300), DeploymentMemory::default());
        list(&mut memory, &environments.iter().collect::<Vec<_>>(), START);
        let due = |now| Sweep::new(Duration::from_secs(30)).due(&environments, &memory, now).len();
        assert_eq!((due(START + MINUTE), due(START + 24 * HOUR_MILLIS)), (0, 300));
    }
}
