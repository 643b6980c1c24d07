//! Pages of a bounded size: how many records one is asked for follows from how large the answers are.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pull::api::error::ANSWER_MAX_BYTES;
use crate::pull::api::{Answer, Api, ApiError, Endpoint, ErrorKind, Pieces};

/// After a larger answer the next page is asked for with half as many records. Where it can be, the answer itself is
/// given up: what is built of it would take as much memory again.
const LARGE_BYTES: usize = 4 * 1024 * 1024;
/// After a smaller answer the next page may have some more records.
const SMALL_BYTES: usize = 1024 * 1024;
/// It takes this many small answers to go from none back to the most.
const STEPS_TO_MOST: usize = 8;

/// How many records a page is asked for.
pub struct PageSize {
    least: usize,
    most: usize,
    now: AtomicUsize,
}

impl PageSize {
    /// Begins with `most` and never goes below `least`.
    pub fn between(least: usize, most: usize) -> PageSize {
        PageSize { least, most, now: AtomicUsize::new(most) }
    }

    fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// How many bytes an answer to a page of `asked` records may have.
    fn max_bytes(&self, asked: usize) -> usize {
        if asked > self.least { LARGE_BYTES } else { ANSWER_MAX_BYTES }
    }

    /// Takes note that an answer to a page of `asked` records was too large. Whether a page may have fewer.
    pub fn was_too_large(&self, asked: usize) -> bool {
        self.note(asked, usize::MAX);
        asked > self.least
    }

    /// Takes note that a page of `asked` records was read whole.
    pub fn was_read(&self, asked: usize, pieces: &Pieces) {
        self.note(asked, pieces.bytes());
    }

    /// Takes note of an answer of `bytes` to a page of `asked` records; more than [`LARGE_BYTES`] for one that was too
    /// large to be read.
    fn note(&self, asked: usize, bytes: usize) {
        let next = match bytes {
            LARGE_BYTES.. => (asked / 2).max(self.least),
            SMALL_BYTES.. => asked,
            _ => (asked + self.most.div_ceil(STEPS_TO_MOST)).min(self.most),
        };
        // Where several pages were asked for at once with the same size, the first one decides.
        let _ = self.now.compare_exchange(asked, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Api {
    /// [`Api::get`] with a `limit`, which is halved and asked with again as long as the answer is too large. Also
    /// returns that limit: a page with fewer records is the last.
    ///
    /// # Errors
    /// Those of [`Api::get`]; too large is one only when a page of the least size is.
    pub async fn page(
        &self,
        endpoint: Endpoint,
        path: &[&str],
        query: &[(&str, &str)],
        size: &PageSize,
    ) -> Result<(Answer, usize), ApiError> {
        loop {
            let asked = size.now();
            let limit = asked.to_string();
            let query: Vec<_> = query.iter().copied().chain([("limit", &*limit)]).collect();
            match self.get_up_to(size.max_bytes(asked), endpoint, path, &query).await {
                Ok((answer, bytes)) => {
                    size.note(asked, bytes);
                    return Ok((answer, asked));
                }
                Err(error) if error.kind == ErrorKind::TooLarge && size.was_too_large(asked) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// [`Api::pieces`] with a `limit`, which is also returned. It may turn out to be too large while it is read: see
    /// [`PageSize::was_too_large`].
    pub async fn page_in_pieces(
        &self,
        endpoint: Endpoint,
        path: &[&str],
        query: &[(&str, &str)],
        size: &PageSize,
        max_event_bytes: usize,
    ) -> Result<(Pieces, usize), ApiError> {
        loop {
            let asked = size.now();
            let limit = asked.to_string();
            let query: Vec<_> = query.iter().copied().chain([("limit", &*limit)]).collect();
            match self.pieces_up_to(size.max_bytes(asked), endpoint, path, &query, max_event_bytes).await {
                Ok(pieces) => return Ok((pieces, asked)),
                Err(error) if error.kind == ErrorKind::TooLarge && size.was_too_large(asked) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_halved_after_a_large_answer_and_grows_again_slowly() {
        let size = PageSize::between(2, 1000);
        let after = |bytes| {
            size.note(size.now(), bytes);
            size.now()
        };
        assert_eq!([after(usize::MAX), after(LARGE_BYTES), after(SMALL_BYTES)], [500, 250, 250]);
        assert_eq!([after(0), after(0)], [375, 500]);
        assert_eq!((0..20).fold(0, |_, _| after(LARGE_BYTES)), 2);
        assert_eq!((0..8).fold(0, |_, _| after(0)), 1000);
    }

    #[test]
    fn of_pages_asked_for_at_once_only_the_first_large_answer_halves() {
        let size = PageSize::between(1, 100);
        (0..8).for_each(|_| size.note(100, usize::MAX));
        assert_eq!(size.now(), 50);
    }
}
