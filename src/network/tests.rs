use std::path::Path;

use aws_smithy_runtime_api::client::http::{HttpClient, HttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::testing::{Server, answer, nobody};

/// A server for `localhost` whose certificate nobody trusts but who reads `ca_file`.
async fn private_server(ca_file: &Path) -> Server {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(ca_file, cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = builder.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    Server::start_tls(TlsAcceptor::from(Arc::new(config)), |_| answer(200, "private")).await
}

/// A forward proxy: tunnels what it is asked to connect to, and lists it with the credentials shown.
async fn tunnel() -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if client.read_buf(&mut head).await.unwrap() == 0 {
                        return;
                    }
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                log.lock().unwrap().push(head);
                let mut server = TcpStream::connect(target.replace("localhost", "127.0.0.1")).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address.to_string(), asked)
}

/// A GET as the AWS clients make theirs.
async fn get(network: &Network, url: &str) -> Result<u16, String> {
    let components = RuntimeComponentsBuilder::for_tests().build().unwrap();
    let connector = network.aws(Some(url)).http_connector(&HttpConnectorSettings::default(), &components);
    let answer = connector.call(HttpRequest::get(url).unwrap()).await;
    answer.map(|answer| answer.status().as_u16()).map_err(|error| causes(&error))
}

#[tokio::test]
async fn a_private_authority_is_trusted_by_every_client_once_it_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    let server = private_server(&ca_file).await;
    let url = format!("https://localhost:{}/", server.address.port());

    let stranger = Network::new(&config::Network::default()).unwrap();
    assert!(stranger.fetch(&url, 1024).await.is_err());
    assert!(get(&stranger, &url).await.is_err());
    assert!(server.seen().is_empty());

    let network =
        Network::new(&config::Network { ca_file: Some(("AWS_CA_BUNDLE", ca_file)), ..config::Network::default() })
            .unwrap();
    assert_eq!(network.fetch(&url, 1024).await.unwrap(), b"private");
    assert_eq!(get(&network, &url).await, Ok(200));
}

#[tokio::test]
async fn https_goes_through_its_proxy_with_the_credentials_of_its_url() {
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    let server = private_server(&ca_file).await;
    let (proxy, asked) = tunnel().await;
    let url = format!("https://localhost:{}/", server.address.port());
    for https_proxy in [format!("http://user:secret@{proxy}"), format!("user:secret@{proxy}")] {
        let config = config::Network {
            https_proxy: Some(https_proxy.into()),
            http_proxy: Some(nobody().await.into()),
            ca_file: Some(("AWS_CA_BUNDLE", ca_file.clone())),
            no_proxy: Vec::new(),
        };
        let network = Network::new(&config).unwrap();
        assert_eq!(network.fetch(&url, 1024).await.unwrap(), b"private");
        assert_eq!(get(&network, &url).await, Ok(200));
    }
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 4);
    for head in asked.iter().map(|head| head.to_lowercase()) {
        assert!(head.starts_with(&format!("connect localhost:{} http/1.1\r\n", server.address.port())), "{head}");
        assert!(head.contains("proxy-authorization: basic dxnlcjpzzwnyzxq="), "{head}");
    }
}

#[tokio::test]
async fn plain_http_goes_through_its_own_proxy_but_for_the_exceptions() {
    let proxy = Server::start(|_| answer(200, "by proxy")).await;
    let config = config::Network {
        https_proxy: Some(nobody().await.into()),
        http_proxy: Some(proxy.url().into()),
        ca_file: None,
        no_proxy: vec!["example.org".to_owned(), "127.0.0.0/8".to_owned()],
    };
    let network = Network::new(&config).unwrap();
    assert_eq!(network.fetch("http://s3.example.com/key", 1024).await.unwrap(), b"by proxy");
    assert_eq!(get(&network, "http://s3.example.com/key").await, Ok(200));
    let asked: Vec<_> = proxy.seen().into_iter().map(|request| request.uri).collect();
    assert_eq!(asked, ["http://s3.example.com/key"; 2]);

    let direct = Server::start(|_| answer(200, "direct")).await;
    assert_eq!(network.fetch(&direct.url(), 1024).await.unwrap(), b"direct");
    assert_eq!(get(&network, &direct.url()).await, Ok(200));
    assert!(get(&network, "http://sub.example.org.invalid/").await.is_ok(), "another domain: by proxy");
    assert_eq!(proxy.seen().len(), 3);
}

#[tokio::test]
async fn a_connection_that_never_was_is_told_apart() {
    let network = Network::new(&config::Network::default()).unwrap();
    let components = RuntimeComponentsBuilder::for_tests().build().unwrap();
    for url in [nobody().await, nobody().await.replace("http:", "https:"), "http://no-such-host.invalid/".to_owned()] {
        let connector = network.aws(Some(&url)).http_connector(&HttpConnectorSettings::default(), &components);
        let error = connector.call(HttpRequest::get(&url).unwrap()).await.unwrap_err();
        assert!(never_connected(&error), "{url}: {}", causes(&error));
    }
}

