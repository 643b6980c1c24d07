//! The rules by which a test's disk fails.

use std::path::Path;

use super::{Effect, Errno, FaultDisk, Op};

type Judge = dyn FnMut(Op, &Path) -> Effect + Send;

/// What becomes of the calls of a disk.
pub(super) struct Rule {
    judge: Box<Judge>,
    /// Whether a call did not pass.
    has_struck: bool,
}

impl Rule {
    pub(super) fn judge(&mut self, op: Op, path: &Path) -> Effect {
        let effect = (self.judge)(op, path);
        self.has_struck |= !matches!(effect, Effect::Pass);
        effect
    }
}

impl Drop for Rule {
    /// A test whose fault never came would prove nothing.
    fn drop(&mut self) {
        assert!(self.has_struck || std::thread::panicking(), "no call came that the test's rule is for");
    }
}

impl FaultDisk {
    /// Judges every call from now on. Panics at its end if every call has passed.
    pub(crate) fn rule(&self, rule: impl FnMut(Op, &Path) -> Effect + Send + 'static) {
        self.set_rule(Some(Rule { judge: Box::new(rule), has_struck: false }));
    }

    /// Judges every call from now on; it may be that all pass.
    pub(crate) fn rule_that_may_not_strike(&self, rule: impl FnMut(Op, &Path) -> Effect + Send + 'static) {
        self.set_rule(Some(Rule { judge: Box::new(rule), has_struck: true }));
    }

    fn set_rule(&self, rule: Option<Rule>) {
        // The one before may panic, which must not poison the lock.
        let before = std::mem::replace(&mut self.state().rule, rule);
        drop(before);
    }

    /// The call after `calls` more has this effect; the others pass. There may be fewer calls.
    pub(crate) fn at_call(&self, calls: u64, effect: impl Fn() -> Effect + Send + 'static) {
        let mut left = calls;
        self.rule_that_may_not_strike(move |_, _| {
            left = left.wrapping_sub(1);
            if left == u64::MAX { effect() } else { Effect::Pass }
        });
    }

    /// Every call of `op` on a path that contains `part` fails with `errno` until [`FaultDisk::heal`].
    pub(crate) fn fail(&self, op: Op, part: &'static str, errno: Errno) {
        self.rule(move |asked, path| {
            if asked == op && path.to_string_lossy().contains(part) { Effect::Fail(errno) } else { Effect::Pass }
        });
    }

    /// The next call of `op` on a path that contains `part` fails with `errno`.
    pub(crate) fn fail_once(&self, op: Op, part: &'static str, errno: Errno) {
        let mut done = false;
        self.rule(move |asked, path| {
            let hit = !done && asked == op && path.to_string_lossy().contains(part);
            done |= hit;
            if hit { Effect::Fail(errno) } else { Effect::Pass }
        });
    }

    /// From now on every call passes.
    pub(crate) fn heal(&self) {
        self.set_rule(None);
    }
}
