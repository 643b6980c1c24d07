//! The `Date` of answers. hyper's own would end the process where the clock stands before 1970 or beyond the year 9999.

use std::cell::RefCell;
use std::time::SystemTime;

use axum::http::HeaderValue;
use chrono::{DateTime, Datelike};

thread_local! {
    /// The last second that was asked for and its text, because most answers share it with others.
    static LAST: RefCell<(u64, Option<HeaderValue>)> = const { RefCell::new((u64::MAX, None)) };
}

/// The date by the machine's clock, as RFC 9110 (section 5.6.7) writes it; `None` where it has no form for it.
pub(super) fn date() -> Option<HeaderValue> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    LAST.with_borrow_mut(|last| {
        if last.0 != seconds {
            *last = (seconds, text(seconds));
        }
        last.1.clone()
    })
}

fn text(seconds: u64) -> Option<HeaderValue> {
    let date = DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)?;
    let text = (date.year() <= 9999).then(|| date.format("%a, %d %b %Y %H:%M:%S GMT").to_string())?;
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_that_http_has_no_form_for_has_no_date() {
        let date = |seconds| text(seconds).map(|date| date.to_str().unwrap().to_owned());
        assert_eq!(date(784_111_777).as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(date(253_402_300_799).as_deref(), Some("Fri, 31 Dec 9999 23:59:59 GMT"));
        for seconds in [253_402_300_800, u64::MAX / 2, u64::MAX] {
            assert_eq!(date(seconds), None);
        }
    }
}
