//! STS: AssumeRoleWithWebIdentity, answering as AWS does.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};

use super::http::{self, Drop, HttpRequest, HttpResponse, answer, percent_decode, read_body, xml};
use super::issuer::{CLIENT_ID, Issuer, SUBJECT, now_seconds};
use super::sessions::{Session, Sessions};
use super::{ACCOUNT, CLOUDWATCH_ROLE_ARN, ROLE_ARN};

/// What provider and trust policy list, as `config/trust-policy.json` does: env0's client id, and the audience of
/// its v2 tokens.
const AUDIENCES: [&str; 2] = [CLIENT_ID, "sts.amazonaws.com"];

/// One exchange as it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    pub(crate) role: String,
    pub(crate) token: String,
    pub(crate) duration_seconds: Option<u64>,
    pub(crate) role_session_name: String,
    /// The error's code, or none where a session was handed out.
    pub(crate) error: Option<String>,
}

/// An STS error: status, code, message.
#[derive(Debug, Clone)]
pub(crate) struct StsError {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl StsError {
    pub(crate) fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> StsError {
        StsError { status, code: code.into(), message: message.into() }
    }

    /// The identity provider could not be asked for its keys.
    pub(crate) fn idp_communication() -> StsError {
        StsError::new(400, "IDPCommunicationError", "An error occurred while communicating with the identity provider")
    }

    /// Too many requests.
    pub(crate) fn throttling() -> StsError {
        StsError::new(400, "Throttling", "Rate exceeded")
    }

    /// What the trust policy's conditions say for subject, session tags or duration alike.
    pub(crate) fn not_authorized() -> StsError {
        StsError::new(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
    }
}

/// What the role and its trust policy say, and what goes wrong.
struct Settings {
    /// The role's maximum session.
    max_session: Duration,
    /// Replaces every session's length.
    session_lifetime: Option<Duration>,
    /// Whether the trust policy allows `sts:TagSession`.
    tag_session_allowed: bool,
    /// Errors of the next exchanges, in order.
    failures: VecDeque<StsError>,
    /// The error of every exchange.
    failing: Option<StsError>,
    /// Whether connections are dropped without an answer.
    down: bool,
    /// What somebody else says to every request, in STS's place: status, content type, body.
    in_its_place: Option<(u16, &'static str, String)>,
    /// Replaces every session's `Expiration`, as it stands in the answer.
    expiration: Option<&'static str>,
    /// The `Date` of every answer.
    date: Option<&'static str>,
    /// The `sub` of the trust policy, in place of [`SUBJECT`].
    subject: Option<String>,
    /// The role whose trust policy allows nothing.
    refused_role: Option<&'static str>,
}

/// The STS endpoint.
pub(crate) struct Sts {
    address: OnceLock<SocketAddr>,
    issuer: Arc<Issuer>,
    sessions: Arc<Sessions>,
    settings: Mutex<Settings>,
    exchanges: Mutex<Vec<Exchange>>,
}

impl Sts {
    pub(crate) async fn start(issuer: Arc<Issuer>, sessions: Arc<Sessions>) -> Arc<Sts> {
        let settings = Settings {
            max_session: Duration::from_secs(3600),
            session_lifetime: None,
            tag_session_allowed: true,
            failures: VecDeque::new(),
            failing: None,
            down: false,
            in_its_place: None,
            expiration: None,
            date: None,
            subject: None,
            refused_role: None,
        };
        let sts = Arc::new(Sts {
            address: OnceLock::new(),
            issuer,
            sessions,
            settings: Mutex::new(settings),
            exchanges: Mutex::default(),
        });
        let handler = sts.clone();
        let address = http::serve(move |request| handler.clone().handle(request)).await;
        sts.address.get_or_init(|| address);
        sts
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address.get().unwrap())
    }

    /// Every exchange that was asked for, in order.
    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().unwrap().clone()
    }

    /// How many sessions were handed out.
    pub(crate) fn sessions_issued(&self) -> usize {
        self.exchanges().iter().filter(|exchange| exchange.error.is_none()).count()
    }

    /// The role's trust policy names this `sub` and no other.
    pub(crate) fn trust_subject(&self, subject: &str) {
        self.settings.lock().unwrap().subject = Some(subject.to_owned());
    }

    /// Refuses every exchange for `role` until [`Sts::heal`].
    pub(crate) fn refuse_role(&self, role: &'static str) {
        self.settings.lock().unwrap().refused_role = Some(role);
    }

    /// Each role's MaxSessionDuration; 1 hour at the start.
    pub(crate) fn set_max_session(&self, max: Duration) {
        self.settings.lock().unwrap().max_session = max;
    }

