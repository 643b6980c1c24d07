use std::net::Ipv4Addr;

use futures_util::FutureExt;

use super::memory::{HEADS_MAX_BYTES, READ_LEAST_BYTES};
use super::*;

fn registry(max: usize) -> Arc<Registry> {
    Registry::new(max, Refusals::new("test"))
}

fn from(registry: &Arc<Registry>, host: u8) -> Member {
    registry.enter(Ipv4Addr::new(127, 0, 0, host).into())
}

fn guest(member: &Member) -> Guest {
    Guest { registry: member.registry.clone(), connection: member.connection.clone() }
}

fn let_in(member: &Member) {
    guest(member).let_in();
}

fn is_closing(member: &Member) -> bool {
    member.connection.closing.load(Ordering::Relaxed)
}

/// The id of the member that was closed; it is dropped, as by its task.
fn closed(registry: &Registry, members: &mut Vec<Member>) -> Option<u64> {
    registry.close_one().then(|| {
        let at = members.iter().position(is_closing).unwrap();
        members.remove(at).id
    })
}

#[test]
fn connections_share_what_their_reads_may_bring_and_each_has_a_least_and_a_most() {
    let registry = registry(10_000);
    let mut members = vec![from(&registry, 1)];
    assert_eq!(registry.memory.read_max_bytes(), READ_MOST_BYTES - 1);
    members.resize_with(256, || from(&registry, 1));
    assert_eq!(registry.memory.read_max_bytes(), 16 * 1024 - 1);
    members.resize_with(4096, || from(&registry, 1));
    assert_eq!(registry.memory.read_max_bytes(), READ_LEAST_BYTES - 1);
    members.truncate(1);
    assert_eq!(registry.memory.read_max_bytes(), READ_MOST_BYTES - 1);
}

