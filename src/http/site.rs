//! Refuses requests that a web page of another site makes a visitor's browser send.
//!
//! A browser reaches addresses that only its machine can: a page of any site can send it to a listener on loopback or
//! in the same network. Two things tell. A page of another site shows in `Origin` or `Sec-Fetch-Site`, which no page
//! can forge or leave out. A page that had its own name resolved to this address (DNS rebinding) shows in `Host`, for
//! that name is the attacker's, and the attacker can only have names that the public DNS knows.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::http::refusals::Refused;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Last labels of names that the public DNS never has, or that only a resolver of this network answers: mDNS (`local`,
/// and so `cluster.local`), Kubernetes' short names (`svc`), the machine itself, and private zones (RFC 6761, RFC 6762,
/// RFC 8375; `internal` by ICANN's decision of 2024; `lan`, `home`, `corp` are never to be given away).
const PRIVATE_ENDINGS: [&str; 9] =
    ["local", "localhost", "localdomain", "svc", "internal", "lan", "home", "corp", "home.arpa"];

/// Which requests of browsers a listener takes.
#[derive(Debug, Clone, Default)]
pub struct Site {
    /// The listener has pages of its own, that may ask it, and that a link may lead to.
    pub has_pages: bool,
    /// Anyone who reaches it is let in, so that a name from the public DNS is refused. In small letters, names that are
    /// this machine's all the same; a domain stands for all below it. `None`: every name is taken.
    pub own_names: Option<Vec<String>>,
}

impl Site {
    /// Why a request is refused. A header that comes more than once must pass each time.
    pub(super) fn refusal(&self, method: &Method, target: &Uri, headers: &HeaderMap) -> Option<Refused> {
        if self.is_cross_site(method, headers) {
            return Some(Refused::CrossSite);
        }
        let own_names = self.own_names.as_deref()?;
        // A browser always sends `Host`. A probe of HTTP/1.0 need not. A target in absolute form names a host, too, and
        // that one is the request's.
        let is_known = |host: &HeaderValue| host.to_str().is_ok_and(|host| is_private(host, own_names));
        let known =
            headers.get_all(HOST).iter().all(is_known) && target.host().is_none_or(|host| is_private(host, own_names));
        (!known).then_some(Refused::ForeignHost)
    }

    fn is_cross_site(&self, method: &Method, headers: &HeaderMap) -> bool {
        // Few requests are a browser's: one look at the names that are there costs less than two searches by hash.
        if !headers.keys().any(|name| name == SEC_FETCH_SITE || name == ORIGIN) {
            return false;
        }
        let is_follow_up = || {
            let navigates = headers.contains_key(SEC_FETCH_MODE)
                && headers.get_all(SEC_FETCH_MODE).iter().all(|mode| mode == "navigate");
            self.has_pages && navigates && *method == Method::GET
        };
        let is_others = |site: &HeaderValue| site != "same-origin" && site != "none";
        if headers.get_all(SEC_FETCH_SITE).iter().any(is_others) && !is_follow_up() {
            return true;
        }
        let own = headers.get(HOST).filter(|_| self.has_pages).map(|host| host.as_bytes());
        let is_foreign = |origin: &HeaderValue| {
            let origin = origin.as_bytes();
            let authority = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
            !authority.is_some_and(|authority| own.is_some_and(|own| own.eq_ignore_ascii_case(authority)))
        };
        headers.get_all(ORIGIN).iter().any(is_foreign)
    }
}

/// Whether nobody but this network's own people can have given `host`, a name or address with
/// or without a port, its meaning.
fn is_private(host: &str, own_names: &[String]) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = without_port.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    let is_below = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    // A name of one label is no name of the public DNS.
    name.parse::<IpAddr>().is_ok()
        || !name.contains('.')
        || PRIVATE_ENDINGS.into_iter().any(is_below)
        || own_names.iter().any(|own| is_below(own))
}

/// The machine's own name, and the domains in which its resolver looks for short names: a cluster's own, whatever it is
/// called. They come from the machine's operator.
pub fn own_names() -> Vec<String> {
    let node = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    [vec![node], search_domains(&resolver)].concat()
}

