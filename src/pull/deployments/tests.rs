//! A crash at every call of the file system while a step's log comes into the spool: each event is in the bucket once.
//! And files that the disk refuses.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use chrono::DateTime;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::follow::Listing;
use super::found::{FOLLOWING_MAX, Found, TakenUp};
use super::list::Listed;
use super::memory::{DeploymentMemory, Following, Steps};
use super::records::EnvironmentRecord;
use crate::batch::{Codec, LogType};
use crate::protocols::body::members;
use crate::pull::files::PlaceError;
use crate::pull::identity::Known;
use crate::pull::line::json_of;
use crate::pull::place::{Change, Place, Shared};
use crate::pull::round::RoundError;
use crate::pull::settle;
use crate::spool::tests::fault_disk::{Cut, Effect, Errno, Op};
use crate::spool::tests::world::{Fate, TYPE, World};

/// Events that are pulled; two come at a time.
pub(crate) const EVENTS: u64 = 6;

fn line(number: u64) -> String {
    format!("{{\"id\":{number},\"eventId\":\"{number}\",\"deploymentLogId\":\"d\",\"stepName\":\"s\"}}\n")
}

/// A deployment that is followed, as the round that has found it leaves it.
pub(crate) fn beginning() -> DeploymentMemory {
    let mut memory = DeploymentMemory::beginning(DateTime::UNIX_EPOCH);
    memory.following.insert("d".into(), Following { environment_id: "e".into(), ..Following::default() });
    memory
}

/// Whether the last line of that deployment is known.
pub(crate) fn is_finished(memory: &DeploymentMemory) -> bool {
    memory.following["d"].finished
}

/// The flusher: seals, and sends every batch that the gate lets pass.
pub(crate) fn send(world: &mut World) {
    world.seal();
    while let Some(batch) = world.waiting.first() {
        if world.disk.died()
            || world.spool().gate(world.log_type).pass(batch.name.batch.opened).now_or_never().is_none()
        {
            return;
        }
        // What fails is tried again after the next events.
        if world.upload(Fate::Stored).is_err() {
            return;
        }
    }
}

/// What is remembered of a deployment's steps: in the place where their file could not be written.
async fn steps_of(place: &Place<DeploymentMemory>, id: &str) -> Result<Steps, PlaceError> {
    let kept = place.memory.following[id].steps.clone();
    if kept.is_empty() { Ok(place.parts().load(id).await?.unwrap_or_default()) } else { Ok(kept) }
}

/// One life: what the place doesn't know is taken from the log, and sent when it may be. Whatever the disk refuses is
/// tried again. With `ends_at_refusal` the life ends there instead, after the flusher has had its turn.
fn pull(world: &mut World, ends_at_refusal: bool) -> Result<(), RoundError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let spool = world.spool().clone();
    runtime.block_on(async {
        settle::begin(&spool)[TYPE].wait().await;
        let stop = CancellationToken::new();
        let shared = Shared { one_at_a_time: Arc::default(), stop: stop.clone(), max_event_bytes: 1 << 20 };
        let mut place = loop {
            match Place::open(&spool, TYPE, "o", shared.clone(), beginning()).await {
                Ok(place) => break place,
                Err(error @ PlaceError::Unusable { .. }) => panic!("{error}"),
                Err(_) if ends_at_refusal => return Err(RoundError::Stopped),
                Err(_) => {}
            }
        };
        for first in (0..EVENTS).step_by(2) {
            let mut steps = loop {
                match steps_of(&place, "d").await {
                    Ok(steps) => break steps,
                    Err(error @ PlaceError::Unusable { .. }) => panic!("{error}"),
                    Err(_) if ends_at_refusal => return Err(RoundError::Stopped),
                    Err(_) => {}
                }
            };
            let step = steps.entry("s".into()).or_default();
            let mut new: Vec<String> = (first..first + 2).map(line).collect();
            new.retain(|line| {
                let line = line.trim_end().as_bytes();
                let [id] = members(json_of(line), ["eventId"]);
                let mark = step.mark(["d", "s"], id, line);
                step.take(&mark, None) == Known::No
            });
            let lines = Bytes::from(new.concat());
            let waiting = |_: &str| {
                if ends_at_refusal {
                    send(world);
                    stop.cancel();
                }
            };
            let parts = vec![("d".to_owned(), Some(steps))];
            place.commit(lines, new.len() as u64, Change { memory: None, parts }, waiting).await?;
            send(world);
            if world.disk.died() {
                return Err(RoundError::Stopped);
            }
        }
        Ok(())
    })
}

