//! Variables that are set and have no effect, because this daemon never reads them or because another one wins. Somebody who
//! set one may rely on it, so they are warned of.

use std::collections::BTreeMap;

use super::effective::Purpose;

/// What counts in place of credentials from the environment.
const OWN_CREDENTIALS: &str = "ENV0_S3_LOG_ROLE_ARN and an OIDC token";
const OWN_TOKEN_FILE: &str = "ENV0_S3_LOG_OIDC_TOKEN_FILE";
const OWN_REGION: &str = "ENV0_S3_LOG_AWS_REGION";
const OWN_ENDPOINTS: &str = "AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL_STS";
const OWN_CA: &str = "AWS_CA_BUNDLE";

/// Name, and what counts in its place. Variables that a platform sets by itself (`AWS_CONTAINER_…`) are left out. Proxies are
/// listed because of spellings such as `Https_Proxy`.
const UNREAD: [(&str, &str); 22] = [
    ("HTTPS_PROXY", "HTTPS_PROXY"),
    ("HTTP_PROXY", "HTTP_PROXY"),
    ("NO_PROXY", "NO_PROXY"),
    ("ALL_PROXY", "HTTPS_PROXY"),
    ("AWS_ACCESS_KEY_ID", OWN_CREDENTIALS),
    ("AWS_CONFIG_FILE", OWN_CREDENTIALS),
    ("AWS_PROFILE", OWN_CREDENTIALS),
    ("AWS_ROLE_ARN", OWN_CREDENTIALS),
    ("AWS_SHARED_CREDENTIALS_FILE", OWN_CREDENTIALS),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", OWN_TOKEN_FILE),
    ("AWS_DEFAULT_REGION", OWN_REGION),
    ("AWS_REGION", OWN_REGION),
    ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", OWN_ENDPOINTS),
    ("AWS_USE_DUALSTACK_ENDPOINT", OWN_ENDPOINTS),
    ("AWS_USE_FIPS_ENDPOINT", OWN_ENDPOINTS),
    ("AWS_S3_FORCE_PATH_STYLE", "ENV0_S3_LOG_FORCE_PATH_STYLE"),
    ("CURL_CA_BUNDLE", OWN_CA),
    ("NODE_EXTRA_CA_CERTS", OWN_CA),
    ("REQUESTS_CA_BUNDLE", OWN_CA),
    // The names that env0's Terraform provider reads.
    ("ENV0_API_KEY", "ENV0_API_KEY_ID"),
    ("ENV0_API_SECRET", "ENV0_API_KEY_SECRET"),
    ("ENV0_API_ENDPOINT", "ENV0_S3_LOG_API_URL"),
];

/// Two names for one value, of which the second counts where both are set. The tokens of `ENV0_S3_LOG_INGEST_TOKEN` and of
/// its file are not here, because all of them count, and so do OIDC tokens wherever they come from.
const SECOND_NAMES: [(&str, &str); 4] = [
    ("ENV0_OIDC_TOKEN_FILE", "ENV0_S3_LOG_OIDC_TOKEN_FILE"),
    ("ENV0_S3_LOG_OIDC_TOKEN_URL_FILE", "ENV0_S3_LOG_OIDC_TOKEN_URL"),
    ("ENV0_API_KEY_ID_FILE", "ENV0_API_KEY_ID"),
    ("ENV0_API_KEY_SECRET_FILE", "ENV0_API_KEY_SECRET"),
];

/// The entry of the variable `name`. Programs read only proxies' names in other letter cases, too.
fn find(name: &str) -> Option<(&'static str, &'static str)> {
    let is_named = |known: &str| known == name || (known.ends_with("_PROXY") && known.eq_ignore_ascii_case(name));
    UNREAD.into_iter().find(|(known, _)| is_named(known))
}

/// Whether others read `name`, which is not a variable of this daemon's.
pub(super) fn is_known(name: &str) -> bool {
    find(name).is_some()
}

/// A line that names the variables in `vars` and `given` that have no effect, where that may make a difference; `None`
/// without any. Their values are not repeated: they may be secrets.
pub(super) fn warning(
    vars: &[(String, String)],
    given: &BTreeMap<&'static str, String>,
    purpose: Purpose,
) -> Option<String> {
    let is_given = |name| given.contains_key(name);
    let names = vars.iter().filter_map(|(name, value)| {
        let (known, instead) = find(name)?;
        let matters = match (known, instead) {
            // `verify` reads with an auditor's own credentials, which the SDK looks for in all of these.
            (_, OWN_CREDENTIALS | OWN_ENDPOINTS | OWN_TOKEN_FILE) if purpose == Purpose::Verify => false,
            ("ALL_PROXY", _) => !is_given("HTTPS_PROXY"),
            (_, OWN_REGION) => given.get(OWN_REGION).is_some_and(|region| region != value),
            (_, OWN_ENDPOINTS) => value.eq_ignore_ascii_case("true"),
            (_, OWN_CA) => !is_given(OWN_CA) && !is_given("SSL_CERT_FILE"),
            (_, instead) if known.starts_with("ENV0_API_") => {
                !given.keys().any(|name| name.trim_end_matches("_FILE") == instead)
            }
            _ => true,
        };
        matters.then_some((name.as_str(), instead))
    });
    let second = |(name, first): &(&str, &str)| match (given.get(name), given.get(first)) {
        (Some(second), Some(first)) => second != first,
        _ => false,
    };
    let names = names.chain(SECOND_NAMES.into_iter().filter(second));
    let names: Vec<_> = names.map(|(name, instead)| format!("{name} (instead: {instead})")).collect();
    (!names.is_empty()).then(|| format!("set, and not read by this daemon: {}", names.join(", ")))
}
