use std::net::Ipv4Addr;
use std::pin::pin;
use std::time::Duration;

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
    guest(member).let_in(Trust::Common);
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
async fn in_a_crowd_the_oldest_stranger_goes_and_else_the_newest_of_the_largest_address() {
    let registry = registry(40);
    let honest = from(&registry, 1);
    let mut crowd: Vec<_> = (0..6).map(|_| from(&registry, 2)).collect();
    let few = from(&registry, 3);
    assert_eq!(closed(&registry, &mut crowd), Some(2));
    // Without a crowd, the last one: the others may be in the middle of a handshake.
    assert_eq!(closed(&registry, &mut crowd), Some(7));
    let mut others = vec![honest, few];
    others.append(&mut crowd);
    tokio::time::advance(2 * FRESH).await;
    // Three of the four go before anyone else; they have had their time.
    for id in 3..=5 {
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
    for member in &members[1..] {
        member.has_greeted();
    }
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
async fn a_connection_of_an_address_with_credentials_goes_after_those_that_came_later() {
    let registry = registry(40);
    // An audit event comes from 1, behind a token that was handed over; deployments' from 5.
    let first = from(&registry, 1);
    guest(&first).has_shown(Trust::Common);
    guest(&first).let_in(Trust::Rare);
    let_in(&from(&registry, 5));
    drop(first);
    let mut members: Vec<_> = (1..=5).map(|host| from(&registry, host)).collect();
    members[1].has_greeted();
    for id in [5, 6, 4, 7, 3] {
        assert_eq!(closed(&registry, &mut members), Some(id));
    }
    members.extend([from(&registry, 1), from(&registry, 2)]);
    tokio::time::advance(FRESH).await;
    assert_eq!(closed(&registry, &mut members), Some(8), "it had its time");
}

#[tokio::test(start_paused = true)]
async fn of_several_handshakes_of_a_sender_one_goes_on_however_many_others_begin_some() {
    let registry = registry(40);
    let mut others: Vec<_> = (1..=12).map(|host| from(&registry, host)).collect();
    let sender: Vec<_> = (0..4).map(|_| from(&registry, 100)).collect();
    for member in others.iter().chain(&sender) {
        member.has_greeted();
    }
    // None of the closed ones is gone yet.
    (0..6).for_each(|_| assert!(registry.close_one()));
    assert_eq!(closing(&sender), [1, 2, 3], "as soon as it has one, as the others have, the first of all goes");
    assert_eq!(closing(&others), [0, 1, 2]);
    others.clear();
    drop(sender);
    assert_eq!(registry.greeted.load(Ordering::Relaxed), 0);
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

const HEAD: usize = 16 * 1024;
const STRANGERS_MAX_BYTES: usize = HEADS_MAX_BYTES[Party::Strangers as usize];
const SENDERS_MAX_BYTES: usize = HEADS_MAX_BYTES[Party::Senders as usize];

/// `count` connections, each from an address of its own.
fn from_everywhere(registry: &Arc<Registry>, count: usize) -> Vec<Member> {
    let addresses = (0..count as u32).map(|number| Ipv4Addr::from_bits(0x7f01_0000 + number));
    addresses.map(|address| registry.enter(address.into())).collect()
}

fn closing(members: &[Member]) -> Vec<usize> {
    (0..members.len()).filter(|at| is_closing(&members[*at])).collect()
}

#[test]
fn strangers_hold_no_more_unfinished_bytes_than_there_may_be() {
    let registry = registry(2000);
    let mut members = from_everywhere(&registry, 300);
    for member in &members {
        registry.keep(&member.connection, Layer::Head, HEAD);
    }
    let most = STRANGERS_MAX_BYTES / HEAD;
    assert_eq!(closing(&members), (0..300 - most).collect::<Vec<_>>(), "those that have kept something for longest");
    members.retain(|member| !is_closing(member));
    assert_eq!(registry.memory.heads_bytes(Party::Strangers), STRANGERS_MAX_BYTES);
    registry.keep(&members[0].connection, Layer::Head, 0);
    assert_eq!(registry.memory.heads_bytes(Party::Strangers), STRANGERS_MAX_BYTES - HEAD);
    drop(members);
    assert_eq!(registry.memory.heads_bytes(Party::Strangers), 0);
}

#[test]
fn of_a_crowd_goes_what_is_unfinished_before_that_of_others() {
    let registry = registry(2000);
    let first = from_everywhere(&registry, 1);
    registry.keep(&first[0].connection, Layer::Tls, HEAD);
    let crowd: Vec<_> = (0..STRANGERS_MAX_BYTES / HEAD).map(|_| from(&registry, 200)).collect();
    for member in &crowd {
        registry.keep(&member.connection, Layer::Tls, HEAD);
    }
    assert_eq!((closing(&first), closing(&crowd)), (vec![], vec![0]));
}

#[test]
fn strangers_and_senders_take_no_memory_of_each_others_heads() {
    let registry = registry(2000);
    let strangers = from_everywhere(&registry, STRANGERS_MAX_BYTES / HEAD);
    for member in &strangers {
        registry.keep(&member.connection, Layer::Head, HEAD);
    }
    let mut senders = from_everywhere(&registry, SENDERS_MAX_BYTES / HEAD);
    for member in &senders {
        let_in(member);
        member.may_close();
        registry.keep(&member.connection, Layer::Head, HEAD);
    }
    assert_eq!((closing(&strangers), closing(&senders)), (vec![], vec![]));
    // A large head takes the place of the stranger's that came first, and once it is let in, of a sender's.
    let large = from(&registry, 2);
    registry.keep(&large.connection, Layer::Request, HEAD);
    assert_eq!((closing(&strangers), closing(&senders)), (vec![0], vec![]));
    let_in(&large);
    assert_eq!((closing(&strangers), closing(&senders)), (vec![0], vec![0]));
    assert_eq!(registry.memory.heads_bytes(Party::Strangers), STRANGERS_MAX_BYTES - HEAD);
    senders.push(large);
    drop(senders);
    assert_eq!(registry.memory.heads_bytes(Party::Senders), 0);
    drop(strangers);
    assert_eq!(registry.memory.heads_bytes(Party::Strangers), 0);
}

#[test]
fn for_heads_no_request_whose_body_has_come_is_closed() {
    let registry = registry(2000);
    let mut members = from_everywhere(&registry, SENDERS_MAX_BYTES / HEAD);
    for member in &members {
        let_in(member);
        registry.keep(&member.connection, Layer::Request, HEAD);
    }
    members[5].connection.body_has(0, Instant::now());
    let late = from(&registry, 2);
    let_in(&late);
    registry.keep(&late.connection, Layer::Request, HEAD);
    assert_eq!((closing(&members), is_closing(&late)), (vec![5], false), "its body has not come");
    members.remove(5);
    late.connection.body_has(0, Instant::now());
    registry.keep(&late.connection, Layer::Tls, HEAD);
    assert_eq!((closing(&members), is_closing(&late)), (vec![], true), "the only one that may be closed");
}

#[tokio::test(start_paused = true)]
async fn of_connections_that_never_pause_some_end_with_their_answers_for_new_ones() {
    let registry = registry(100);
    let audits = from(&registry, 1);
    guest(&audits).let_in(Trust::Rare);
    let mut crowd: Vec<_> = (0..98).map(|_| from(&registry, 2)).collect();
    crowd.iter().for_each(let_in);
    let fresh = from(&registry, 3);
    let asked = |crowd: &[Member]| {
        let makes_room = |member: &&Member| member.connection.makes_room.load(Ordering::Relaxed);
        crowd.iter().filter(makes_room).map(|member| member.id).collect::<Vec<_>>()
    };
    for _ in 0..5 {
        let mut room = pin!(registry.make_room());
        assert!(room.as_mut().now_or_never().is_none(), "it waits for an answer");
        // Its answer is written.
        let leaves = asked(&crowd)[0];
        crowd.retain(|member| member.id != leaves);
        room.await;
        crowd.push(from(&registry, 2));
        let_in(&crowd[crowd.len() - 1]);
    }
    assert!(!is_closing(&fresh) && asked(std::slice::from_ref(&audits)).is_empty());
    // No answer comes in time.
    let since = Instant::now();
    registry.make_room().await;
    assert!(is_closing(&fresh) && since.elapsed() < FRESH);
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
async fn a_handshake_waits_for_one_address_of_each_worse_standing_however_many_wait() {
    let registry = registry(100);
    let begin = |host: u8| begin(&registry, host.into());
    // They begin handshakes and leave. The one at 9 does, too, but hands a token over on another connection.
    (1..=9).for_each(|host| drop(begin(host)));
    guest(&begin(9).1).has_shown(Trust::Common);
    drop(begin(9));
    let begun: Vec<_> = [1, 2, 3, 10, 11, 12, 4, 5, 6, 9].map(begin).into();
    let done = order(&begun).await;
    let place = |host: u32| done.iter().position(|other| *other == host).unwrap();
    assert!(place(9) <= 2, "{done:?}");
    assert!(place(12) <= 6, "{done:?}");
}

/// A handshake from one of many addresses.
fn begin(registry: &Arc<Registry>, host: u32) -> (u32, Member, Standing) {
    let member = registry.enter(Ipv4Addr::from_bits(0x7f00_0000 + host).into());
    let standing = member.has_greeted();
    (host, member, standing)
}

/// The hosts in the order in which their handshakes had their first step, where all begin at the same time.
async fn order(begun: &[(u32, Member, Standing)]) -> Vec<u32> {
    let done = Mutex::new(Vec::new());
    let all = begun.iter().map(async |(host, member, standing)| {
        let _turn = member.handshake_turn(Step::First, *standing).await;
        tokio::task::yield_now().await;
        done.lock().unwrap().push(*host);
    });
    // So that they come in their order: Tokio interrupts a task that has waited for much, and wakes the last first.
    tokio::task::unconstrained(futures_util::future::join_all(all)).await;
    done.into_inner().unwrap()
}

#[tokio::test]
async fn an_address_that_was_never_seen_does_not_wait_for_hundreds_of_its_kind() {
    let registry = registry(2000);
    let begin = |host: u32| begin(&registry, host);
    // Half of them are suspects.
    (0..400).for_each(|host| drop(begin(host)));
    let mut begun: Vec<_> = (0..800).map(begin).collect();
    // It comes when all others wait.
    begun.push(begin(1000));
    let done = order(&begun).await;
    let place = |host: u32| done.iter().position(|other| *other == host).unwrap();
    assert!(place(1000) <= 3, "behind {} others", place(1000));
    assert!(place(0) < 10, "the first of the suspects waits behind {}", place(0));
    assert!((401..800).all(|host| place(host) < 620), "two of three turns are theirs");
    assert_eq!(done.len(), 801);
}

#[tokio::test]
async fn a_turn_passes_by_those_that_wait_for_it_no_more() {
    let registry = registry(100);
    let members = from_everywhere(&registry, 50);
    let turn = async |member: &Member| member.handshake_turn(Step::First, Standing::Unknown).await;
    let first = turn(&members[0]).now_or_never().unwrap();
    let mut waiting: Vec<_> = members[1..].iter().map(|member| Box::pin(turn(member))).collect();
    for one in &mut waiting {
        assert!(one.as_mut().now_or_never().is_none());
    }
    let stays = waiting.remove(20);
    // One is given its turn and leaves before it sees it.
    drop(first);
    drop(waiting);
    let second = stays.now_or_never().expect("it is the only one that waits");
    drop(second);
    assert!(turn(&members[0]).now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_address_is_a_suspect_for_a_minute_and_not_where_it_was_closed_for_others() {
    let registry = registry(2);
    let standing = || from(&registry, 1).has_greeted();
    drop(from(&registry, 1));
    let closed_one = from(&registry, 1);
    assert_eq!(closed_one.has_greeted(), Standing::Unknown, "the one before had begun no TLS");
    assert!(registry.close_one());
    drop(closed_one);
    assert_eq!(standing(), Standing::Unknown);
    assert_eq!(standing(), Standing::Suspect);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(standing(), Standing::Unknown);
    let honest = from(&registry, 1);
    honest.has_greeted();
    let_in(&honest);
    drop(honest);
    assert_eq!([standing(), standing()], [Standing::Trusted; 2]);
    tokio::time::advance(Duration::from_secs(3601)).await;
    assert_eq!(standing(), Standing::Unknown);
}

#[test]
fn an_end_of_a_connection_costs_little_where_thousands_are_known() {
    let mut standings = Standings::default();
    let address = |number: u32| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + number));
    (0..4096).for_each(|number| standings.trust(address(number), Trust::Common));
    let since = std::time::Instant::now();
    (5000..15_000).for_each(|number| standings.suspect(address(number)));
    let took = since.elapsed();
    // Some 0.01 s, and hundreds of times as much where each looks at all that are known.
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(standings.of(address(7)), Standing::Trusted);
    assert_eq!(standings.of(address(14_999)), Standing::Suspect);
    assert_eq!(standings.of(address(15_000)), Standing::Unknown);
}

#[tokio::test(start_paused = true)]
async fn an_address_with_credentials_is_not_forgotten_for_thousands_that_show_theirs() {
    let mut standings = Standings::default();
    let address = |number: u32| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + number));
    standings.trust(address(0), Trust::Rare);
    standings.trust(address(1), Trust::Common);
    (2..2 + 3 * 4096).for_each(|number| standings.trust(address(number), Trust::Common));
    assert_eq!([0, 1].map(|number| standings.trust_of(address(number))), [Some(Trust::Rare), Some(Trust::Common)]);
    tokio::time::advance(Duration::from_secs(3000)).await;
    (1..10_000).for_each(|number| standings.trust(address(number), Trust::Common));
    tokio::time::advance(Duration::from_secs(3000)).await;
    assert_eq!(standings.trust_of(address(1)), Some(Trust::Common), "it comes once an hour");
    tokio::time::advance(Duration::from_secs(601)).await;
    standings.trust(address(20_000), Trust::Common);
    assert_eq!(standings.trust_of(address(20_000)), Some(Trust::Common), "there is room");
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