    /// Makes every session from now on last this long, whatever was asked for.
    pub(crate) fn set_session_lifetime(&self, lifetime: Duration) {
        self.settings.lock().unwrap().session_lifetime = Some(lifetime);
    }

    /// Whether the trust policy allows `sts:TagSession`, which tokens with session tags need.
    pub(crate) fn set_tag_session_allowed(&self, allowed: bool) {
        self.settings.lock().unwrap().tag_session_allowed = allowed;
    }

    /// Fails the next `times` exchanges.
    pub(crate) fn fail_next(&self, times: usize, error: StsError) {
        self.settings.lock().unwrap().failures.extend(std::iter::repeat_n(error, times));
    }

    /// Fails every exchange until [`Sts::heal`].
    pub(crate) fn fail_all(&self, error: StsError) {
        self.settings.lock().unwrap().failing = Some(error);
    }

    /// Drops every connection without an answer until [`Sts::heal`].
    pub(crate) fn set_down(&self) {
        self.settings.lock().unwrap().down = true;
    }

    /// Lets somebody else answer every request until [`Sts::heal`].
    pub(crate) fn answer_in_its_place(&self, status: u16, content_type: &'static str, body: impl Into<String>) {
        self.settings.lock().unwrap().in_its_place = Some((status, content_type, body.into()));
    }

    /// Gives sessions whose answer names this `Expiration`, in answers of this `Date`, until [`Sts::heal`].
    pub(crate) fn set_times(&self, expiration: &'static str, date: &'static str) {
        let mut settings = self.settings.lock().unwrap();
        (settings.expiration, settings.date) = (Some(expiration), Some(date));
    }

    /// Ends every fault.
    pub(crate) fn heal(&self) {
        let mut settings = self.settings.lock().unwrap();
        settings.failures.clear();
        settings.refused_role = None;
        (settings.failing, settings.down) = (None, false);
        (settings.in_its_place, settings.expiration, settings.date) = (None, None, None);
    }

    async fn handle(self: Arc<Self>, request: HttpRequest) -> Result<HttpResponse, Drop> {
        let is_form_post = request.method() == hyper::Method::POST && request.uri().path() == "/";
        let body = read_body(request).await?;
        if self.settings.lock().unwrap().down {
            return Err(Drop);
        }
        let (in_its_place, expiration, date) = {
            let settings = self.settings.lock().unwrap();
            (settings.in_its_place.clone(), settings.expiration, settings.date)
        };
        if let Some((status, content_type, body)) = in_its_place {
            return Ok(answer(status, content_type, body));
        }
        let form = parse_form(&String::from_utf8_lossy(&body));
        let field = |name: &str| form.get(name).cloned().unwrap_or_default();
        if !is_form_post || field("Action") != "AssumeRoleWithWebIdentity" {
            let message = "Could not find operation";
            return Ok(error_answer(&StsError::new(400, "InvalidAction", message)));
        }
        let duration_seconds = form.get("DurationSeconds").and_then(|value| value.parse().ok());
        let result = self.assume(&field("RoleArn"), &field("WebIdentityToken"), duration_seconds);
        self.exchanges.lock().unwrap().push(Exchange {
            role: field("RoleArn"),
            token: field("WebIdentityToken"),
            duration_seconds,
            role_session_name: field("RoleSessionName"),
            error: result.as_ref().err().map(|error| error.code.clone()),
        });
        let mut response = match result {
            Ok(session) => session_answer(&session, &field("RoleSessionName"), expiration),
            Err(error) => error_answer(&error),
        };
        if let Some(date) = date {
            response.headers_mut().insert("date", hyper::header::HeaderValue::from_static(date));
        }
        Ok(response)
    }

