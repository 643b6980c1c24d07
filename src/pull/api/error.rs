//! The kinds of requests, and why one failed, in words for people. No message holds a byte of an answer.

use crate::metric_table;

/// A larger answer is refused. No page of env0's comes near it.
pub(super) const ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;
/// What env0's gateway answers to a path that doesn't exist.
pub(super) const WRONG_PATH_MESSAGE: &str = "Missing Authentication Token";

metric_table::label_values! {
    "env0_s3_logs_pull_requests_total", "endpoint":
    /// The kinds of requests.
    pub enum Endpoint {
        /// `GET /organizations`
        Organizations = "organizations",
        /// `GET /audit/events`
        AuditEvents = "audit_events",
        /// `GET /environments`
        Environments = "environments",
        /// `GET /environments/{id}/deployments`
        Deployments = "deployments",
        /// `GET /deployments/{id}/steps`
        Steps = "steps",
        /// `GET /deployments/{id}/steps/{name}/log`
        StepLog = "step_log",
        /// `GET /log-forwarding/configurations`
        Forwarding = "log_forwarding",
    }
}

impl Endpoint {
    /// Whether it is one of the requests that bring the logs of deployments.
    pub(super) fn is_of_logs(self) -> bool {
        match self {
            Endpoint::Environments | Endpoint::Deployments | Endpoint::Steps | Endpoint::StepLog => true,
            Endpoint::Organizations | Endpoint::AuditEvents | Endpoint::Forwarding => false,
        }
    }

    /// The request as messages name it.
    pub fn request(self) -> &'static str {
        match self {
            Endpoint::Organizations => "GET /organizations",
            Endpoint::AuditEvents => "GET /audit/events",
            Endpoint::Environments => "GET /environments",
            Endpoint::Deployments => "GET /environments/{id}/deployments",
            Endpoint::Steps => "GET /deployments/{id}/steps",
            Endpoint::StepLog => "GET /deployments/{id}/steps/{name}/log",
            Endpoint::Forwarding => "GET /log-forwarding/configurations",
        }
    }

    /// Whether its path names something that may be deleted meanwhile.
    pub(super) fn names_a_thing(self) -> bool {
        match self {
            Endpoint::Deployments | Endpoint::Steps | Endpoint::StepLog => true,
            Endpoint::Organizations | Endpoint::AuditEvents | Endpoint::Environments | Endpoint::Forwarding => false,
        }
    }

    /// The permission that the key's role needs for it.
    fn permission(self) -> &'static str {
        match self {
            Endpoint::AuditEvents => "VIEW_AUDIT_LOGS",
            Endpoint::Organizations | Endpoint::Forwarding => "VIEW_ORGANIZATION",
            Endpoint::Environments | Endpoint::Deployments | Endpoint::Steps | Endpoint::StepLog => "VIEW_PROJECT",
        }
    }
}

