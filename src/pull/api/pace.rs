//! Stays under env0's limit: 1,000 requests in 60 s for each address, method and path.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Requests that may go at once after a pause.
const BURST: f64 = 100.0;
/// Together with the burst this makes at most 940 in 60 s.
const PER_SECOND: f64 = 14.0;
/// With more paths than this, those with a full bucket are forgotten.
const PATHS_MAX: usize = 1024;

/// A token bucket for each path.
#[derive(Default)]
pub(super) struct Pace(Mutex<HashMap<String, Bucket>>);

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// Takes a token and returns how long to wait for it. Tokens may be taken ahead of time.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = now.duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + passed * PER_SECOND).min(BURST) - 1.0;
        self.filled_at = now;
        Duration::from_secs_f64((-self.tokens).max(0.0) / PER_SECOND)
    }

    fn has_rested(&self, now: Instant) -> bool {
        self.tokens + now.duration_since(self.filled_at).as_secs_f64() * PER_SECOND >= BURST
    }
}

impl Pace {
    /// Waits until `path` may be asked for once more.
    pub(super) async fn take(&self, path: &str) {
        let wait = self.wait(path, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    fn wait(&self, path: &str, now: Instant) -> Duration {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= PATHS_MAX {
            buckets.retain(|_, bucket| !bucket.has_rested(now));
        }
        let bucket = buckets.entry(path.to_owned()).or_insert(Bucket { tokens: BURST, filled_at: now });
        bucket.take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sixty_seconds_take_more_than_a_thousand_requests_of_one_path() {
        let pace = Pace::default();
        let start = Instant::now();
        let mut now = start;
        let mut sent = Vec::new();
        while now < start + Duration::from_secs(180) {
            now += pace.wait("/audit/events", now);
            sent.push(now);
        }
        let most = sent
            .iter()
            .map(|first| sent.iter().filter(|at| **at >= *first && **at < *first + Duration::from_secs(60)).count());
        let most = most.max().unwrap();
        assert!((900..1000).contains(&most), "{most}");
    }

    #[test]
    fn another_path_is_not_held_up_and_rested_paths_are_forgotten() {
        let pace = Pace::default();
        let now = Instant::now();
        while pace.wait("/a", now).is_zero() {}
        for path in 0..PATHS_MAX * 2 {
            assert!(pace.wait(&format!("/b/{path}"), now + Duration::from_secs(path as u64)).is_zero());
        }
        assert!(pace.0.lock().unwrap().len() <= PATHS_MAX);
    }
}