#[test]
fn what_cannot_be_used_is_told_without_the_proxys_password() {
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    let refused = |config: config::Network| Network::new(&config).err().unwrap().to_string();
    let with_ca =
        || config::Network { ca_file: Some(("AWS_CA_BUNDLE", ca_file.clone())), ..config::Network::default() };
    assert!(refused(with_ca()).contains("ca.pem"));
    for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&ca_file, text).unwrap();
        assert!(refused(with_ca()).contains("expected a file of PEM certificates"), "{text}");
    }
    for url in ["socks5://user:secret@proxy:1080", "http://user:secret@", "http://user:secret@proxy:99999"] {
        let proxy = || Some(SecretString::from(url));
        let https = refused(config::Network { https_proxy: proxy(), ..config::Network::default() });
        let http = refused(config::Network { http_proxy: proxy(), ..config::Network::default() });
        assert!(https.starts_with("HTTPS_PROXY: ") && http.starts_with("HTTP_PROXY: "), "{https} {http}");
        assert!(!format!("{https}{http}").contains("secret"));
    }
}

#[tokio::test]
async fn the_body_of_an_aws_services_answer_ends_with_an_error_after_64_kib() {
    let server = Server::start(|request| {
        let length = request.uri.trim_start_matches('/').parse().unwrap();
        answer(if length % 2 == 0 { 200 } else { 403 }, vec![b'x'; length])
    })
    .await;
    let network = Network::new(&config::Network::default()).unwrap();
    let components = RuntimeComponentsBuilder::for_tests().build().unwrap();
    for (client, length, whole) in [
        (network.aws(None), ANSWER_MAX_BYTES, true),
        (network.aws(None), ANSWER_MAX_BYTES + 1, false),
        (network.aws(None), ANSWER_MAX_BYTES + 2, false),
        (network.aws_with_answers_of(None, None), ANSWER_MAX_BYTES + 1, false),
        (network.aws_with_answers_of(None, None), ANSWER_MAX_BYTES + 2, true),
    ] {
        let connector = client.http_connector(&HttpConnectorSettings::default(), &components);
        let request = HttpRequest::get(format!("{}/{length}", server.url())).unwrap();
        let body = connector.call(request).await.unwrap().into_body();
        let read = http_body_util::BodyExt::collect(body).await;
        assert_eq!(read.map(|read| read.to_bytes().len()).ok(), whole.then_some(length));
    }
}

#[tokio::test]
async fn no_proxy_with_a_star_means_no_proxy_for_names_and_addresses() {
    let nobody = nobody().await;
    let config = config::Network {
        https_proxy: Some(nobody.clone().into()),
        http_proxy: Some(nobody.into()),
        ca_file: None,
        no_proxy: vec!["example.org".to_owned(), "*".to_owned()],
    };
    let network = Network::new(&config).unwrap();
    let direct = Server::start(|_| answer(200, "direct")).await;
    for url in [direct.url(), direct.url().replace("127.0.0.1", "localhost")] {
        assert_eq!(network.fetch(&url, 100).await.unwrap(), b"direct", "{url}");
        assert_eq!(get(&network, &url).await, Ok(200), "{url}");
    }
}

/// A server that answers each request with 103 `hints` times, or without an end where that is `None`, and then with
/// 200. What it sends is told when its client has closed the connection.
async fn hinting(hints: Option<usize>) -> (String, tokio::sync::mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (closed, is_closed) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let closed = closed.clone();
            tokio::spawn(async move {
                let _ = client.read(&mut [0; 4096]).await;
                let hint = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
                match hints {
                    Some(hints) => {
                        let _ = client.write_all(&hint.repeat(hints)).await;
                        let _ = client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    }
                    None => while client.write_all(hint).await.is_ok() {},
                }
                let _ = closed.send(());
            });
        }
    });
    (url, is_closed)
}

#[tokio::test]
async fn a_server_that_sends_on_elsewhere_is_told_apart_from_one_that_is_silent() {
    let server = Server::start(|_| {
        let mut response = answer(302, "");
        response.headers_mut().insert("location", "http://login.example.com/".parse().unwrap());
        response
    })
    .await;
    let proxies = config::Network::default();
    let network = Network::new(&proxies).unwrap();
    let words = network.fetch(&server.url(), 100).await.unwrap_err().to_string();
    assert!(way_out(&proxies, &words, "env0's API").contains("something answers in place of env0's API"), "{words}");
    let words = network.fetch(&nobody().await, 100).await.unwrap_err().to_string();
    assert!(way_out(&proxies, &words, "env0's API").contains("nothing answers"), "{words}");
}

#[tokio::test]
async fn informational_answers_without_an_end_are_given_up_after_sixteen() {
    let network = Network::new(&config::Network::default()).unwrap();
    for hints in [0, 16] {
        assert_eq!(get(&network, &hinting(Some(hints)).await.0).await, Ok(200), "{hints} hints");
    }
    let (url, mut is_closed) = hinting(None).await;
    let error = get(&network, &url).await.unwrap_err();
    assert!(error.contains("more than 16 informational answers"), "{error}");
    is_closed.recv().await.unwrap();
}
