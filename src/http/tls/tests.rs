use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::HandshakeKind;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key for `localhost`, PEM.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn write(&self, files: &TlsFiles) {
        let (cert, key) = self.issue();
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, key).unwrap();
    }

    /// A client that trusts this authority, with a certificate of its own, and those behind it, where one is given.
    fn client(&self, own: Option<(String, String)>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let certs = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(certs, key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

/// The kind of handshake after which `client` can exchange a byte with a listener that accepts by `settings`.
async fn handshake(client: &TlsConnector, settings: Arc<ServerConfig>) -> Option<HandshakeKind> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(mut stream) = TlsAcceptor::from(settings).accept(stream).await {
            let _ = stream.write_all(b"x").await;
            let _ = stream.shutdown().await;
        }
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = client.connect("localhost".try_into().unwrap(), stream).await.ok()?;
    stream.read_u8().await.ok()?;
    stream.get_ref().1.handshake_kind()
}

async fn speaks(client: &TlsConnector, settings: Arc<ServerConfig>) -> bool {
    handshake(client, settings).await.is_some()
}

/// What connections are accepted with after a look at the files.
fn looked(tls: &Tls) -> Arc<ServerConfig> {
    tls.look();
    tls.settings()
}

fn files(directory: &tempfile::TempDir) -> TlsFiles {
    TlsFiles { cert: directory.path().join("cert"), key: directory.path().join("key"), client_ca: None }
}

#[tokio::test]
async fn a_changed_certificate_is_used_for_new_connections_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    let (old, new) = (Authority::new(), Authority::new());
    old.write(&files);
    let mut tls = Tls::new(&files).unwrap();
    let inner = Arc::into_inner(tls.0).unwrap();
    let made = inner.made.rests_after(std::time::Duration::ZERO);
    tls = Tls(Arc::new(Inner { made, ..inner }));
    let (old_client, new_client) = (old.client(None), new.client(None));
    assert!(speaks(&old_client, looked(&tls)).await);
    assert!(!speaks(&new_client, looked(&tls)).await);

    let (cert, key) = new.issue();
    std::fs::write(&files.cert, cert).unwrap();
    assert!(speaks(&old_client, looked(&tls)).await, "the key doesn't fit yet");
    std::fs::write(&files.key, key).unwrap();
    assert!(speaks(&new_client, looked(&tls)).await);

    for broken in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&files.cert, broken).unwrap();
        assert!(speaks(&new_client, looked(&tls)).await, "{broken}");
    }
    std::fs::remove_file(&files.key).unwrap();
    assert!(speaks(&new_client, looked(&tls)).await);
    old.write(&files);
    assert!(speaks(&old_client, looked(&tls)).await);
}

#[tokio::test]
async fn a_client_that_comes_again_costs_no_signature_however_many_others_came_between() {
    let directory = tempfile::tempdir().unwrap();
    let (files, authority) = (files(&directory), Authority::new());
    authority.write(&files);
    let tls = Tls::new(&files).unwrap();
    let client = authority.client(None);
    assert_eq!(handshake(&client, tls.settings()).await, Some(HandshakeKind::Full));
    for _ in 0..300 {
        assert_eq!(handshake(&authority.client(None), tls.settings()).await, Some(HandshakeKind::Full));
    }
    assert_eq!(handshake(&client, tls.settings()).await, Some(HandshakeKind::Resumed));
    tls.reload();
    assert_eq!(handshake(&client, tls.settings()).await, Some(HandshakeKind::Full), "its settings have ended");
}

#[tokio::test]
async fn with_a_client_ca_only_its_clients_are_let_in() {
    let directory = tempfile::tempdir().unwrap();
    let (server, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let files = TlsFiles { client_ca: Some(directory.path().join("ca")), ..files(&directory) };
    server.write(&files);
    std::fs::write(files.client_ca.as_ref().unwrap(), clients.0.pem()).unwrap();
    let tls = Tls::new(&files).unwrap();
    assert!(speaks(&server.client(Some(clients.issue())), tls.settings()).await);
    assert!(!speaks(&server.client(Some(strangers.issue())), tls.settings()).await);
    assert!(!speaks(&server.client(None), tls.settings()).await);
}

#[tokio::test]
async fn a_client_with_more_certificates_than_a_chain_has_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (server, clients) = (Authority::new(), Authority::new());
    let files = TlsFiles { client_ca: Some(directory.path().join("ca")), ..files(&directory) };
    server.write(&files);
    std::fs::write(files.client_ca.as_ref().unwrap(), clients.0.pem()).unwrap();
    let tls = Tls::new(&files).unwrap();
    let large = || {
        let params = CertificateParams::new(vec![format!("{}.example", "x.".repeat(16 * 1024))]).unwrap();
        params.signed_by(&KeyPair::generate().unwrap(), &clients.0).unwrap().pem()
    };
    for (others, is_let_in) in [(clients.0.pem().repeat(4), true), (clients.0.pem().repeat(5), false), (large(), false)]
    {
        let (own, key) = clients.issue();
        let client = server.client(Some((own + &others, key)));
        assert_eq!(speaks(&client, tls.settings()).await, is_let_in, "{} bytes of others", others.len());
    }
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_variable() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(&directory);
    let message = |files: &TlsFiles| Tls::new(files).err().unwrap().to_string();
    assert!(message(&files).starts_with("ENV0_S3_LOG_TLS_CERT_FILE=\""), "{}", message(&files));
    Authority::new().write(&files);
    std::fs::write(&files.key, "").unwrap();
    assert!(message(&files).starts_with("ENV0_S3_LOG_TLS_KEY_FILE=\""), "{}", message(&files));
    Authority::new().write(&files);
    let files = TlsFiles { client_ca: Some(files.cert.with_extension("none")), ..files };
    assert!(message(&files).starts_with("ENV0_S3_LOG_TLS_CLIENT_CA_FILE=\""), "{}", message(&files));
}