fn search_domains(resolver: &str) -> Vec<String> {
    let lines = resolver.lines().filter_map(|line| line.trim().split_once(|c: char| c.is_ascii_whitespace()));
    let domains = lines.filter(|(keyword, _)| matches!(*keyword, "search" | "domain"));
    let domains = domains.flat_map(|(_, domains)| domains.split_ascii_whitespace());
    let domains = domains.map(|domain| domain.trim_matches('.').to_ascii_lowercase());
    // A whole public zone is nobody's own.
    domains.filter(|domain| domain.contains('.')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(site: &Site, method: Method, headers: &[(&'static str, &'static str)]) -> Option<Refused> {
        refusal_at(site, method, "/status", headers)
    }

    fn refusal_at(
        site: &Site,
        method: Method,
        target: &'static str,
        named: &[(&'static str, &'static str)],
    ) -> Option<Refused> {
        let mut headers = HeaderMap::new();
        for (name, value) in named {
            headers.append(*name, HeaderValue::from_static(value));
        }
        site.refusal(&method, &Uri::from_static(target), &headers)
    }

    #[test]
    fn a_header_that_comes_twice_must_pass_each_time() {
        let site = Site { has_pages: true, own_names: Some(Vec::new()) };
        for (name, good, bad, refused) in [
            ("sec-fetch-site", "same-origin", "cross-site", Refused::CrossSite),
            ("origin", "http://localhost", "http://evil.example", Refused::CrossSite),
            ("host", "localhost", "evil.example", Refused::ForeignHost),
        ] {
            for pair in [[good, bad], [bad, good]] {
                let headers = [("host", "localhost"), (name, pair[0]), (name, pair[1])];
                assert_eq!(refusal(&site, Method::GET, &headers), Some(refused), "{name}: {pair:?}");
            }
        }
        let modes = ["navigate", "no-cors"].map(|mode| ("sec-fetch-mode", mode));
        let headers = [[("host", "localhost"), ("sec-fetch-site", "cross-site")], modes].concat();
        assert_eq!(refusal(&site, Method::GET, &headers), Some(Refused::CrossSite));
    }

    #[test]
    fn the_host_of_an_absolute_target_is_judged_as_the_header_is() {
        let site = Site { has_pages: true, own_names: Some(Vec::new()) };
        let at = |target| refusal_at(&site, Method::GET, target, &[("host", "localhost")]);
        assert_eq!(at("http://evil.example/status"), Some(Refused::ForeignHost));
        assert_eq!(at("http://localhost@evil.example:9090/"), Some(Refused::ForeignHost));
        assert_eq!(at("http://localhost:9090/status"), None);
        assert_eq!(at("http://[::1]:9090/status"), None);
    }

    #[test]
    fn a_page_of_another_site_is_refused_and_the_listeners_own_is_not() {
        let ingest = Site::default();
        let admin = Site { has_pages: true, ..Site::default() };
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            for site in [&ingest, &admin] {
                let headers = [("host", "127.0.0.1:9090"), (name, value)];
                assert_eq!(refusal(site, Method::GET, &headers), Some(Refused::CrossSite), "{name}: {value}");
            }
        }
        let own = [("host", "127.0.0.1:9090"), ("origin", "http://127.0.0.1:9090"), ("sec-fetch-site", "same-origin")];
        assert_eq!(refusal(&admin, Method::GET, &own), None);
        assert_eq!(refusal(&ingest, Method::POST, &own), Some(Refused::CrossSite));
        assert_eq!(refusal(&admin, Method::GET, &[("host", "x"), ("sec-fetch-site", "none")]), None);
    }

    #[test]
    fn a_link_leads_to_a_page_and_a_form_leads_nowhere() {
        let link = [("host", "x"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        let admin = Site { has_pages: true, ..Site::default() };
        assert_eq!(refusal(&admin, Method::GET, &link), None);
        assert_eq!(refusal(&admin, Method::POST, &link), Some(Refused::CrossSite));
        assert_eq!(refusal(&Site::default(), Method::GET, &link), Some(Refused::CrossSite));
    }

    #[test]
    fn names_that_anybody_can_have_are_told_from_this_networks() {
        let site =
            Site { has_pages: true, own_names: Some(vec!["logs-7d9.example.net".into(), "prod.acme.com".into()]) };
        for host in [
            "127.0.0.1",
            "10.1.2.3:9090",
            "[::1]:9090",
            "[fe80::1]",
            "localhost",
            "LOCALHOST.:9090",
            "app.localhost",
            "env0-s3-logs",
            "env0-s3-logs:9090",
            "env0-s3-logs.env0.svc",
            "env0-s3-logs.env0.svc.cluster.local:9090",
            "ip-10-0-0-1.eu-west-1.compute.internal",
            "printer.local",
            "logs-7d9.example.net",
            "logs.env0.svc.prod.acme.com",
        ] {
            let headers = [("host", host)];
            assert_eq!(refusal(&site, Method::GET, &headers), None, "{host}");
        }
        for host in [
            "evil.example.com",
            "evil.com:9090",
            "127.0.0.1.evil.com",
            "localhost.evil.com",
            "acme.com",
            "a.com.",
            "a.svc.com",
        ] {
            let headers = [("host", host)];
            assert_eq!(refusal(&site, Method::GET, &headers), Some(Refused::ForeignHost), "{host}");
        }
        assert_eq!(refusal(&Site::default(), Method::GET, &[("host", "evil.com")]), None);
    }

    #[test]
    fn the_resolvers_domains_are_read_but_for_public_zones() {
        let resolver = "# search a.b\nnameserver 10.0.0.1\nsearch env0.svc.Acme.net svc.acme.net. com\n";
        assert_eq!(search_domains(resolver), ["env0.svc.acme.net", "svc.acme.net"]);
    }
}