/// Counts requests by their outcome.
pub(super) fn requests(endpoint: Endpoint, outcome: &'static str) -> metrics::Counter {
    metrics::counter!(metric_table::PULL_REQUESTS, "endpoint" => endpoint.as_str(), "outcome" => outcome)
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorKind {
    /// 401
    Unauthorized,
    /// 401, to a key that worked before.
    Revoked,
    /// 403: the key's role lacks a permission, or the organization doesn't let this address in.
    Forbidden,
    /// 403, and the key sees other organizations. Holds their ids.
    OtherOrganization(String),
    /// 403, even to `GET /organizations`.
    AllForbidden,
    /// The list of organizations has more than the daemon pulls. Holds how many are left out, and how many are pulled.
    TooManyOrganizations(usize, usize),
    /// 403 with the gateway's message for a path that doesn't exist, or 404 to a path that env0's API always has.
    /// Holds the status.
    WrongUrl(u16),
    /// 404 to a path that names a deployment or an environment.
    Gone,
    /// Another 4xx.
    Refused(u16),
    /// 429 at every attempt.
    Throttled,
    /// 5xx at every attempt.
    Server(u16),
    /// An answer of a proxy or another server, at every attempt.
    NotEnv0 {
        /// The answer's status.
        status: u16,
        /// What shows it, in words.
        found: &'static str,
    },
    /// No answer, or one that broke off or took too long. Holds the reason in words.
    Unreachable(String),
    /// More than 32 MiB.
    TooLarge,
    /// The answer is not what env0 documents. Holds what was missing.
    Malformed(String),
}

/// The host and the key, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) host: String,
    pub(super) key_id: String,
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub struct ApiError {
    /// Which request.
    pub endpoint: Endpoint,
    /// Why.
    pub kind: ErrorKind,
    pub(super) asked: Asked,
}

impl ApiError {
    /// The same request's error with a more precise cause.
    pub fn because(self, kind: ErrorKind) -> ApiError {
        ApiError { kind, ..self }
    }

    /// One word for the label in metrics. The log is told once for each.
    pub fn as_str(&self) -> &'static str {
        match self.kind {
            ErrorKind::Unauthorized => "unauthorized",
            ErrorKind::Revoked => "revoked",
            ErrorKind::Forbidden => "forbidden",
            ErrorKind::OtherOrganization(_) => "other_organization",
            ErrorKind::AllForbidden => "all_forbidden",
            ErrorKind::TooManyOrganizations(..) => "too_many_organizations",
            ErrorKind::WrongUrl(_) => "wrong_url",
            ErrorKind::Gone => "gone",
            ErrorKind::Refused(_) => "refused",
            ErrorKind::Throttled => "throttled",
            ErrorKind::Server(_) => "server_error",
            ErrorKind::NotEnv0 { .. } => "not_env0",
            ErrorKind::Unreachable(_) => "unreachable",
            ErrorKind::TooLarge => "too_large",
            ErrorKind::Malformed(_) => "malformed",
        }
    }

    fn message(&self) -> String {
        let ApiError { endpoint, kind, asked: Asked { host, key_id } } = self;
        let request = format!("{} at {host}", endpoint.request());
        match kind {
            ErrorKind::Unauthorized => {
                // Where id and secret are swapped, the id is the secret. Its first characters tell which key it is.
                let shown = (key_id.chars().count() / 3).min(4);
                let beginning: String = key_id.chars().take(shown).collect();
                format!(
                    "{request}: 401, the API key {beginning}… is not known, or its secret is wrong (are ENV0_API_KEY_ID and ENV0_API_KEY_SECRET swapped?)"
                )
            }
            ErrorKind::Revoked => {
                format!(
                    "{request}: 401, the API key {key_id} worked before and does so no more: it was deleted, or its secret was replaced"
                )
            }
            ErrorKind::Forbidden => {
                format!("{request}: 403, the API key {key_id} may not do this; it takes {}", endpoint.permission())
            }
            ErrorKind::OtherOrganization(sees) => {
                format!(
                    "{request}: 403, the API key {key_id} is of another organization: it sees {sees}; this takes {} in the one that is asked for",
                    endpoint.permission()
                )
            }
            ErrorKind::AllForbidden => {
                let organizations = Endpoint::Organizations.permission();
                let and_this = match endpoint.permission() {
                    permission if permission == organizations => String::new(),
                    permission => format!(", and this {permission}"),
                };
                format!(
                    "{request}: 403, the API key {key_id} may not even list its organizations from this address; that takes {organizations}{and_this}"
                )
            }
            ErrorKind::TooManyOrganizations(left_out, pulled) => {
                format!(
                    "{request}: the API key {key_id} sees more organizations than one daemon pulls: {pulled} are pulled, and {left_out} are not"
                )
            }
            ErrorKind::WrongUrl(404) => {
                format!(
                    "{request}: 404, and env0's API has this path: another server answers, or env0 doesn't know the organization"
                )
            }
            ErrorKind::WrongUrl(_) => {
                format!("{request}: 403 \"{WRONG_PATH_MESSAGE}\", which means that the path doesn't exist there")
            }
            ErrorKind::Gone => format!("{request}: 404, there is no such thing any more"),
            ErrorKind::Refused(status) => format!("{request}: {status}"),
            ErrorKind::Throttled => format!("{request}: 429, too many requests"),
            ErrorKind::Server(status) => format!("{request}: {status}"),
            ErrorKind::NotEnv0 { status, found } => {
                format!(
                    "{request}: the answer, with status {status}, is not env0's: {found}, so a proxy or another server has answered"
                )
            }
            ErrorKind::Unreachable(reason) => format!("{request}: {reason}"),
            ErrorKind::TooLarge => format!("{request}: the answer has more than {ANSWER_MAX_BYTES} bytes"),
            ErrorKind::Malformed(missing) => format!("{request}: the answer is not what env0 documents: {missing}"),
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self.kind {
            ErrorKind::Unauthorized => {
                "look whether the key exists in env0 (Organization Settings, API Keys), and set ENV0_API_KEY_ID and ENV0_API_KEY_SECRET"
            }
            ErrorKind::Revoked => {
                "make another key in env0 (Organization Settings, API Keys), and set ENV0_API_KEY_ID and ENV0_API_KEY_SECRET; of their _FILE variants the new content is taken by itself"
            }
            ErrorKind::Forbidden => {
                "give the key a role with that permission (config/README.md#pulling-from-env0s-api tells the least one), or, where it has one, look at the organization's allow-list of addresses. Audit events need env0's Enterprise plan, too; without it set ENV0_S3_LOG_PULL=env0-deployments"
            }
            ErrorKind::OtherOrganization(_) => {
                "set ENV0_S3_LOG_PULL_ORGANIZATION_ID to the key's organization, leave it out, or make a key in that organization"
            }
            ErrorKind::AllForbidden => {
                "see that the organization's allow-list of addresses for API keys has the address from which this daemon reaches env0, and that the key's role has the permission"
            }
            ErrorKind::TooManyOrganizations(..) => {
                "name the organizations to pull in ENV0_S3_LOG_PULL_ORGANIZATION_ID, and let other daemons pull the rest"
            }
            ErrorKind::WrongUrl(_) => {
                "see that ENV0_S3_LOG_API_URL is the API's address (https://api.env0.com), without a path behind it, and that ENV0_S3_LOG_PULL_ORGANIZATION_ID, where it is set, is an organization of this key"
            }
            ErrorKind::Gone => "none is needed",
            ErrorKind::Throttled => {
                "another client asks env0 from this address or with this key; raise ENV0_S3_LOG_PULL_INTERVAL"
            }
            ErrorKind::Server(_) => "env0's status page tells of outages; it is tried again every interval",
            ErrorKind::Unreachable(_) => {
                "see that the daemon reaches this host, through HTTPS_PROXY where there is one, and trusts its certificate (AWS_CA_BUNDLE)"
            }
            ErrorKind::Refused(_) | ErrorKind::NotEnv0 { .. } | ErrorKind::TooLarge | ErrorKind::Malformed(_) => {
                "see that ENV0_S3_LOG_API_URL is env0's API and that no proxy answers in its place; else tell this project"
            }
        }
    }
}
