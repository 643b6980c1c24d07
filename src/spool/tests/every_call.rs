//! Runs one fixed scenario again and again, with a fault at another call of the file system each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fault_disk::{Cut, Effect, Errno};
use super::property::ERRORS;
use super::world::{Fate, World};
use crate::batch::Codec;

/// Two batches sealed, one renamed and delivered after a lost answer, one delivered, one left open.
fn scenario(world: &mut World) {
    let steps: [fn(&mut World); 11] = [
        |world| drop(world.append(2)),
        |world| drop(world.append(1)),
        World::seal,
        |world| drop(world.upload(Fate::NameTaken)),
        |world| drop(world.upload(Fate::Refused)),
        |world| drop(world.upload(Fate::AnswerLost)),
        |world| drop(world.append(3)),
        |world| drop(world.upload(Fate::Stored)),
        World::seal,
        |world| drop(world.upload(Fate::Stored)),
        |world| drop(world.append(2)),
    ];
    for step in steps {
        step(world);
        if world.disk.died() {
            return;
        }
    }
}

/// How much was tried.
#[derive(Default)]
pub(super) struct Tried {
    /// File system calls, each of them once the one with the fault.
    pub(super) calls: u64,
    /// Events acknowledged in all of it; each was delivered once.
    acknowledged: usize,
}

/// Runs the scenario once for each call that it makes, with `effect` at that call. Panics where an acknowledged event
/// is lost or doubled.
fn at_every_call(codec: Codec, effect: fn() -> Effect, and_then: fn(&mut World)) -> Tried {
    in_each_world(&|| World::with_codec(codec), effect, and_then)
}

/// [`at_every_call`] in worlds that `new` makes.
pub(super) fn in_each_world(new: &dyn Fn() -> World, effect: fn() -> Effect, and_then: fn(&mut World)) -> Tried {
    let mut tried = Tried::default();
    loop {
        let mut world = new();
        let reached = Arc::new(AtomicBool::new(false));
        let sign = reached.clone();
        world.disk.at_call(tried.calls, move || {
            sign.store(true, Ordering::SeqCst);
            effect()
        });
        // A start that fails is tried again, as a supervisor does.
        if world.open().is_err() {
            world.open().unwrap();
        }
        if !world.disk.died() {
            scenario(&mut world);
        }
        let reached = reached.load(Ordering::SeqCst);
        and_then(&mut world);
        world.deliver_all();
        world.crash(Cut::Strict);
        world.deliver_all();
        tried.acknowledged += world.acknowledged.len();
        if !reached {
            return tried;
        }
        tried.calls += 1;
    }
}

pub(super) const CODECS: [Codec; 2] = [Codec::None, Codec::Gzip];

fn fail<const INDEX: usize>() -> Effect {
    Effect::Fail(ERRORS[INDEX])
}

/// One for each of [`ERRORS`].
pub(super) const FAILURES: [fn() -> Effect; ERRORS.len()] = [fail::<0>, fail::<1>, fail::<2>, fail::<3>, fail::<4>];

/// The errors that a file system answers though it has carried the call out: NFS to a request
/// that it got twice, FUSE to any.
pub(super) const DONE_ALL_THE_SAME: [fn() -> Effect; 2] = [|| Effect::Apply(Errno::NOENT), || Effect::Apply(Errno::IO)];

pub(super) fn lose_some() -> Effect {
    Effect::Die(Cut::Torn(rand::random()))
}

#[test]
fn an_error_at_any_call_loses_nothing_and_passes_by_itself() {
    for codec in CODECS {
        for effect in FAILURES {
            assert!(at_every_call(codec, effect, |_| {}).calls > 40);
        }
    }
}

#[test]
fn a_call_that_is_done_and_answers_an_error_loses_nothing_and_strands_nothing() {
    for codec in CODECS {
        for effect in DONE_ALL_THE_SAME {
            assert!(at_every_call(codec, effect, |_| {}).calls > 40);
            assert!(at_every_call(codec, effect, |world| world.crash(Cut::Strict)).calls > 40);
        }
    }
}

#[test]
fn an_error_at_any_call_and_then_a_power_cut_loses_nothing() {
    for codec in CODECS {
        assert!(at_every_call(codec, || Effect::Fail(Errno::IO), |world| world.crash(Cut::Strict)).calls > 40);
    }
}

#[test]
fn a_power_cut_at_any_call_loses_nothing() {
    for codec in CODECS {
        assert!(at_every_call(codec, || Effect::Die(Cut::Strict), |world| world.crash(Cut::Strict)).calls > 40);
    }
}

#[test]
fn a_power_cut_at_any_call_that_keeps_some_of_what_was_not_fsynced_loses_nothing() {
    for codec in CODECS {
        for _ in 0..4 {
            assert!(at_every_call(codec, lose_some, |world| world.crash(Cut::Strict)).calls > 40);
        }
    }
}

#[test]
fn a_power_cut_at_any_call_that_leaves_holes_loses_nothing() {
    for codec in CODECS {
        assert!(at_every_call(codec, || Effect::Die(Cut::Holes), |world| world.crash(Cut::Holes)).calls > 40);
    }
}

#[test]
fn a_kill_at_any_call_loses_nothing() {
    for codec in CODECS {
        assert!(at_every_call(codec, || Effect::Die(Cut::Kill), |world| world.crash(Cut::Strict)).calls > 40);
    }
}

/// `cargo test -- --ignored --nocapture long_run`: repeats all of the above and prints how much was tried.
#[test]
#[ignore = "takes minutes"]
fn long_run() {
    const TIMES: usize = 10;
    println!("\n| at a file system call | faults | events acknowledged | lost | doubled |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let row = |name: &str, effect: fn() -> Effect, and_then: fn(&mut World)| {
        let mut sum = Tried::default();
        for codec in CODECS.repeat(TIMES) {
            let tried = at_every_call(codec, effect, and_then);
            sum = Tried { calls: sum.calls + tried.calls, acknowledged: sum.acknowledged + tried.acknowledged };
        }
        println!("| {name} | {} | {} | 0 | 0 |", sum.calls, sum.acknowledged);
    };
    for (effect, error) in FAILURES.into_iter().zip(ERRORS) {
        let error = std::io::Error::from(error);
        row(&format!("{error}"), effect, |_| {});
        row(&format!("{error}, and then a power cut"), effect, |world| world.crash(Cut::Strict));
    }
    for (effect, error) in DONE_ALL_THE_SAME.into_iter().zip([Errno::NOENT, Errno::IO]) {
        row(&format!("done, and answers {}", std::io::Error::from(error)), effect, |_| {});
    }
    row("kill -9", || Effect::Die(Cut::Kill), |world| world.crash(Cut::Strict));
    row("power cut, what was not fsynced is lost", || Effect::Die(Cut::Strict), |world| world.crash(Cut::Strict));
    row("power cut, what was not fsynced is a hole", || Effect::Die(Cut::Holes), |world| world.crash(Cut::Holes));
    row("power cut, some of it is lost, torn and out of order", lose_some, |world| world.crash(Cut::Strict));
}