/// One life of a pull.
pub(crate) type Life = fn(&mut World, bool) -> Result<(), RoundError>;

/// Pulls once for each call of the file system, with `effect` at that call, and once more after a power cut. The number
/// of calls.
pub(crate) fn at_every_call(
    log_type: LogType,
    pull: Life,
    effect: impl Fn() -> Effect + Copy + Send + 'static,
    ends_at_refusal: bool,
) -> u64 {
    for call in 0.. {
        let mut world = World::new();
        world.log_type = log_type;
        let reached = Arc::new(AtomicBool::new(false));
        let sign = reached.clone();
        world.disk.at_call(call, move || {
            sign.store(true, Ordering::SeqCst);
            effect()
        });
        // A start that fails is tried again, as a supervisor does.
        if world.open().is_err() {
            world.open().unwrap();
        }
        // However this life ends, the next one has to bring the rest.
        let _ = pull(&mut world, ends_at_refusal);
        let reached = reached.load(Ordering::SeqCst);
        world.disk.heal();
        world.crash(Cut::Strict);
        pull(&mut world, false).unwrap();
        world.deliver_all();
        assert_eq!(stored(&world), (0..EVENTS).map(|number| (number, 1)).collect(), "call {call}");
        if !reached {
            return call;
        }
    }
    unreachable!("a run has an end")
}

/// How often each event is in the bucket.
fn stored(world: &World) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for object in world.bucket.values() {
        for line in std::str::from_utf8(&object.body).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            *counts.entry(line["id"].as_u64().unwrap()).or_default() += 1;
        }
    }
    counts
}

#[test]
fn a_kill_at_any_call_brings_every_pulled_event_once() {
    assert!(at_every_call(TYPE, pull, || Effect::Die(Cut::Kill), false) > 60);
}

#[test]
fn a_power_cut_at_any_call_brings_every_pulled_event_once() {
    assert!(at_every_call(TYPE, pull, || Effect::Die(Cut::Strict), false) > 60);
}

#[test]
fn a_power_cut_that_tears_writes_brings_every_pulled_event_once() {
    for _ in 0..4 {
        assert!(at_every_call(TYPE, pull, || Effect::Die(Cut::Torn(rand::random())), false) > 60);
    }
}

#[test]
fn an_error_at_any_call_and_then_a_power_cut_brings_every_pulled_event_once() {
    assert!(at_every_call(TYPE, pull, || Effect::Fail(Errno::IO), true) > 60);
}

#[test]
fn a_place_that_finds_the_disk_full_has_the_room_of_copies() {
    let mut world = World::with_copies(Codec::None);
    world.open().unwrap();
    for _ in 0..3 {
        world.append(1).unwrap();
        world.deliver_all();
    }
    let mut full = true;
    world.disk.rule(move |op, path| {
        let name = path.to_string_lossy();
        full &= !(op == Op::Remove && name.contains("cloudwatch"));
        if full && op == Op::Write && name.ends_with(".json.tmp") { Effect::Fail(Errno::NOSPC) } else { Effect::Pass }
    });
    assert!(pull(&mut world, true).is_ok(), "nothing was refused");
    assert_eq!(world.spool().copies().unwrap().skipped_events(TYPE), 1);
}

