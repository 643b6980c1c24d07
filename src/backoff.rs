//! How long to wait before trying again: full jitter. Pure.

use std::time::Duration;

const FIRST_SECONDS: f64 = 1.0;
const CAP_SECONDS: f64 = 60.0;
const LEAST: Duration = Duration::from_millis(50);

/// The wait before the next attempt, after `attempt` failed ones (from 1): uniform between 0 and a
/// ceiling that starts at 1 s and doubles up to 60 s, but at least 50 ms. `random` is in `0.0..1.0`.
pub fn full_jitter(attempt: u32, random: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(6);
    let ceiling = (FIRST_SECONDS * f64::from(1_u32 << doublings)).min(CAP_SECONDS);
    Duration::from_secs_f64(ceiling * random.clamp(0.0, 1.0)).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_from_one_second_to_sixty() {
        let ceilings: Vec<u64> = (1..=9).map(|attempt| full_jitter(attempt, 1.0).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(full_jitter(u32::MAX, 1.0), Duration::from_secs(60));
        assert_eq!(full_jitter(0, 1.0), Duration::from_secs(1));
    }

    #[test]
    fn the_wait_is_spread_evenly_below_the_ceiling_and_never_nothing() {
        assert_eq!(full_jitter(4, 0.25), Duration::from_secs(2));
        assert_eq!(full_jitter(1, 0.0), Duration::from_millis(50));
    }
}
