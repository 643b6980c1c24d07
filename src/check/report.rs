//! The verdicts of a check, as lines and as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::exit_code;

/// The version of the JSON that `--json` prints; it rises when a field changes its name or its meaning.
const SCHEMA: u32 = 1;
/// The name of the step that looks for a running daemon.
pub(super) const DAEMON: &str = "daemon";
/// The name of the step that warns of pulled events that come another way, too.
pub(super) const PULL_ALONE: &str = "pull-alone";
/// The name of the step that warns of files in quarantine.
pub(super) const QUARANTINE: &str = "quarantine";
/// The name of the step that judges tokens.
pub(super) const TOKEN: &str = "token";
/// The name of the step that asks for the bucket.
pub(super) const BUCKET: &str = "bucket";

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it must be.
    Ok,
    /// Works, and is worth a look.
    Warn,
    /// Must be mended.
    Fail,
    /// Not judged.
    Skipped,
}

/// One step and its verdict.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Which; a closed set, in a fixed order.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, in words.
    pub detail: String,
    /// The service's own code.
    pub code: Option<String>,
    /// For the service's support.
    pub request_id: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
    #[serde(skip)]
    pub(super) exit_code: u8,
}

impl Step {
    pub(super) fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Step {
        let detail = detail.into();
        Step { name, verdict, detail, code: None, request_id: None, remedy: None, exit_code: exit_code::OK }
    }

    pub(super) fn ok(name: &'static str, detail: impl Into<String>) -> Step {
        Step::new(name, Verdict::Ok, detail)
    }

    pub(super) fn skipped(name: &'static str, detail: impl Into<String>) -> Step {
        Step::new(name, Verdict::Skipped, detail)
    }

    pub(super) fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Step {
        Step { remedy: Some(remedy.into()), ..Step::new(name, Verdict::Warn, detail) }
    }

    pub(super) fn fail(
        name: &'static str,
        exit_code: u8,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Step {
        Step { remedy: Some(remedy.into()), exit_code, ..Step::new(name, Verdict::Fail, detail) }
    }

    /// With what the service said of it.
    pub(super) fn of_service(self, code: Option<String>, request_id: Option<String>) -> Step {
        Step { code, request_id, ..self }
    }
}

/// All verdicts.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    schema: u32,
    version: &'static str,
    /// No step failed.
    ok: bool,
    /// The exit code of the first step that failed.
    pub exit_code: u8,
    /// In the order in which one builds on the other.
    pub steps: Vec<Step>,
}

impl Report {
    pub(super) fn new(steps: Vec<Step>) -> Report {
        let failed = steps.iter().find(|step| step.verdict == Verdict::Fail);
        let exit_code = failed.map_or(exit_code::OK, |step| step.exit_code);
        Report { schema: SCHEMA, version: env!("CARGO_PKG_VERSION"), ok: failed.is_none(), exit_code, steps }
    }

    /// A line for each verdict, and one below it for what to do.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            let verdict = match step.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "fail",
                Verdict::Skipped => "skip",
            };
            let request_id = step.request_id.as_ref().map(|id| format!("request id {id}"));
            let said: Vec<_> = step.code.iter().cloned().chain(request_id).collect();
            let said = if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) };
            let _ = writeln!(
                text,
                "{:<6} {:<13} {}{}",
                format!("[{verdict}]"),
                step.name,
                one_line(&step.detail),
                one_line(&said)
            );
            if let Some(remedy) = &step.remedy {
                let _ = writeln!(text, "{:20} -> {}", "", one_line(remedy));
            }
        }
        let _ = writeln!(text, "Next: {}", self.next());
        text
    }

    /// What to do first: the remedy of the first step that failed, or what is left to do where none did.
    fn next(&self) -> String {
        let first = |verdict| self.steps.iter().find(|step| step.verdict == verdict);
        let is = |name, verdict| self.steps.iter().any(|step| step.name == name && step.verdict == verdict);
        let remedy = |step: &Step| {
            let remedy = step.remedy.as_deref().unwrap_or("see the line above");
            format!("{}: {}", step.name, one_line(remedy))
        };
        let is_to_do = |step: &&Step| match step.verdict {
            Verdict::Skipped => step.remedy.is_some(),
            // For instance: the daemon that runs has other settings, or stores each event twice.
            Verdict::Warn => [DAEMON, PULL_ALONE, QUARANTINE].contains(&step.name),
            Verdict::Ok | Verdict::Fail => false,
        };
        let waits = self.steps.iter().find(is_to_do);
        match (first(Verdict::Fail), waits) {
            (Some(failed), _) => remedy(failed),
            (None, Some(waits)) => remedy(waits),
            (None, None) if is(DAEMON, Verdict::Ok) => {
                "nothing; the daemon runs, and what was judged here holds".to_owned()
            }
            (None, None) if !self.steps.iter().any(|step| step.name == BUCKET) => {
                "run check without --offline, which tries the role and the bucket".to_owned()
            }
            (None, None) if is(BUCKET, Verdict::Skipped) => {
                "start the daemon (env0-s3-logs run), and run check again: role and bucket are not judged yet"
                    .to_owned()
            }
            (None, None) => "start the daemon: env0-s3-logs run".to_owned(),
        }
    }

    /// The whole report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and booleans are JSON") + "\n"
    }
}

/// What a service says may hold anything.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