/// Steps of a deployment, of which `events` events each are remembered.
fn steps(events: u64) -> Steps {
    let mut steps = Steps::new();
    for name in ["git:clone", "tf:init", "tf:plan", "tf:apply", "tf:output"] {
        let step = steps.entry(name.to_owned()).or_default();
        for number in 0..events {
            let mark = step.mark(["d", name], None, line(number).as_bytes());
            step.take(&mark, None);
        }
    }
    steps
}

fn pull_files(world: &World) -> Vec<String> {
    world.disk.names(&world.spool().dir().join("pull"))
}

#[tokio::test]
async fn a_place_stays_small_however_many_deployments_and_events_it_remembers() {
    let mut world = World::opened();
    let shared = Shared { one_at_a_time: Arc::default(), stop: CancellationToken::new(), max_event_bytes: 1 << 20 };
    let mut memory = DeploymentMemory::beginning(DateTime::UNIX_EPOCH);
    let ids: Vec<String> = (0..300).map(|number| format!("d/{number}")).collect();
    for id in &ids {
        memory.following.insert(id.clone(), Following { environment_id: "e".into(), ..Following::default() });
    }
    let mut place = Place::open(world.spool(), TYPE, "o", shared.clone(), memory).await.unwrap();
    for group in ids.chunks(8) {
        let parts = group.iter().map(|id| (id.clone(), Some(steps(200)))).collect();
        place.commit(Bytes::new(), 0, Change { memory: None, parts }, |_| ()).await.unwrap();
    }
    let bytes = world.disk.bytes(&world.spool().dir().join("pull/env0-deployments_o.json")).unwrap();
    assert!(bytes.len() < 300 * 300, "{} bytes", bytes.len());

    drop(place);
    world.crash(Cut::Strict);
    settle::begin(world.spool())[TYPE].wait().await;
    let first = DeploymentMemory::beginning(DateTime::UNIX_EPOCH);
    let mut place = Place::open(world.spool(), TYPE, "o", shared.clone(), first).await.unwrap();
    assert_eq!(place.parts().load("d/299").await.unwrap(), Some(steps(200)));

    // What is stored to its end is not remembered any more, and neither is what a crash kept from being removed.
    let mut memory = place.memory.clone();
    memory.done("d/0");
    let parts = vec![("d/0".to_owned(), None)];
    place.commit(Bytes::new(), 0, Change { memory: Some(memory), parts }, |_| ()).await.unwrap();
    assert_eq!(pull_files(&world).len(), 300);
    let mut memory = place.memory.clone();
    memory.done("d/1");
    place.commit(Bytes::new(), 0, memory, |_| ()).await.unwrap();
    world.disk.put(&world.spool().dir().join("pull/env0-deployments_o.0a.json.tmp"), b"{");
    drop(Place::open(world.spool(), TYPE, "o", shared, DeploymentMemory::default()).await.unwrap());
    assert_eq!(pull_files(&world).len(), 299);
}

#[tokio::test]
async fn a_place_that_would_be_too_large_to_be_read_again_is_not_written_and_told() {
    let world = World::opened();
    let stop = CancellationToken::new();
    let shared = Shared { one_at_a_time: Arc::default(), stop: stop.clone(), max_event_bytes: 1 << 20 };
    let first = beginning();
    let mut place = Place::open(world.spool(), TYPE, "o", shared.clone(), first.clone()).await.unwrap();
    let mut memory = first;
    let name = "x".repeat(1 << 20);
    for number in 0..60 {
        let environment = memory.environments.entry(number.to_string()).or_default();
        environment.state.clone_from(&name);
    }
    let mut said = Vec::new();
    let committed = place.commit(Bytes::new(), 0, memory, |why| {
        said.push(why.to_owned());
        stop.cancel();
    });
    assert!(matches!(committed.await, Err(RoundError::Stopped)));
    assert!(said[0].contains("too large to be read again"), "{said:?}");
    let again = Place::open(world.spool(), TYPE, "o", shared, DeploymentMemory::default()).await.unwrap();
    assert!(again.memory.following.contains_key("d") && again.memory.environments.is_empty(), "the old place is there");
}

