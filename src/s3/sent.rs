//! How much of a request's body the connection has taken. What answers before it has all of an object can't have stored
//! it, whatever it says.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use aws_smithy_types::body::{Error, SdkBody};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// Bytes of a body that were taken so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent(Arc<AtomicU64>);

impl Sent {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// `body`, counted from now on.
    pub(super) fn count(&self, body: SdkBody) -> SdkBody {
        match body.content_length() {
            Some(0) => body,
            _ => SdkBody::from_body_1_x(Counted { body, sent: self.clone() }),
        }
    }
}

struct Counted {
    body: SdkBody,
    sent: Sent,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.sent.0.fetch_add(data.len() as u64, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.body)
    }
}
