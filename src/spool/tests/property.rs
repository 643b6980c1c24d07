//! Any sequence of appends, seals, uploads, crashes and faults keeps the promises that [`World`] checks.

use proptest::prelude::*;

use super::fault_disk::{Cut, Effect, Errno};
use super::world::{Fate, World};
use crate::batch::Codec;

/// The errors that a disk gives.
pub(super) const ERRORS: [Errno; 5] = [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::FBIG];

#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Seal,
    Upload(Fate),
    Crash(Cut),
    /// A crash, and the n-th name that the next start meets in its listings is left out once.
    CrashAndLack(Cut, u64),
    /// The n-th call from here fails.
    Fault(u64, Errno),
    /// The n-th call from here is the last.
    Death(u64, Cut),
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![Just(Cut::Kill), Just(Cut::Strict), Just(Cut::Holes), any::<u64>().prop_map(Cut::Torn)]
}

fn step() -> impl Strategy<Value = Step> {
    let fates = [
        Fate::Stored,
        Fate::AnswerLost,
        Fate::LostOnTheWay,
        Fate::Refused,
        Fate::NameTaken,
        Fate::RefusedOnTheWay,
        Fate::ChecksumRefused,
    ];
    prop_oneof![
        6 => (1..6u64).prop_map(Step::Append),
        2 => Just(Step::Seal),
        4 => prop::sample::select(fates.to_vec()).prop_map(Step::Upload),
        1 => cut().prop_map(Step::Crash),
        1 => (cut(), 0..12u64).prop_map(|(cut, names)| Step::CrashAndLack(cut, names)),
        2 => (0..8u64, prop::sample::select(ERRORS.to_vec())).prop_map(|(calls, errno)| Step::Fault(calls, errno)),
        2 => (0..12u64, cut()).prop_map(|(calls, cut)| Step::Death(calls, cut)),
    ]
}

fn run(codec: Codec, steps: Vec<Step>) {
    let mut world = World::with_codec(codec);
    world.open().unwrap();
    for step in steps {
        match step {
            // It may be refused; the promises hold in either case.
            Step::Append(count) => drop(world.append(count)),
            Step::Seal => world.seal(),
            Step::Upload(fate) => drop(world.upload(fate)),
            Step::Crash(cut) => world.crash(cut),
            Step::CrashAndLack(cut, names) => world.crash_and_lack(cut, names),
            Step::Fault(calls, errno) => world.disk.at_call(calls, move || Effect::Fail(errno)),
            Step::Death(calls, cut) => world.disk.at_call(calls, move || Effect::Die(cut)),
        }
        if world.disk.died() {
            world.crash(Cut::Kill);
        }
        world.check_stages();
    }
    world.deliver_all();
    world.crash(Cut::Strict);
    world.deliver_all();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_acknowledged_event_is_delivered_once_whatever_happens(steps in prop::collection::vec(step(), 1..60)) {
        run(Codec::None, steps);
    }

    #[test]
    fn every_acknowledged_event_is_delivered_once_with_compression_too(
        codec in prop::sample::select(vec![Codec::Gzip, Codec::Zstd]),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(codec, steps);
    }
}