#[tokio::test]
async fn a_place_that_is_too_large_to_be_read_says_the_way_out() {
    let world = World::opened();
    let path = world.spool().dir().join("pull/env0-deployments_o.json");
    world.disk.put(&path, &vec![b' '; (64 << 20) + 1]);
    let shared = Shared { one_at_a_time: Arc::default(), stop: CancellationToken::new(), max_event_bytes: 1 << 20 };
    settle::begin(world.spool())[TYPE].wait().await;
    let error = Place::open(world.spool(), TYPE, "o", shared, beginning()).await.err().unwrap();
    assert!(matches!(error, PlaceError::Unusable { .. }) && error.to_string().contains("remove it"), "{error}");
}

/// Commits a line of the deployment `id`, which is number `number` of its log.
async fn commit_line(place: &mut Place<DeploymentMemory>, id: &str, number: u64) -> Result<(), RoundError> {
    let line = line(number).replace("\"d\"", &format!("\"{id}\""));
    let mut steps = steps_of(place, id).await.unwrap();
    let step = steps.entry("s".into()).or_default();
    let [event] = members(json_of(line.trim_end().as_bytes()), ["eventId"]);
    let mark = step.mark([id, "s"], event, line.trim_end().as_bytes());
    let new = u64::from(step.take(&mark, None) == Known::No);
    let lines = if new > 0 { Bytes::from(line) } else { Bytes::new() };
    let parts = vec![(id.to_owned(), Some(steps))];
    place.commit(lines, new, Change { memory: None, parts }, |_| ()).await.map(drop)
}

/// Refuses the names of the file of the deployment `id`'s part.
fn refuse_part(world: &World, id: &str) {
    let name = crate::batch::Sha256::of(id.as_bytes()).to_string();
    world.disk.rule(move |op, path| match op == Op::Rename && path.to_string_lossy().contains(&name) {
        true => Effect::Fail(Errno::ISDIR),
        false => Effect::Pass,
    });
}

/// The place of `d` and `e`, anew from the disk.
async fn place_of_two(world: &World) -> Place<DeploymentMemory> {
    let shared = Shared { one_at_a_time: Arc::default(), stop: CancellationToken::new(), max_event_bytes: 1 << 20 };
    let mut first = beginning();
    first.following.insert("e".into(), Following { environment_id: "e".into(), ..Following::default() });
    settle::begin(world.spool())[TYPE].wait().await;
    Place::open(world.spool(), TYPE, "o", shared, first).await.unwrap()
}

#[tokio::test]
async fn a_deployment_whose_file_cannot_be_written_holds_back_nothing_and_is_told() {
    for dies_before_it_is_healed in [false, true] {
        let mut world = World::opened();
        let mut place = place_of_two(&world).await;
        commit_line(&mut place, "d", 0).await.unwrap();
        refuse_part(&world, "d");
        for number in [1, 3] {
            commit_line(&mut place, "d", number).await.unwrap();
            commit_line(&mut place, "e", number + 1).await.unwrap();
            assert!(place.catch_up().await.unwrap().unwrap().to_string().contains(".json"));
        }
        // Both deployments' batches may go, and what a crash leaves knows of every line.
        send(&mut world);
        assert_eq!(stored(&world).len(), 5);
        if dies_before_it_is_healed {
            drop(place);
            world.crash(Cut::Strict);
            place = place_of_two(&world).await;
        }
        world.disk.heal();
        assert!(place.catch_up().await.unwrap().is_none());
        commit_line(&mut place, "d", 5).await.unwrap();
        send(&mut world);
        drop(place);
        world.crash(Cut::Strict);
        let mut place = place_of_two(&world).await;
        for (id, number) in [("d", 0), ("d", 1), ("e", 2), ("d", 3), ("e", 4), ("d", 5)] {
            commit_line(&mut place, id, number).await.unwrap();
        }
        world.deliver_all();
        assert_eq!(stored(&world), (0..6).map(|number| (number, 1)).collect());
    }
}

