//! Judges the certificates of clients. A client may send two hundred beside its own, named so that each could have been
//! issued by each. To try every chain of them takes a processor for half a minute, before anybody knows who it is.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

/// How many may come beside the client's own. The usual chain has one or two of them, and perhaps the root.
const OTHERS_MAX: usize = 4;
/// What they may have in sum: five of RSA keys of 4,096 bits. They are kept for as long as the connection is open.
const MAX_BYTES: usize = 12 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("the client sends more than {OTHERS_MAX} certificates beside its own, or more than {MAX_BYTES} bytes of them")]
struct TooMany;

/// Refuses clients that send too many certificates, and leaves the others to another verifier.
#[derive(Debug)]
pub(super) struct OfFewCertificates(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for OfFewCertificates {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let bytes = own.len() + others.iter().map(|other| other.len()).sum::<usize>();
        if others.len() > OTHERS_MAX || bytes > MAX_BYTES {
            return Err(Error::Other(OtherError(Arc::new(TooMany))));
        }
        self.0.verify_client_cert(own, others, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
