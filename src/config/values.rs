//! From the text of a variable to its value. Every parser's error says what was expected.

pub(super) mod aws;

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use reqwest::Url;

use super::slips::token_not_meant;
use crate::batch::LogType;

/// The shortest static token; shorter ones can be guessed.
pub const INGEST_TOKEN_MIN_CHARS: usize = 16;

/// The longest URL. Far longer ones make the HTTP client end the process, and `spool/manifest.rs` reads back no longer endpoint.
const URL_MAX_BYTES: usize = 4096;

/// What a parser expected instead of the value that it was given.
pub(super) type Expected = String;

pub(super) type Parsed<T> = Result<T, Expected>;

/// A rule for a text.
pub(super) type Rule = fn(&str) -> Parsed<String>;

fn check<T>(holds: bool, value: T, expected: &str) -> Parsed<T> {
    if holds { Ok(value) } else { Err(expected.to_owned()) }
}

/// A value that is taken as it is.
pub(super) fn text(value: &str) -> Parsed<String> {
    if value.lines().nth(1).is_some() {
        return Err("one line alone".to_owned());
    }
    check(!value.chars().any(char::is_control), value.to_owned(), "text without control characters")
}

/// A file's or folder's path. Only a shell knows `~` and `$HOME`: here they would be names.
pub(super) fn path(value: &str) -> Parsed<String> {
    if value.contains("://") {
        return Err("a path, not a URL".to_owned());
    }
    check(!value.starts_with(['~', '$']), text(value)?, "a path in full: no shell replaces ~ or $HOME here")
}

/// A folder that belongs to the daemon alone.
pub(super) fn own_folder(value: &str) -> Parsed<String> {
    check(!value.trim_matches('/').is_empty(), path(value)?, "a folder for this daemon alone, not the root")
}

/// A token as STS takes it, mostly a JWT: one word of printable ASCII, sent as it is.
pub(super) fn oidc_token(value: &str) -> Parsed<String> {
    let holds = value.bytes().all(|byte| byte.is_ascii_graphic());
    check(holds, value.to_owned(), "the token alone, one word of printable ASCII without \"Bearer\" before it")
}

/// `true`/`false`, `1`/`0`, `yes`/`no`, `on`/`off`, in any case.
pub(super) fn boolean(value: &str) -> Parsed<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("true or false (also 1/0, yes/no, on/off)".to_owned()),
    }
}

/// One of a closed set of words, in any case.
pub(super) fn one_of<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&str) -> Parsed<T> {
    move |value| {
        let found = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            format!("one of {}", words.join(", "))
        })
    }
}

/// A whole number within `least..=most`.
pub(super) fn count(least: usize, most: usize) -> impl Fn(&str) -> Parsed<usize> {
    move |value| {
        let number = value.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("a whole number from {least} to {most}"))
    }
}

/// Splits `64MiB` into its number and its unit.
fn number_and_unit(value: &str) -> Option<(u64, &str)> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// Bytes: `500000`, `64MiB`, `10GiB`; KiB, MiB, GiB, TiB count by 1024, KB, MB, GB, TB by 1000. At least 1 and at
/// most `most` bytes.
pub(super) fn size(most: u64) -> impl Fn(&str) -> Parsed<u64> {
    move |value| {
        let bytes = number_and_unit(value).and_then(|(number, unit)| {
            let factor: u64 = match unit.to_ascii_lowercase().as_str() {
                "" | "b" => 1,
                "kib" => 1 << 10,
                "mib" => 1 << 20,
                "gib" => 1 << 30,
                "tib" => 1 << 40,
                "kb" => 1_000,
                "mb" => 1_000_000,
                "gb" => 1_000_000_000,
                "tb" => 1_000_000_000_000,
                _ => return None,
            };
            number.checked_mul(factor)
        });
        let limit = if most == u64::MAX { String::new() } else { format!(" of at most {}", show_size(most)) };
        bytes.filter(|bytes| (1..=most).contains(bytes)).ok_or_else(|| {
            let meant = size_meant(value).map(|meant| format!("; here {meant}")).unwrap_or_default();
            format!("a size{limit}: bytes such as 500000, or with a unit such as 64MiB or 10GiB{meant}")
        })
    }
}