#[tokio::test]
async fn a_part_that_was_kept_in_the_place_is_not_taken_for_newer_than_its_file() {
    let mut world = World::opened();
    let mut place = place_of_two(&world).await;
    refuse_part(&world, "d");
    commit_line(&mut place, "d", 0).await.unwrap();
    world.disk.heal();
    // Its file can be written again before the next round has tried it.
    commit_line(&mut place, "d", 1).await.unwrap();
    send(&mut world);
    drop(place);
    world.crash(Cut::Strict);
    let mut place = place_of_two(&world).await;
    commit_line(&mut place, "d", 1).await.unwrap();
    world.deliver_all();
    assert_eq!(stored(&world), (0..2).map(|number| (number, 1)).collect());
}

#[tokio::test]
async fn a_place_that_cannot_be_written_gives_its_turn_up_and_keeps_its_own_batch_back() {
    let mut world = World::opened();
    let shared = Shared { one_at_a_time: Arc::default(), stop: CancellationToken::new(), max_event_bytes: 1 << 20 };
    let open = async |organization| Place::open(world.spool(), TYPE, organization, shared.clone(), beginning()).await;
    let (mut place, mut other) = (open("o").await.unwrap(), open("p").await.unwrap());
    commit_line(&mut place, "d", 0).await.unwrap();
    world.seal();
    world.disk.fail(Op::Rename, "deployments_o.json", Errno::ACCESS);
    let refused = commit_line(&mut place, "d", 1).await;
    assert!(matches!(refused, Err(RoundError::Place(PlaceError::Disk { .. }))), "{refused:?}");
    world.seal();
    // The other organization goes on, and only the batch with the line that the place doesn't know waits.
    commit_line(&mut other, "d", 2).await.unwrap();
    assert!(place.catch_up().await.is_err());
    send(&mut world);
    assert_eq!(stored(&world), [(0, 1)].into());
    world.disk.heal();
    assert!(place.catch_up().await.unwrap().is_none());
    send(&mut world);
    assert_eq!(stored(&world), (0..3).map(|number| (number, 1)).collect());
}

#[test]
fn more_deployments_than_are_followed_wait_for_an_interval_not_another_round() {
    let environment = EnvironmentRecord::unlisted("e".into(), None, None);
    let listed = |id: usize, listing| VecDeque::from([Listed::of(&id.to_string(), listing)]);
    let mut found = Found::nothing(DeploymentMemory::beginning(DateTime::UNIX_EPOCH), None);
    let mut take_up = |id, listing, room| {
        found.room = room;
        found.take_up(&environment, listed(id, listing))
    };
    for id in 0..FOLLOWING_MAX {
        assert_eq!(take_up(id, Listing::Running, 0), TakenUp::All);
    }
    assert_eq!(take_up(FOLLOWING_MAX, Listing::Running, 1), TakenUp::Full);
    assert_eq!(take_up(FOLLOWING_MAX, Listing::Ended(String::new()), 0), TakenUp::Full);
    // One that is followed takes no room.
    assert_eq!(take_up(7, Listing::Ended(String::new()), 0), TakenUp::All);
}

#[test]
fn a_deployment_dated_in_the_future_does_not_make_the_next_ones_old() {
    const DAY: i64 = 86_400_000;
    let mut memory = beginning();
    memory.listed("e2", "state", 10 * DAY, DAY);
    assert!(memory.environments["e2"].done_before < DAY);
    // The clock was ahead itself, and was set back.
    memory.listed("e2", "state", DAY, DAY);
    assert!(memory.environments["e2"].done_before < DAY);
}
