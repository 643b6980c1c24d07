//! When a refusal comes, the lines are not stored, now or later, and take no room or memory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake};

use futures_util::FutureExt;

use super::fault_disk::{Cut, Effect, Errno, Op};
use super::world::{TYPE, World, line};
use crate::batch::Codec;
use crate::spool::Spool;

#[test]
fn lines_that_a_failed_fsync_refused_are_not_found_by_a_start_after_a_kill() {
    for codec in [Codec::None, Codec::Gzip] {
        let mut world = World::with_codec(codec);
        world.open().unwrap();
        world.append(2).unwrap();
        // Every fsync fails and no second file can be made, so the file is still there when the answer comes.
        world.disk.rule(|op, path| {
            let fails = op == Op::Sync || (op == Op::Create && path.to_string_lossy().ends_with(".tmp"));
            if fails { Effect::Fail(Errno::IO) } else { Effect::Pass }
        });
        world.append(3).unwrap_err();
        world.crash(Cut::Kill);
        world.deliver_all();
        assert_eq!(world.missing(), 0, "{codec:?}");
    }
}

#[test]
fn a_refusal_waits_for_the_salvage_where_the_lines_can_not_be_cut_off() {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.disk.rule(|op, path| {
        let fails = matches!(op, Op::Sync | Op::Truncate)
            || (op == Op::Create && path.extension().is_some_and(|ending| ending == "tmp"));
        if fails { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    let spool = world.spool().clone();
    let mut append = Box::pin(spool.append(TYPE, line(7).into(), 1));
    assert!((&mut append).now_or_never().is_none());
    // The salvage has failed twice.
    let dir = world.dir();
    let is_try = move |(op, path): &&(Op, PathBuf)| *op == Op::Create && path.starts_with(&dir);
    let tries = |world: &World| world.disk.trace().iter().filter(&is_try).count();
    let before = tries(&world);
    world.wait_until("it is tried again", |world| tries(world) > before + 2);
    assert!((&mut append).now_or_never().is_none(), "refused, and a start would find the line");
    world.disk.heal();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(append).is_err());
    drop(spool);
    world.crash(Cut::Kill);
    world.deliver_all();
    assert_eq!((world.missing(), world.bucket.len()), (0, 1));
}

#[test]
fn a_request_that_a_read_only_disk_takes_nothing_of_is_refused_at_once() {
    let mut world = World::opened();
    world.append(2).unwrap();
    world.disk.rule(|op, _| match op {
        Op::Identify | Op::List | Op::Entry | Op::Open | Op::Read | Op::BeginWriteOut => Effect::Pass,
        _ => Effect::Fail(Errno::ROFS),
    });
    let spool = world.spool().clone();
    let mut append = Box::pin(spool.append(TYPE, line(7).into(), 1));
    world.wait_until("it is refused", |_| (&mut append).now_or_never().is_some_and(|answer| answer.is_err()));
    drop(append);
    drop(spool);
    world.crash(Cut::Kill);
    world.deliver_all();
    assert_eq!((world.missing(), world.bucket.len()), (0, 1));
}

/// What was in the spool when the task that waited was woken.
struct HeldAtWakeUp {
    spool: Spool,
    bytes: Mutex<Option<u64>>,
}

impl Wake for HeldAtWakeUp {
    fn wake(self: Arc<Self>) {
        *self.bytes.lock().unwrap() = Some(self.spool.usage().used_bytes(TYPE));
    }
}

#[test]
fn whoever_hears_a_refusal_finds_the_room_free_that_was_asked_for() {
    const LONGER_LINE: &str = "{\"a\":1}\n";
    const LINE: &str = "{}\n";
    let mut world = World::opened();
    world.append(2).unwrap();
    let held_bytes = world.spool().usage().used_bytes(TYPE);
    let ((syncs, in_sync), (all_wait, fails)) = (mpsc::channel(), mpsc::channel::<()>());
    world.disk.rule(move |op, path| {
        let name = path.to_string_lossy();
        if op == Op::Sync && name.ends_with(".open") {
            let _ = syncs.send(());
            let _ = fails.recv();
            return Effect::Fail(Errno::IO);
        }
        if name.ends_with(".tmp") && op == Op::Create { Effect::Fail(Errno::IO) } else { Effect::Pass }
    });
    let begin = |line: &'static str| {
        let woken = Arc::new(HeldAtWakeUp { spool: world.spool().clone(), bytes: Mutex::default() });
        let spool = woken.spool.clone();
        let mut append = Box::pin(async move { spool.append(TYPE, line.into(), 1).await });
        assert!(append.as_mut().poll(&mut Context::from_waker(&woken.clone().into())).is_pending());
        (append, woken)
    };
    let meets_the_fsync = begin(LONGER_LINE);
    in_sync.recv().unwrap();
    let meets_the_salvage = begin(LINE);
    drop(all_wait);
    // The second may be refused before the first is answered, or after it.
    let of_the_second = held_bytes + LINE.len() as u64;
    for ((append, woken), most_bytes) in [(meets_the_fsync, of_the_second), (meets_the_salvage, held_bytes)] {
        world.wait_until("the append is answered", |_| woken.bytes.lock().unwrap().is_some());
        assert!(append.now_or_never().unwrap().is_err());
        let bytes = woken.bytes.lock().unwrap().unwrap();
        assert!((held_bytes..=most_bytes).contains(&bytes), "{bytes} of {held_bytes} to {most_bytes}");
    }
    world.deliver_all();
}
