//! One fixed run of the spool's life, with a fault at every call of the file system in turn.

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

/// Runs the scenario once for each call that it makes, with `effect` at that call; how many there were.
fn at_every_call(codec: Codec, effect: fn() -> Effect, and_then: fn(&mut World)) -> u64 {
    for call in 0.. {
        let mut world = World::with_codec(codec);
        let (reached, hit) =
            (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), std::sync::atomic::Ordering::SeqCst);
        let sign = reached.clone();
        world.disk.at_call(call, move || {
            sign.store(true, hit);
            effect()
        });
        // A start that fails is tried again, as a supervisor does.
        if world.open().is_err() {
            world.open().unwrap();
        }
        if !world.disk.died() {
            scenario(&mut world);
        }
        let reached = reached.load(hit);
        and_then(&mut world);
        world.deliver_all();
        world.crash(Cut::Strict);
        world.deliver_all();
        if !reached {
            return call;
        }
    }
    unreachable!()
}

const CODECS: [Codec; 2] = [Codec::None, Codec::Gzip];

#[test]
fn an_error_at_any_call_loses_nothing_and_passes_by_itself() {
    fn fail<const INDEX: usize>() -> Effect {
        Effect::Fail(ERRORS[INDEX])
    }
    for codec in CODECS {
        for effect in [fail::<0>, fail::<1>, fail::<2>, fail::<3>, fail::<4>] {
            assert!(at_every_call(codec, effect, |_| {}) > 40);
        }
    }
}

#[test]
fn an_error_at_any_call_and_then_a_power_cut_loses_nothing() {
    for codec in CODECS {
        assert!(at_every_call(codec, || Effect::Fail(Errno::IO), |world| world.crash(Cut::Strict)) > 40);
    }
}

#[test]
fn a_power_cut_at_any_call_loses_nothing() {
    for codec in CODECS {
        assert!(at_every_call(codec, || Effect::Die(Cut::Strict), |world| world.crash(Cut::Strict)) > 40);
    }
}

#[test]
fn a_power_cut_at_any_call_that_keeps_some_of_what_was_not_fsynced_loses_nothing() {
    for codec in CODECS {
        for _ in 0..4 {
            assert!(
                at_every_call(codec, || Effect::Die(Cut::Torn(rand::random())), |world| world.crash(Cut::Strict)) > 40
            );
        }
    }
}

#[test]
fn a_kill_at_any_call_loses_nothing() {
    for codec in CODECS {
        assert!(at_every_call(codec, || Effect::Die(Cut::Kill), |world| world.crash(Cut::Strict)) > 40);
    }
}
