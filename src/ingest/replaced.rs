//! Bytes that are not UTF-8 and were stored as U+FFFD: counted for `/status`, and told in the log once in a while. Nobody can
//! turn them back, so a sender of what is no text would lose it for as long as nobody looks at the metrics.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::batch::{ByType, LogType};
use crate::http::listener::Guest;
use crate::http::refusals::LastMet;
use crate::metric_table;

/// How many such bytes senders have sent since the process began.
static TOTALS: LazyLock<ByType<AtomicU64>> = LazyLock::new(ByType::default);

/// How many bytes of `log_type` from senders were replaced. Those that env0 answers a pull with are not among them: nobody
/// here could send them better.
pub fn total(log_type: LogType) -> u64 {
    TOTALS[log_type].load(Relaxed)
}

/// When it was met last in each log type.
#[derive(Default)]
pub(super) struct Replaced(ByType<LastMet>);

impl Replaced {
    /// Counts `bytes` that were replaced in what `guest` sent; the first after a while are told.
    pub(super) fn count(&self, log_type: LogType, bytes: u64, protocol: &str, guest: &Guest) {
        TOTALS[log_type].fetch_add(bytes, Relaxed);
        if self.0[log_type].is_news() {
            tracing::warn!(
                client.address = %guest.network(),
                protocol,
                log_type = log_type.as_str(),
                bytes,
                "bytes that are not UTF-8 were stored as U+FFFD, and can't be turned back: either the sender's Content-Type \
                 doesn't name its charset, or what it sent is no text (packed, encrypted, an image); more of them are only \
                 counted, in {}",
                metric_table::REPLACED_BYTES
            );
        }
    }
}
