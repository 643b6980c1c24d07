//! The system's clock, within the years that names and keys can have.

use std::time::SystemTime;

use chrono::{DateTime, Utc};

/// The latest second that [`now`] returns. Names and keys have four digits for the year. A whole year is left after it,
/// because each batch that is opened while the clock stands there takes one more microsecond.
const LATEST_CLOCK_SECONDS: i64 = 253_370_764_799;

/// The time by the system's clock, which may be set to anything: the start of 1970 where it is earlier, the end of 9998
/// where it is later.
pub fn now() -> DateTime<Utc> {
    at(SystemTime::now())
}

/// Why no daemon should start with this machine's clock; `None` where one can. No token and no certificate is valid then,
/// and keys would not say when a batch was made. A daemon that runs goes on, but answers nobody: HTTP has no form for the
/// `Date` of an answer.
pub fn clock_problem() -> Option<&'static str> {
    (!is_usable(SystemTime::now())).then_some("this machine's clock is before 1970 or beyond 9998")
}

fn is_usable(clock: SystemTime) -> bool {
    let since_1970 = clock.duration_since(SystemTime::UNIX_EPOCH);
    since_1970.is_ok_and(|since_1970| since_1970.as_secs() < LATEST_CLOCK_SECONDS.unsigned_abs())
}

fn at(clock: SystemTime) -> DateTime<Utc> {
    let since_1970 = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
    let nanos = if seconds < LATEST_CLOCK_SECONDS { since_1970.subsec_nanos() } else { 0 };
    DateTime::from_timestamp(seconds.min(LATEST_CLOCK_SECONDS), nanos).unwrap_or(DateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::batch::{BatchName, Codec, SpoolName};

    #[test]
    fn a_clock_that_http_has_no_date_for_is_not_usable() {
        let years = |years: u64| Duration::from_secs(years * 366 * 24 * 3600);
        let epoch = SystemTime::UNIX_EPOCH;
        assert!(is_usable(epoch) && is_usable(epoch + years(200)) && is_usable(SystemTime::now()));
        assert!(!is_usable(epoch - years(60)) && !is_usable(epoch + years(8137)));
    }

    #[test]
    fn a_clock_that_is_set_to_anything_names_batches_that_read_back() {
        let years = |years: u64| Duration::from_secs(years * 365 * 24 * 3600);
        let epoch = SystemTime::UNIX_EPOCH;
        let clocks = [epoch - years(100), epoch, epoch + years(8100), epoch + years(1_000_000)];
        for clock in clocks {
            let first = BatchName::open(at(clock), None, Codec::None);
            let second = BatchName::open(at(clock), Some(first.opened), Codec::None);
            assert!(first.opened < second.opened, "{clock:?}");
            for name in [first, second].map(SpoolName::Open) {
                assert_eq!(name.to_string().parse(), Ok(name), "{clock:?}");
            }
        }
        assert_eq!(at(epoch + Duration::from_millis(1500)).timestamp_millis(), 1500);
    }
}
