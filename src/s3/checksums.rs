//! Checksums of other algorithms than SHA-256 in an answer. None is asked for, so they are computed only where a store
//! sends one: its file is then read once more.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::path::PathBuf;

use aws_smithy_checksums::ChecksumAlgorithm::{self, Crc32, Crc32c, Crc64Nvme, Sha1};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::spool::disk::{READ_BUFFER_BYTES, open_regular};

/// Those that are judged, beside SHA-256.
const ALGORITHMS: [ChecksumAlgorithm; 4] = [Crc32, Crc32c, Crc64Nvme, Sha1];

/// The checksums of an answer that are not SHA-256, each as sent.
#[derive(Debug, Clone, Default)]
pub(super) struct Checksums(Vec<(ChecksumAlgorithm, String)>);

impl Checksums {
    pub(super) fn of(response: &HttpResponse) -> Checksums {
        let of_one = |algorithm: ChecksumAlgorithm| {
            let values = response.headers().get_all(format!("x-amz-checksum-{}", algorithm.as_str()));
            values.map(move |value| (algorithm, value.trim().to_owned()))
        };
        Checksums(ALGORITHMS.into_iter().flat_map(of_one).collect())
    }

    /// Whether all are those of the file's bytes. Reads the file only where there is one.
    pub(super) async fn are_of(self, file: PathBuf) -> io::Result<bool> {
        if self.0.is_empty() {
            return Ok(true);
        }
        tokio::task::spawn_blocking(move || self.compare(&file)).await.map_err(io::Error::other)?
    }

    fn compare(self, file: &std::path::Path) -> io::Result<bool> {
        let mut file = open_regular(OpenOptions::new().read(true), file)?;
        let mut computed: Vec<_> = self.0.into_iter().map(|(algorithm, sent)| (algorithm.into_impl(), sent)).collect();
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => computed.iter_mut().for_each(|(checksum, _)| checksum.update(&buffer[..read])),
            }
        }
        // One of an object that was made in parts ends with `-` and their number, so it differs, too.
        Ok(computed.into_iter().all(|(checksum, sent)| is_of(&sent, &checksum.finalize())))
    }
}

/// Whether a header's value is this digest. S3 writes it in base64. A store that writes the right digest otherwise (in hex,
/// in the alphabet of URLs, without padding or in quotes) keeps our bytes, and another copy under a new name would not end that.
pub(super) fn is_of(sent: &str, digest: &[u8]) -> bool {
    let sent = sent.trim().trim_matches('"');
    let hex = || digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let unpadded = sent.trim_end_matches('=');
    [STANDARD_NO_PAD, URL_SAFE_NO_PAD].iter().any(|base64| base64.encode(digest) == unpadded)
        || sent.eq_ignore_ascii_case(&hex())
}
