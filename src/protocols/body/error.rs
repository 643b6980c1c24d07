//! Why a body is refused.

/// Why a body is refused as a whole. Never has a byte of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// 400
    #[error("event {event}, byte {offset}: {reason}")]
    Invalid {
        /// The event's index, from 0.
        event: u64,
        /// The offset in the inflated body.
        offset: usize,
        /// What is wrong there.
        reason: String,
    },
    /// 415
    #[error(
        "Content-Type names a charset that is not decoded, and the body is not UTF-8: send UTF-8, ISO-8859-1 or \
         windows-1252"
    )]
    OtherCharset,
    /// 413
    #[error("event {event} is larger than {limit_bytes} bytes, the limit that ENV0_S3_LOG_MAX_EVENT_BYTES sets")]
    EventTooLarge {
        /// Which event, from 0.
        event: u64,
        /// [`Limits::max_event_bytes`](super::Limits::max_event_bytes).
        limit_bytes: usize,
    },
    /// 413
    #[error(
        "the body takes more than {limit_bytes} bytes without compression, the limit that ENV0_S3_LOG_MAX_BODY_BYTES sets"
    )]
    TooLarge {
        /// [`Limits::max_body_bytes`](super::Limits::max_body_bytes).
        limit_bytes: usize,
    },
    /// 413
    #[error(
        "the events take more than {limit_bytes} bytes as lines of JSON, three quarters of the larger of \
         ENV0_S3_LOG_MAX_INFLIGHT_BYTES and twice ENV0_S3_LOG_MAX_BODY_BYTES: short lines grow most, because each \
         is stored with its time and labels; send fewer events in one request, or raise ENV0_S3_LOG_MAX_INFLIGHT_BYTES"
    )]
    LinesTooLarge {
        /// [`Limits::max_lines_bytes`](super::Limits::max_lines_bytes).
        limit_bytes: usize,
    },
}

impl BodyError {
    /// The error for `part`, a slice of `body`, in event number `event`.
    pub fn invalid(body: &[u8], part: &[u8], event: u64, reason: impl ToString) -> Self {
        let offset = (part.as_ptr() as usize).saturating_sub(body.as_ptr() as usize);
        BodyError::Invalid { event, offset, reason: reason.to_string() }
    }

    /// serde_json's error for `part`, a slice of `body`, as an error of the whole body, in event number `event`.
    pub fn within(self, body: &[u8], part: &[u8], event: u64) -> Self {
        match self {
            BodyError::Invalid { offset, reason, .. } => Self::invalid(body, &part[offset..], event, reason),
            other => other,
        }
    }
}