#[tokio::test(start_paused = true)]
async fn the_address_with_the_most_strangers_loses_one_first_and_its_oldest() {
    let registry = registry(40);
    let honest = from(&registry, 1);
    let mut crowd: Vec<_> = (0..6).map(|_| from(&registry, 2)).collect();
    let few = from(&registry, 3);
    assert_eq!(closed(&registry, &mut crowd), Some(2));
    assert_eq!(closed(&registry, &mut crowd), Some(3));
    let mut others = vec![honest, few];
    others.append(&mut crowd);
    tokio::time::advance(2 * FRESH).await;
    // Four of the crowd, three of them before anyone else.
    for id in 4..=6 {
        assert_eq!(closed(&registry, &mut others), Some(id));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_has_begun_is_spared_for_a_second_while_few_have() {
    let registry = registry(40);
    let mut members: Vec<_> = (1..=12).map(|host| from(&registry, host)).collect();
    members[0].has_greeted();
    assert_eq!(closed(&registry, &mut members), Some(2), "the first one is spared");
    members.truncate(11);
    members[1..].iter().for_each(Member::has_greeted);
    assert_eq!(closed(&registry, &mut members), Some(1), "of many, the oldest");
    assert_eq!(closed(&registry, &mut members), Some(3), "one by one");
    let_in(&members.remove(0));
    members.push(from(&registry, 20));
    assert_eq!(closed(&registry, &mut members), Some(13), "few have again");
    tokio::time::advance(FRESH).await;
    members.push(from(&registry, 20));
    assert_eq!(closed(&registry, &mut members), Some(5), "it had its time");
}

#[tokio::test(start_paused = true)]
async fn idle_and_slow_connections_go_before_a_stranger_that_has_just_come() {
    let registry = registry(40);
    let mut members: Vec<_> = (0..4).map(|_| from(&registry, 1)).collect();
    members.iter().for_each(let_in);
    members[1].may_close();
    // The body of one comes at 1 byte a second, of another at 100.
    for (at, bytes) in [(2, 100), (3, 10_000)] {
        members[at].connection.body_has(0, Instant::now());
        members[at].connection.body_has(bytes, Instant::now());
    }
    tokio::time::advance(100 * FRESH).await;
    members.push(from(&registry, 1));
    assert_eq!(closed(&registry, &mut members), Some(2), "the idle one");
    assert_eq!(closed(&registry, &mut members), Some(3), "the slower body");
    assert_eq!(closed(&registry, &mut members), Some(4), "the other body");
    assert_eq!(closed(&registry, &mut members), Some(5), "the fresh stranger");
    assert_eq!(closed(&registry, &mut members), None, "a request whose body has come");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_have_only_begun_get_their_time_before_the_slowest_makes_room() {
    let registry = registry(2);
    let members = [from(&registry, 1), from(&registry, 1)];
    for member in &members {
        let_in(member);
        member.connection.body_has(1, Instant::now());
    }
    let since = Instant::now();
    registry.make_room().await;
    assert!((FRESH..2 * FRESH).contains(&since.elapsed()), "{:?}", since.elapsed());
}

#[test]
fn strangers_hold_no_more_unfinished_bytes_than_there_may_be() {
    let registry = registry(2000);
    let mut members: Vec<_> = (0..300).map(|_| from(&registry, 1)).collect();
    let head = 16 * 1024;
    for member in &members {
        registry.keep(&member.connection, Layer::Head, head);
    }
    members.retain(|member| !is_closing(member));
    assert_eq!(members.len(), HEADS_MAX_BYTES / head);
    assert_eq!(registry.memory.heads_bytes.load(Ordering::Relaxed), HEADS_MAX_BYTES);
    registry.keep(&members[0].connection, Layer::Head, 0);
    assert_eq!(registry.memory.heads_bytes.load(Ordering::Relaxed), HEADS_MAX_BYTES - head);
    drop(members);
    assert_eq!(registry.memory.heads_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn credentials_let_nobody_leave_more_unfinished_at_the_cost_of_strangers() {
    let registry = registry(2000);
    let (head, hello) = (16 * 1024, 517);
    let mut members: Vec<_> = (0..HEADS_MAX_BYTES / head).map(|_| from(&registry, 1)).collect();
    for member in &members {
        let_in(member);
        member.may_close();
        registry.keep(&member.connection, Layer::Head, head);
    }
    let stranger = from(&registry, 2);
    registry.keep(&stranger.connection, Layer::Tls, hello);
    assert!(!is_closing(&stranger));
    members.retain(|member| !is_closing(member));
    assert_eq!(members.len(), HEADS_MAX_BYTES / head - 1);
    drop(members);
    assert_eq!(stranger.connection.source.heads_bytes.load(Ordering::Relaxed), hello);
}

#[test]
fn for_heads_no_request_whose_body_has_come_is_closed() {
    let registry = registry(2000);
    let head = 48 * 1024;
    let members: Vec<_> = (0..HEADS_MAX_BYTES / head).map(|_| from(&registry, 1)).collect();
    for member in &members {
        let_in(member);
        registry.keep(&member.connection, Layer::Request, head);
    }
    let (hello, large) = (from(&registry, 2), from(&registry, 3));
    registry.keep(&hello.connection, Layer::Tls, 517);
    registry.keep(&large.connection, Layer::Request, head);
    assert!(is_closing(&large), "the only one that may be closed and keeps so much");
    drop(large);
    members[5].connection.body_has(0, Instant::now());
    let large = from(&registry, 3);
    registry.keep(&large.connection, Layer::Request, head);
    assert!(is_closing(&members[5]), "its body has not come, and its address keeps the most");
    assert_eq!(members.iter().chain([&hello, &large]).filter(|member| is_closing(member)).count(), 1);
}

#[tokio::test]
async fn a_place_is_free_once_few_of_the_closed_connections_still_hold_theirs() {
    let registry = registry(CLOSING_MAX);
    let mut members: Vec<_> = (0..CLOSING_MAX).map(|_| from(&registry, 1)).collect();
    for _ in 1..CLOSING_MAX {
        registry.make_room().await;
        members.push(from(&registry, 1));
    }
    assert_eq!(members.iter().filter(|member| is_closing(member)).count(), CLOSING_MAX - 1);
    registry.make_room().now_or_never();
    assert!(registry.make_room().now_or_never().is_none(), "as many as may be are closing");
    members.retain(|member| !is_closing(member));
    registry.make_room().await;
}

#[test]
fn all_addresses_of_an_ipv6_network_are_one() {
    let [one, other, far] = ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"].map(|a| a.parse().unwrap());
    assert_eq!(network_of(one), network_of(other));
    assert_ne!(network_of(one), network_of(far));
    assert_eq!(network_of("::ffff:10.0.0.1".parse().unwrap()), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
}

#[tokio::test]
async fn signatures_are_checked_one_at_a_time_and_by_addresses_in_turn() {
    let registry = registry(100);
    let hosts: Vec<u8> = (0..60).map(|number| 1 + number % 3).chain([9]).collect();
    let members: Vec<_> = hosts.iter().map(|host| (*host, from(&registry, *host))).collect();
    let (checked, at_once) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let checks = members.iter().map(|(host, member)| {
        let (guest, checked, at_once) = (guest(member), &checked, &at_once);
        async move {
            let _turn = guest.signature_turn().await;
            assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0);
            tokio::task::yield_now().await;
            checked.lock().unwrap().push(*host);
            at_once.fetch_sub(1, Ordering::SeqCst);
        }
    });
    futures_util::future::join_all(checks).await;
    let checked = checked.into_inner().unwrap();
    assert_eq!(checked.len(), hosts.len());
    let place = checked.iter().position(|host| *host == 9).unwrap();
    assert_eq!(place, 3, "it waits for one of each other address: {checked:?}");
}
