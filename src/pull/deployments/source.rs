//! The lines of a deployment: each event with what it lacks of where it comes from, and the line that says how it ended.

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::protocols::body::{Limits, members};
use crate::pull::deployments::memory::{EVENT_STEP_DEPLOYMENT, Following, Steps, finished_id};
use crate::pull::line::{KEPT_MAX_BYTES, Line, inner, stored};

/// Room for what a line is given, in almost every case.
const MEMBERS_BYTES: usize = 512;

/// A byte of a text takes so many in JSON at most.
const ESCAPED_MAX_BYTES: usize = 6;

/// Where a deployment's lines come from.
pub(super) struct Source {
    pub(super) deployment: String,
    organization: String,
    following: Following,
    pub(super) limits: Limits,
    /// Other values of `ENV0_S3_LOG_MAX_EVENT_BYTES` under which events may have been stored.
    former_limits: Vec<usize>,
}

/// An event of a step's log.
pub(super) struct Event<'e> {
    pub(super) line: Line,
    pub(super) id: Option<&'e RawValue>,
    pub(super) timestamp: Option<&'e RawValue>,
    /// Whether its line may not say where it comes from, or say something else, because it brings such a member of its own.
    /// A start believes what the line says.
    pub(super) names_origin: bool,
}

impl Source {
    pub(super) fn new(
        deployment: &str,
        organization: &str,
        following: &Following,
        limits: Limits,
        former_limits: Vec<usize>,
    ) -> Source {
        let (deployment, organization) = (deployment.to_owned(), organization.to_owned());
        // The steps are not needed, and may be large.
        let following = Following { steps: Steps::new(), ..following.clone() };
        Source { deployment, organization, following, limits, former_limits }
    }

    fn members<'a>(&'a self, step: Option<&'a str>) -> [(&'static str, Option<&'a str>); 7] {
        self.following.members(&self.deployment, step, &self.organization)
    }

    /// The event's own members as they were sent, then those of [`Following::members`] that it lacks.
    pub(super) fn event<'e>(&self, event: &'e RawValue, step: &str) -> Event<'e> {
        self.event_within(&self.limits, event, step)
    }

    fn event_within<'e>(&self, limits: &Limits, event: &'e RawValue, step: &str) -> Event<'e> {
        let inner = inner(event);
        let own = self.members(Some(step));
        let [d, s, e, n, p, o, t] = own.map(|(name, _)| name);
        let [has @ .., id, timestamp] = members(event, [d, s, e, n, p, o, t, "eventId", "timestamp"]);
        // It may be large, and a text that grows is there twice.
        let mut line = String::with_capacity(inner.len() + MEMBERS_BYTES);
        line.push('{');
        line += &inner;
        let mut empty = inner.trim_ascii().is_empty();
        for ((name, value), _) in own.into_iter().zip(has).filter(|(_, has): &(_, Option<&RawValue>)| has.is_none()) {
            let Some(value) = value else { continue };
            line += &format!("{}\"{name}\":{}", if empty { "" } else { "," }, Value::from(value));
            empty = false;
        }
        line.push('}');
        let line = match RawValue::from_string(line) {
            Ok(line) => stored(&line, EVENT_STEP_DEPLOYMENT, limits),
            // Members put behind valid ones are valid.
            Err(_) => stored(event, EVENT_STEP_DEPLOYMENT, limits),
        };
        // Deployment, step and organization. The line of an event that is cut lacks a long one.
        let is_long = |id: &str| ESCAPED_MAX_BYTES * id.len() + 2 > KEPT_MAX_BYTES;
        let names_origin = [0, 1, 5].into_iter().any(|number| has[number].is_some());
        let names_origin = names_origin || is_long(&self.deployment) || is_long(step);
        Event { line, id, timestamp, names_origin }
    }

    /// The other lines of an event whose line is `line`, see [`Line::other_limits`].
    pub(super) fn other_lines(&self, event: &RawValue, step: &str, line: &Line) -> impl Iterator<Item = Line> {
        let limits = line.other_limits(event, &self.limits, &self.former_limits);
        limits.map(move |limits| self.event_within(&limits, event, step).line)
    }

    /// The line that says how the deployment ended; `outcome` are its members from `status` on.
    pub(super) fn last_line(&self, outcome: &str) -> Bytes {
        let mut line = format!("{{\"eventId\":{}", Value::from(finished_id(&self.deployment)));
        for (name, value) in self.members(None) {
            if let Some(value) = value {
                line += &format!(",\"{name}\":{}", Value::from(value));
            }
        }
        line += &format!(",{outcome}}}\n");
        line.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::identity::Identity;
    use crate::pull::line::json_of;

    fn source(max_event_bytes: usize) -> Source {
        let following = Following { environment_id: "e".into(), kind: Some("deploy".into()), ..Following::default() };
        Source::new("d", "o", &following, limits(max_event_bytes), Vec::new())
    }

    fn limits(max_event_bytes: usize) -> Limits {
        Limits { max_body_bytes: usize::MAX, max_lines_bytes: usize::MAX, max_event_bytes, redact: true }
    }

    #[test]
    fn an_event_is_given_the_members_that_it_lacks_and_keeps_its_own() {
        let line = |event: &str| {
            let event = source(1000).event(serde_json::from_str(event).unwrap(), "tf:apply");
            String::from_utf8(event.line.json().to_vec()).unwrap()
        };
        let ours = r#""environmentId":"e","organizationId":"o","deploymentType":"deploy"}"#;
        let whole = format!(r#"{{"a": 1,"deploymentLogId":"d","stepName":"tf:apply",{ours}"#);
        assert_eq!(line(r#"{"a": 1}"#), whole);
        assert_eq!(
            line(r#"{"stepName":"x","deploymentLogId":null}"#),
            format!(r#"{{"stepName":"x","deploymentLogId":null,{ours}"#)
        );
        assert!(line("{ }").starts_with(r#"{ "deploymentLogId":"d","#));
        assert!(line("[1]").starts_with(r#"{"message":[1],"deploymentLogId":"d","#));
    }

    #[test]
    fn a_start_finds_the_same_id_in_an_events_line_as_the_pull_found_in_the_event() {
        let text = "x".repeat(9000);
        let events = [
            r#"{"eventId":"e-1","message":"m"}"#.to_owned(),
            "{\"message\":\n\"m\",\n\"eventId\": 7}".to_owned(),
            r#"{"message":"m"}"#.to_owned(),
            format!(r#"{{"eventId":"e-1","message":"{text}"}}"#),
            // An id that is too long is not kept beside the beginning of an event that is cut.
            format!(r#"{{"eventId":"{text}"}}"#),
        ];
        for event in events {
            let found = source(4096).event(serde_json::from_str(&event).unwrap(), "s");
            let [of_line] = members(json_of(found.line.json()), ["eventId"]);
            let identity = |id| Identity::new(&[], id, b"line");
            assert_eq!(identity(found.id), identity(of_line), "{event}");
        }
    }
}
