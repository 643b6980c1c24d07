//! Sessions: handed out by STS, checked by S3 and CloudWatch Logs.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::SystemTime;

/// Temporary credentials of a role.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// The role's ARN.
    pub(crate) role: String,
    pub(crate) access_key: String,
    pub(crate) secret: String,
    pub(crate) token: String,
    /// When it stops being accepted.
    pub(crate) expires: SystemTime,
}

impl Session {
    /// New credentials of `role`, valid until `expires`.
    pub(crate) fn new(role: &str, expires: SystemTime) -> Session {
        use rand::distr::SampleString;
        let random = |length| rand::distr::Alphanumeric.sample_string(&mut rand::rng(), length);
        let access_key = format!("ASIA{}", random(16).to_uppercase());
        Session { role: role.to_owned(), access_key, secret: random(40), token: random(200), expires }
    }
}

/// Every session that was handed out, by access key.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Session>>);

impl Sessions {
    pub(crate) fn add(&self, session: Session) {
        self.0.lock().unwrap().insert(session.access_key.clone(), session);
    }

    pub(crate) fn get(&self, access_key: &str) -> Option<Session> {
        self.0.lock().unwrap().get(access_key).cloned()
    }

    pub(crate) fn expire_all(&self) {
        let now = SystemTime::now();
        self.0.lock().unwrap().values_mut().for_each(|session| session.expires = session.expires.min(now));
    }
}