/// What `10G`, `10Gi` and `1.5GiB` are written as here.
fn size_meant(value: &str) -> Option<String> {
    let (number, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit() && c != '.')?);
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('i') {
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * f64::from(1 << 10).powi(shift / 10);
    // In whole units of the next smaller kind at least, so that no long number of bytes comes of it.
    let whole = (1.0..1e15).contains(&bytes) && (bytes / 1024.0).fract() == 0.0;
    whole.then(|| show_size(bytes as u64))
}

/// `bytes` in the largest binary unit that leaves a whole number.
pub(super) fn show_size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().find(|(_, shift)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift));
    unit.map_or(bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// A duration within `least..=most`: `90s`, `5m`, `2h`, `500ms`; a bare number is seconds.
pub(super) fn duration(least: Duration, most: Duration) -> impl Fn(&str) -> Parsed<Duration> {
    move |value| {
        let parsed = number_and_unit(value).and_then(|(number, unit)| match unit.to_ascii_lowercase().as_str() {
            "ms" => Some(Duration::from_millis(number)),
            "" | "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "d" => number.checked_mul(86_400).map(Duration::from_secs),
            _ => None,
        });
        parsed.filter(|parsed| (least..=most).contains(parsed)).ok_or_else(|| {
            let least = if least.is_zero() { "0s".to_owned() } else { format!("{least:?}") };
            let meant = number_and_unit(value).and_then(|(number, unit)| Some(format!("{number}{}", unit_of(unit)?)));
            let meant = meant.map(|meant| format!("; here {meant}")).unwrap_or_default();
            format!("a duration from {least} to {most:?}, such as 90s, 5m or 3600 (seconds){meant}")
        })
    }
}

/// The unit that a word for it stands for: `m` for `min` and `minutes`.
fn unit_of(word: &str) -> Option<char> {
    let word = word.to_ascii_lowercase();
    let words = ["seconds", "minutes", "hours", "hrs", "days"];
    let found = words.iter().find(|long| word.len() > 1 && long.starts_with(word.trim_end_matches('s')))?;
    found.chars().next()
}

/// `IP:port`.
pub(super) fn socket_address(value: &str) -> Parsed<SocketAddr> {
    value.parse().map_err(|_| "an IP address and a port, such as 127.0.0.1:8080 or [::]:8080".to_owned())
}

/// Whether the addresses clash: the same port, and the same IP or one that includes the other (`[::]` includes IPv4).
pub(super) fn share_a_port(one: SocketAddr, other: SocketAddr) -> bool {
    let includes = |all: IpAddr, other: IpAddr| all.is_unspecified() && (all.is_ipv6() || other.is_ipv4());
    let [a, b] = [one, other].map(|address| address.ip().to_canonical());
    one.port() == other.port() && one.port() != 0 && (a == b || includes(a, b) || includes(b, a))
}

/// Comma-separated values; the empty ones are left out.
pub(super) fn list(value: &str) -> Parsed<Vec<String>> {
    let items: Vec<_> = value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect();
    check(!items.is_empty(), items, "one or more values, separated by commas")
}

/// Comma-separated subjects of OIDC tokens. They are compared as a whole, so a pattern would let nobody in.
pub(super) fn subjects(value: &str) -> Parsed<Vec<String>> {
    let subjects = list(value)?;
    if subjects.iter().any(|subject| organization_ids(subject).is_ok()) {
        return Err("subjects, such as auth0|0123456789abcdef01234567; an organization's id goes into \
                    ENV0_S3_LOG_OIDC_ORGANIZATION_ID"
            .to_owned());
    }
    let holds =
        |subject: &String| !subject.contains('*') && !subject.ends_with('|') && !subject.contains(char::is_whitespace);
    check(subjects.iter().all(holds), subjects, "whole subjects, separated by commas: there are no patterns")
}

/// Comma-separated ids of env0 organizations: UUIDs, and not the zeros of an example.
pub(super) fn organization_ids(value: &str) -> Parsed<Vec<String>> {
    let ids = list(value)?;
    let holds = |id: &String| {
        let groups: Vec<_> = id.split('-').map(str::len).collect();
        let digits = id.bytes().filter(|byte| *byte != b'-');
        groups == [8, 4, 4, 4, 12]
            && digits.clone().all(|byte| byte.is_ascii_hexdigit())
            && digits.clone().any(|byte| byte != b'0')
    };
    check(
        ids.iter().all(holds),
        ids,
        "ids of env0 organizations (UUIDs, as in the address of env0's Organization Settings), separated by commas",
    )
}

/// Comma-separated log types; `none` is none of them.
pub(super) fn log_types(value: &str) -> Parsed<Vec<LogType>> {
    if value.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let types = list(value)?.into_iter().map(|item| one_of(&LogType::ALL.map(|known| (known.as_str(), known)))(&item));
    let types: Result<BTreeSet<_>, _> = types.collect();
    types.map(Vec::from_iter).map_err(|_| {
        let known = LogType::ALL.map(LogType::as_str).join(", ");
        format!("none, or one or more of {known}, separated by commas")
    })
}

/// A moment that events can come from: RFC 3339, or a date, which is its first moment in UTC. env0's events are
/// younger than the year 2000, and none comes from the future.
pub(super) fn past_moment(value: &str) -> Parsed<DateTime<Utc>> {
    let date = || Some(value.parse::<NaiveDate>().ok()?.and_time(NaiveTime::MIN).and_utc());
    let moment = DateTime::parse_from_rfc3339(value).ok().map(|moment| moment.to_utc()).or_else(date);
    let moment = moment.ok_or("a time such as 2026-01-01T00:00:00Z, or a date such as 2026-01-01")?;
    let year_2000 = DateTime::from_timestamp(946_684_800, 0).unwrap_or_default();
    check(moment >= year_2000, moment, "a time between the year 2000 and now; env0 is younger than this one")?;
    check(moment <= crate::batch::now(), moment, "a time between the year 2000 and now; this one is still to come")
}

/// The id of an API key. In HTTP a colon ends it, and the secret comes after.
pub(super) fn key_id(value: &str) -> Parsed<String> {
    check(!value.contains(':'), text(value)?, "the API key's id alone, without its secret behind it")
}

/// Comma-separated ids of env0's.
pub(super) fn ids(value: &str) -> Parsed<Vec<String>> {
    let ids = distinct(list(value)?);
    let is_example = |id: &String| id.bytes().all(|byte| matches!(byte, b'0' | b'-'));
    if ids.iter().any(is_example) {
        return Err("ids of your own, not the zeros of an example".to_owned());
    }
    check(
        ids.iter().all(|id| is_env0_id(id)),
        ids,
        "ids, separated by commas: at most 64 letters, digits, - and _ each",
    )
}

/// Whether `id` can be an id of env0's: it becomes part of file names and of addresses.
pub fn is_env0_id(id: &str) -> bool {
    let allowed = |byte| matches!(byte, b'-' | b'_') || u8::is_ascii_alphanumeric(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

/// Each of `ids` once, in the order of the first of each: one that is named twice would be pulled twice.
pub fn distinct(mut ids: Vec<String>) -> Vec<String> {
    let mut named = HashSet::new();
    ids.retain(|id| named.insert(id.clone()));
    ids
}

/// A static token: it travels in a header, so it is printable ASCII without spaces.
///
/// # Errors
/// What was expected.
pub fn ingest_token(value: &str) -> Parsed<String> {
    if let Some(expected) = token_not_meant(value) {
        return Err(expected);
    }
    let mut parts = value.split([',', ';']).map(str::len);
    if value.contains([',', ';']) && parts.all(|chars| chars >= INGEST_TOKEN_MIN_CHARS) {
        return Err(
            "one token, and not several with a comma or semicolon between them (ENV0_S3_LOG_INGEST_TOKEN_FILE \
                    takes several, one a line)"
                .to_owned(),
        );
    }
    let holds = value.len() >= INGEST_TOKEN_MIN_CHARS && value.bytes().all(|byte| byte.is_ascii_graphic());
    let expected = format!("{INGEST_TOKEN_MIN_CHARS} or more printable ASCII characters without spaces");
    check(holds, value.to_owned(), &expected)
}

/// An absolute `http` or `https` URL of a sane length. A name and password in it are refused, unless `userinfo_allowed`.
fn http_url(value: &str, userinfo_allowed: bool) -> Parsed<Url> {
    // A URL's parser drops line breaks and escapes spaces: another address than the one that was written.
    if value.contains(|character: char| character.is_whitespace() || character.is_control()) {
        return Err("a URL alone, without white space or control characters in it".to_owned());
    }
    if value.len() > URL_MAX_BYTES {
        return Err(format!("a URL of at most {URL_MAX_BYTES} bytes; this one has {}", value.len()));
    }
    let url = Url::parse(value).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or("an http:// or https:// URL")?;
    let userinfo = !url.username().is_empty() || url.password().is_some();
    check(userinfo_allowed || !userinfo, url, "a URL without a user name and password in it")
}

/// A URL as it was written, without a `/` at its end.
pub(super) fn endpoint_url(value: &str) -> Parsed<String> {
    let url = http_url(value, false)?;
    let holds = url.query().is_none() && url.fragment().is_none();
    check(holds, value.trim_end_matches('/').to_owned(), "a URL without a query or fragment")
}

/// The issuer as it was written: issuers are compared as text.
pub(super) fn issuer_url(value: &str) -> Parsed<String> {
    let url = http_url(value, false)?;
    if url.path().contains("/.well-known/") {
        return Err("the issuer itself, without /.well-known/… behind it".to_owned());
    }
    check(url.query().is_none() && url.fragment().is_none(), value.to_owned(), "a URL without a query")
}

/// A URL that may hold a secret anywhere.
pub(super) fn secret_url(value: &str) -> Parsed<String> {
    http_url(value, true).map(|_| value.to_owned())
}

/// A proxy's URL; `http://` where there is no scheme, as curl has it. A word that means "none" is not a proxy's name.
pub(super) fn proxy_url(value: &str) -> Parsed<String> {
    const NO_PROXY: [&str; 7] = ["none", "no", "off", "false", "true", "direct", "null"];
    if NO_PROXY.iter().any(|word| word.eq_ignore_ascii_case(value)) {
        return Err("a proxy's URL (for no proxy, leave the variable out)".to_owned());
    }
    let url = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    http_url(&url, true).map(|_| url)
}

/// `NO_PROXY`: hosts, domains, networks and `*`, separated by commas or, as curl has it, white space. An entry's
/// scheme, port and path are left out, and `*.example.com` becomes `.example.com`: the clients know no other form.
pub(super) fn no_proxy(value: &str) -> Parsed<Vec<String>> {
    let entries = value.split([',', ' ', '\t']).map(|entry| {
        let (has_scheme, rest) = entry.split_once("://").map_or((false, entry), |(_, rest)| (true, rest));
        // `10.0.0.0/8` is a network, and its slash no path.
        let host = if has_scheme { rest.split('/').next().unwrap_or_default() } else { rest };
        let host = match (host.strip_prefix('[').and_then(|rest| rest.split_once(']')), host.split_once(':')) {
            (Some((address, _)), _) => address,
            // An IPv6 address without brackets has more colons, and no port.
            (None, Some((name, port))) if !port.contains(':') => name,
            _ => host,
        };
        let host = host.strip_prefix('*').filter(|domain| domain.starts_with('.')).unwrap_or(host);
        // In DNS a name with a dot at its end is the same name; the clients compare letters.
        let host = host.strip_suffix('.').unwrap_or(host);
        host.to_owned()
    });
    Ok(entries.filter(|entry| !entry.is_empty()).collect())
}

/// Whether `url` goes over plain http to a host that is not this one.
pub(super) fn leaves_the_host_in_clear(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    url.scheme() == "http" && !loopback
}
