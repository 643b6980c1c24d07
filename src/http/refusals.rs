//! Counts, by reason, what a listener refuses before it is a request, and logs each reason once in a while.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::metric_table;
use axum::http::StatusCode;
use metrics::{Counter, counter};

/// What has not been met for so long is news when it is met again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The most characters of what else is known of a refusal.
const DETAIL_MAX_CHARS: usize = 500;

metric_table::label_values! {
    "env0_s3_logs_connections_refused_total", "reason":
    /// Why a connection, or what came on it, is refused.
    pub(super) enum Refused {
        /// HTTP that two readers could take for two different requests, or that is none.
        Malformed = "malformed",
        /// No `Host`, or more than one.
        Host = "host",
        /// HTTP/2, or another version that is not spoken here.
        Version = "version",
        /// A head of more than 16 KiB, or of more than 100 headers.
        HeadTooLarge = "head_too_large",
        /// A head or a handshake that did not come in time.
        Slow = "slow",
        /// An answer that the client does not read.
        Unread = "unread",
        /// TLS that can't be agreed on.
        Tls = "tls",
        /// The certificate of a client is missing, or of no CA that is trusted.
        ClientCertificate = "client_certificate",
        /// Closed for another one, at the limit of connections or of memory for what is unfinished.
        Limit = "limit",
        /// A web page of another site made a browser ask.
        CrossSite = "cross_site",
        /// A browser asked by a name that may be anybody's.
        ForeignHost = "foreign_host",
    }
}

impl Refused {
    /// What it is answered with, where there is an answer.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Refused::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Refused::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refused::Slow => StatusCode::REQUEST_TIMEOUT,
            Refused::CrossSite | Refused::ForeignHost => StatusCode::FORBIDDEN,
            Refused::Malformed
            | Refused::Host
            | Refused::Unread
            | Refused::Tls
            | Refused::ClientCertificate
            | Refused::Limit => StatusCode::BAD_REQUEST,
        }
    }

    /// For the client and for the log.
    pub(super) fn words(self) -> &'static str {
        match self {
            Refused::Malformed => "malformed HTTP: this is no HTTP/1.1 request, or its framing is ambiguous",
            Refused::Host => "a request of HTTP/1.1 needs exactly one Host header",
            Refused::Version => "this version of HTTP is not spoken here: use HTTP/1.1",
            Refused::HeadTooLarge => "the request's head is too large: at most 16384 bytes and 100 headers",
            Refused::Slow => "the request's head, or the TLS handshake, did not arrive within 10 s",
            Refused::Unread => "the client did not read its answer for 30 s",
            Refused::Tls => "the TLS handshake failed: does the client speak TLS here, and trust this certificate?",
            Refused::ClientCertificate => "the client shows no certificate of a CA in ENV0_S3_LOG_TLS_CLIENT_CA_FILE",
            Refused::Limit => {
                "there is no room for more connections (ENV0_S3_LOG_MAX_CONNECTIONS), or for more unfinished requests: \
                 the one that is missed least is closed"
            }
            Refused::CrossSite => "a web page of another site may not ask here",
            Refused::ForeignHost => {
                "asked by a name that may be anybody's: use the address, localhost, or a name that only this network has (x, x.svc, x.internal, x.local)"
            }
        }
    }
}

/// A refusal, and what exactly it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// The reason.
    pub(super) refused: Refused,
    /// For the client and for the log; empty where the reason tells all.
    pub(super) detail: &'static str,
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Fault {
        Fault { refused, detail: "" }
    }
}

/// How many were refused by all listeners since the process began. Kept here, too, because a [`Counter`] can't be read.
static TOTALS: [AtomicU64; Refused::ALL.len()] = [const { AtomicU64::new(0) }; Refused::ALL.len()];

/// How many were refused by all listeners, by reason; reasons that were never met are left out.
pub fn totals() -> BTreeMap<String, u64> {
    let totals = Refused::ALL.map(|refused| (refused.as_str().to_owned(), TOTALS[refused as usize].load(Relaxed)));
    totals.into_iter().filter(|(_, total)| *total > 0).collect()
}

/// The refusals of one listener.
pub(super) struct Refusals {
    listener: &'static str,
    reasons: [Reason; Refused::ALL.len()],
}

struct Reason {
    total: Counter,
    last: LastMet,
}

/// When a reason to refuse something was met last, so that the log tells it once in a while.
#[derive(Default)]
pub struct LastMet(Mutex<Option<Instant>>);

impl LastMet {
    /// It is met now. Whether that is news: the first time, and again after ten minutes without it.
    pub fn is_news(&self) -> bool {
        let now = Instant::now();
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        last.is_none_or(|last| now.duration_since(last) >= FORGOTTEN_AFTER)
    }
}

impl Refusals {
    /// No refusals yet, of the listener with this name.
    pub(super) fn new(listener: &'static str) -> Refusals {
        let reasons = Refused::ALL.map(|refused| Reason {
            total: counter!(metric_table::CONNECTIONS_REFUSED, "reason" => refused.as_str()),
            last: LastMet::default(),
        });
        Refusals { listener, reasons }
    }

    /// Counts one; the first after a while is said, with what else is known of it.
    pub(super) fn count(&self, refused: Refused, client: IpAddr, detail: &dyn Display) {
        let reason = &self.reasons[refused as usize];
        reason.total.increment(1);
        TOTALS[refused as usize].fetch_add(1, Relaxed);
        if reason.last.is_news() {
            // A client's certificate may make it long.
            let detail: String = detail.to_string().chars().take(DETAIL_MAX_CHARS).collect();
            tracing::warn!(
                listener = self.listener,
                client.address = %client,
                reason = refused.as_str(),
                detail = %detail,
                "a connection was refused: {}; more of them are only counted, in env0_s3_logs_connections_refused_total",
                refused.words()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place_in_the_list() {
        for (index, refused) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(refused as usize, index);
        }
    }
}
