//! Web pages that make a visitor's browser ask: refused on both ports, while people, probes and the status page go on.

use crate::harness::{DEPLOYMENTS, Daemon, Raw, Setup, TOKEN, event, wait_until};
use crate::local_aws::LocalAws;

/// The status of a request with these lines of its head.
fn asks(to: std::net::SocketAddr, line: &str, headers: &[&str]) -> u16 {
    let mut raw = Raw::connect(to).unwrap();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let body = event("asked");
    raw.write(format!("{line} HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())).unwrap();
    raw.answer().unwrap().unwrap().status
}

fn posts(daemon: &Daemon, headers: &[&str]) -> u16 {
    asks(daemon.listen, &format!("POST {DEPLOYMENTS}"), headers)
}

const FOREIGN: [&str; 4] =
    ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"];

#[test]
fn a_page_of_another_site_reads_nothing_of_the_admin_port() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    for path in ["/status", "/metrics", "/", "/livez"] {
        let line = format!("GET {path}");
        for foreign in FOREIGN {
            assert_eq!(asks(daemon.admin, &line, &["Host: 127.0.0.1:9090", foreign]), 403, "{path} {foreign}");
        }
        for foreign in ["Host: evil.example", "Host: rebound.evil.com:9090", "Host: 127.0.0.1.evil.com"] {
            assert_eq!(asks(daemon.admin, &line, &[foreign]), 403, "{path} {foreign}");
        }
        for own in [
            "Host: 127.0.0.1:9090",
            "Host: localhost",
            "Host: env0-s3-logs",
            "Host: env0-s3-logs.env0.svc:9090",
            "Host: [::1]:9090",
        ] {
            assert_eq!(asks(daemon.admin, &line, &[own]), 200, "{path} {own}");
            let page = [own, "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"];
            assert_eq!(asks(daemon.admin, &line, &page), 200, "{path} {own} by the page itself");
        }
    }
    let link = ["Host: localhost:9090", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"];
    assert_eq!(asks(daemon.admin, "GET /", &link), 200, "a link to the page");
    assert_eq!(daemon.metric("connections_refused_total{reason=\"cross_site\"}"), Some(16.0));
    assert_eq!(daemon.metric("connections_refused_total{reason=\"foreign_host\"}"), Some(12.0));
    wait_until("each reason is said once", || daemon.log().count("WARN", "a connection was refused") == 2);
}

#[test]
fn a_page_of_another_site_posts_nothing_where_nobody_needs_a_token() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_S3_LOG_INGEST_TOKEN").set("ENV0_S3_LOG_INGEST_AUTH", "none");
    let daemon = setup.start();
    for foreign in FOREIGN {
        assert_eq!(posts(&daemon, &["Host: 127.0.0.1:8080", foreign]), 403, "{foreign}");
    }
    assert_eq!(posts(&daemon, &["Host: evil.example:8080"]), 403);
    assert!(!setup.spool_holds("asked"));
    for own in ["Host: 127.0.0.1:8080", "Host: localhost:8080", "Host: env0-s3-logs"] {
        assert_eq!(posts(&daemon, &[own]), 200, "{own}");
    }
}

#[test]
fn senders_with_a_token_may_call_the_daemon_by_any_name() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let token = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(posts(&daemon, &["Host: logs.example.com", &token]), 200);
    assert_eq!(posts(&daemon, &["Host: logs.example.com", &token, "Origin: https://logs.example.com"]), 403);
}