    /// The checks of the real service, in its order.
    fn assume(&self, role: &str, token: &str, duration_seconds: Option<u64>) -> Result<Session, StsError> {
        let mut settings = self.settings.lock().unwrap();
        if let Some(error) = settings.failures.pop_front().or_else(|| settings.failing.clone()) {
            return Err(error);
        }
        let asked = Duration::from_secs(duration_seconds.unwrap_or(3600));
        if !(900..=43_200).contains(&asked.as_secs()) {
            let message = format!(
                "1 validation error detected: Value '{}' at 'durationSeconds' failed to satisfy constraint: \
                 Member must have value between 900 and 43200",
                asked.as_secs()
            );
            return Err(StsError::new(400, "ValidationError", message));
        }
        if asked > settings.max_session {
            let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
            return Err(StsError::new(400, "ValidationError", message));
        }
        if self.issuer.is_down() {
            return Err(StsError::idp_communication());
        }
        let not_a_token =
            "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)";
        if token.split('.').count() != 3 {
            return Err(StsError::new(400, "InvalidIdentityToken", not_a_token));
        }
        let Some(claims) = self.issuer.verify(token) else {
            let message = "Couldn't retrieve verification key from your identity provider, \
                           please reference AssumeRoleWithWebIdentity documentation for requirements";
            return Err(StsError::new(400, "InvalidIdentityToken", message));
        };
        if claims["iss"] != self.issuer.url() {
            let message = format!("No OpenIDConnect provider found in your account for {}", claims["iss"]);
            return Err(StsError::new(400, "InvalidIdentityToken", message));
        }
        let (now, expires) = (now_seconds(), claims["exp"].as_u64().unwrap_or(0));
        if expires <= now {
            let message =
                format!("Token expired: current date/time {now} must be before the expiration date/time {expires}");
            return Err(StsError::new(400, "ExpiredTokenException", message));
        }
        // As AWS does it: where a token has `azp`, that is its audience, and `aud` is not looked at.
        let audiences = match (&claims["azp"], &claims["aud"]) {
            (serde_json::Value::Null, serde_json::Value::Array(all)) => all.clone(),
            (serde_json::Value::Null, one) | (one, _) => vec![one.clone()],
        };
        if !audiences.iter().any(|audience| AUDIENCES.iter().any(|listed| audience == listed)) {
            return Err(StsError::new(400, "InvalidIdentityToken", "Incorrect token audience"));
        }
        let tagged = !claims["https://aws.amazon.com/tags"].is_null();
        if ![ROLE_ARN, CLOUDWATCH_ROLE_ARN].contains(&role)
            || settings.refused_role == Some(role)
            || claims["sub"] != settings.subject.as_deref().unwrap_or(SUBJECT)
            || (tagged && !settings.tag_session_allowed)
        {
            return Err(StsError::not_authorized());
        }
        let session = Session::new(role, SystemTime::now() + settings.session_lifetime.unwrap_or(asked));
        self.sessions.add(session.clone());
        Ok(session)
    }
}

fn session_answer(session: &Session, session_name: &str, expiration: Option<&str>) -> HttpResponse {
    let end = DateTime::<Utc>::from(session.expires).to_rfc3339_opts(SecondsFormat::Secs, true);
    let expiration = expiration.unwrap_or(&end);
    let role_name = session.role.rsplit('/').next().unwrap();
    let body = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n\
         <AssumeRoleWithWebIdentityResult>\n\
         <SubjectFromWebIdentityToken>{subject}</SubjectFromWebIdentityToken>\n\
         <Audience>{CLIENT_ID}</Audience>\n\
         <AssumedRoleUser>\n\
         <Arn>arn:aws:sts::{ACCOUNT}:assumed-role/{role_name}/{name}</Arn>\n\
         <AssumedRoleId>AROALOCALROLEID:{name}</AssumedRoleId>\n\
         </AssumedRoleUser>\n\
         <Credentials>\n\
         <AccessKeyId>{access_key}</AccessKeyId>\n\
         <SecretAccessKey>{secret}</SecretAccessKey>\n\
         <SessionToken>{token}</SessionToken>\n\
         <Expiration>{expiration}</Expiration>\n\
         </Credentials>\n\
         </AssumeRoleWithWebIdentityResult>\n\
         <ResponseMetadata><RequestId>{REQUEST_ID}</RequestId></ResponseMetadata>\n\
         </AssumeRoleWithWebIdentityResponse>",
        subject = xml(SUBJECT),
        name = xml(session_name),
        access_key = session.access_key,
        secret = session.secret,
        token = session.token,
    );
    with_request_id(answer(200, "text/xml", body))
}

fn error_answer(error: &StsError) -> HttpResponse {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n\
         <Error><Type>Sender</Type><Code>{}</Code><Message>{}</Message></Error>\n\
         <RequestId>{REQUEST_ID}</RequestId>\n\
         </ErrorResponse>",
        xml(&error.code),
        xml(&error.message),
    );
    with_request_id(answer(error.status, "text/xml", body))
}

const REQUEST_ID: &str = "c6104cbe-af31-11e0-8154-cbc7ccf896c7";

fn with_request_id(mut response: HttpResponse) -> HttpResponse {
    response.headers_mut().insert("x-amzn-requestid", hyper::header::HeaderValue::from_static(REQUEST_ID));
    response
}

/// Fields of an `application/x-www-form-urlencoded` body.
fn parse_form(body: &str) -> HashMap<String, String> {
    let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (form_decode(name), form_decode(value))).collect()
}

fn form_decode(text: &str) -> String {
    percent_decode(&text.replace('+', " "))
}
