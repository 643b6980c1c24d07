//! A crash at every call of the file system while audit events come into the spool: each is in the bucket once.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::batch::LogType;
use crate::pull::deployments::tests::{EVENTS, at_every_call, send};
use crate::pull::place::Shared;
use crate::pull::settle;
use crate::spool::tests::fault_disk::{Cut, Effect, Errno};
use crate::spool::tests::world::World;

/// One life: the events that the place doesn't know are taken in windows of two, and sent when they may
/// be. Whatever the disk refuses is tried again. With `ends_at_refusal` the life ends there instead,
/// after the flusher has had its turn.
fn pull(world: &mut World, ends_at_refusal: bool) -> Result<(), RoundError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let spool = world.spool().clone();
    runtime.block_on(async {
        settle::begin(&spool)[LogType::Audits].wait().await;
        let stop = CancellationToken::new();
        let shared = Shared { one_at_a_time: Arc::default(), stop: stop.clone(), max_event_bytes: 1 << 20 };
        let first = AuditMemory::beginning(DateTime::UNIX_EPOCH);
        let mut place = loop {
            match Place::open(&spool, LogType::Audits, "o", shared.clone(), first.clone()).await {
                Ok(place) => break place,
                Err(error @ PlaceError::Unusable { .. }) => panic!("{error}"),
                Err(_) if ends_at_refusal => return Err(RoundError::Stopped),
                Err(_) => {}
            }
        };
        // Late events make every window one of the present.
        let asked_at = DateTime::UNIX_EPOCH + LATE;
        for window in (0..EVENTS).step_by(2) {
            let mut memory = place.memory.clone();
            let (mut lines, mut records) = (String::new(), 0);
            for number in window..window + 2 {
                let at = i64::try_from(number).unwrap();
                let line = format!("{{\"id\":{number},\"timestamp\":\"{}\"}}", rfc3339(at));
                let [id] = members(json_of(line.as_bytes()), ["id"]);
                if at >= memory.from && memory.taken.insert(&Mark::new(&[], id, line.as_bytes()), at) == Known::No {
                    lines += &format!("{line}\n");
                    records += 1;
                }
            }
            memory.complete(i64::try_from(window + 2).unwrap(), asked_at, true);
            let waiting = |_: &str| {
                if ends_at_refusal {
                    send(world);
                    stop.cancel();
                }
            };
            place.commit(Bytes::from(lines), records, memory, waiting).await?;
            send(world);
            if world.disk.died() {
                return Err(RoundError::Stopped);
            }
        }
        Ok(())
    })
}

#[test]
fn a_kill_at_any_call_brings_every_audit_event_once() {
    assert!(at_every_call(LogType::Audits, pull, || Effect::Die(Cut::Kill), false) > 60);
}

#[test]
fn a_power_cut_at_any_call_brings_every_audit_event_once() {
    assert!(at_every_call(LogType::Audits, pull, || Effect::Die(Cut::Strict), false) > 60);
}

#[test]
fn a_power_cut_that_tears_writes_brings_every_audit_event_once() {
    for _ in 0..4 {
        assert!(at_every_call(LogType::Audits, pull, || Effect::Die(Cut::Torn(rand::random())), false) > 60);
    }
}

#[test]
fn an_error_at_any_call_and_then_a_power_cut_brings_every_audit_event_once() {
    assert!(at_every_call(LogType::Audits, pull, || Effect::Fail(Errno::IO), true) > 60);
}

#[test]
fn a_start_knows_an_event_that_names_another_organization_by_its_bytes_alone() {
    let line = |of: &str| format!(r#"{{"id":"audit-1",{of}"timestamp":"1970-01-01T00:00:00.001Z"}}"#).into_bytes();
    let (ours, anothers, nobodys) = (line("\"organizationId\":\"o\","), line("\"organizationId\":\"p\","), line(""));
    let [id] = members(json_of(&ours), ["id"]);
    for (found, knows_ours) in [(&ours, Known::Yes), (&anothers, Known::No), (&nobodys, Known::No)] {
        let mut memory = AuditMemory::beginning(DateTime::UNIX_EPOCH);
        memory.found(found, &Whose { organization: "o", organizations: &["o".into(), "p".into()] }, None);
        assert_eq!(memory.taken.knows(&Mark::new(&[], id, &ours)), knows_ours);
        assert_eq!(memory.taken.len(), 1);
        assert_eq!(memory.taken.knows(&Mark::new(&[], None, found)) == Known::Yes, found != &ours);
    }
}

#[test]
fn by_an_unsure_clock_a_place_goes_no_further_than_the_newest_event_or_a_day() {
    let at = |minutes: i64| DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes);
    let millis = |minutes: i64| at(minutes).timestamp_millis();
    let mut memory = AuditMemory::beginning(at(0));
    memory.taken.insert(&Mark::new(&[], None, b"one"), millis(50));
    memory.taken.insert(&Mark::new(&[], None, b"two"), millis(90));
    memory.complete(millis(100), at(100), true);
    assert_eq!((memory.from, memory.reached, memory.taken.len()), (millis(85), millis(100), 1));
    memory.complete(millis(1000), at(1000), false);
    assert_eq!((memory.from, memory.taken.len()), (millis(90), 1));
    assert_eq!(memory.ahead_of(at(110)), Some(TimeDelta::minutes(890)));
    let mut set_back = memory.clone();
    set_back.set_back(at(110));
    assert_eq!((set_back.from, set_back.reached, set_back.ahead_of(at(110))), (millis(90), millis(90), None));
    memory.complete(millis(3000), at(3000), false);
    assert_eq!(memory.from, millis(3000 - 15 - 24 * 60));
    memory.complete(millis(4000), at(4000), true);
    assert_eq!((memory.from, memory.taken.len()), (millis(4000 - 15), 1));
    memory.set_back(at(110));
    assert_eq!((memory.from, memory.taken.len()), (millis(90), 1), "what is known of then stays known");
}
