//! The audit trail, and every way in which env0 may page it.

use std::cell::OnceCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, DerefMut};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{ORGANIZATION, State};

/// In which order a page holds its events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
    /// In none: by a hash.
    None,
}

/// Which event a page's key names, and where the page of a key begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Key {
    /// The next page's first event; the page begins at it.
    #[default]
    Next,
    /// This page's last event; the page begins behind it.
    LastAndBehind,
    /// This page's last event; the page begins at it, so that event comes twice.
    LastAndAt,
}

/// What the last page says of the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum LastKey {
    #[default]
    Absent,
    Null,
    Empty,
    /// The key that was asked with.
    Unchanged,
}

/// What env0 doesn't publish.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shape {
    pub(crate) order: Order,
    pub(crate) key: Key,
    pub(crate) last_key: LastKey,
    /// Whether `from` and `to` count in.
    pub(crate) ends_count: bool,
}

/// An event of the trail.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) at: DateTime<Utc>,
    /// By which pages refer to it.
    pub(crate) key: String,
    /// Its bytes.
    pub(crate) json: String,
    /// Whose it is.
    pub(crate) organization: String,
}

impl Event {
    /// The same event of another organization.
    pub(crate) fn of(self, organization: &str) -> Event {
        Event { organization: organization.to_owned(), ..self }
    }
}

/// Every event. What it was sorted by is kept until it is changed, so that a page of a million events is found quickly.
#[derive(Default)]
pub(crate) struct Trail {
    events: Vec<Event>,
    sorted: OnceCell<(Order, Vec<usize>)>,
}

impl From<Vec<Event>> for Trail {
    fn from(events: Vec<Event>) -> Trail {
        Trail { events, sorted: OnceCell::new() }
    }
}

impl Deref for Trail {
    type Target = Vec<Event>;

    fn deref(&self) -> &Vec<Event> {
        &self.events
    }
}

impl DerefMut for Trail {
    fn deref_mut(&mut self) -> &mut Vec<Event> {
        self.sorted.take();
        &mut self.events
    }
}

impl Trail {
    /// The events from `from` to before `to`, in `order`.
    fn window(&self, order: Order, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<&Event> {
        let (sorted_by, sorted) = self.sorted.get_or_init(|| (order, self.sort(order)));
        assert_eq!(*sorted_by, order, "the order is chosen before the first page");
        let at = |index: &usize| self.events[*index].at;
        let range = match order {
            Order::OldestFirst => {
                sorted.partition_point(|index| at(index) < from)..sorted.partition_point(|index| at(index) < to)
            }
            Order::NewestFirst => {
                sorted.partition_point(|index| at(index) >= to)..sorted.partition_point(|index| at(index) >= from)
            }
            Order::None => 0..sorted.len(),
        };
        let within = sorted[range].iter().filter(|index| from <= at(index) && at(index) < to);
        within.map(|index| &self.events[*index]).collect()
    }

    fn sort(&self, order: Order) -> Vec<usize> {
        let mut sorted: Vec<usize> = (0..self.events.len()).collect();
        match order {
            Order::OldestFirst => sorted.sort_by_key(|index| self.events[*index].at),
            Order::NewestFirst => sorted.sort_by_key(|index| std::cmp::Reverse(self.events[*index].at)),
            Order::None => sorted.sort_by_cached_key(|index| {
                let mut hasher = DefaultHasher::new();
                self.events[*index].key.hash(&mut hasher);
                hasher.finish()
            }),
        }
        sorted
    }
}

/// The event number `number`, at `at`.
pub(crate) fn event(number: usize, at: DateTime<Utc>) -> Event {
    let time = at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let json = format!(
        r#"{{"id":"audit-{number}","actorId":"auth0|1", "actionName":"ENVIRONMENT_DEPLOY","timestamp":"{time}","payload":{{"number":{number},"ratio":1.50}}}}"#
    );
    Event { at, key: format!("audit-{number}"), json, organization: ORGANIZATION.to_owned() }
}

/// The event number `number`, at `at`, without an id.
pub(crate) fn event_without_id(number: usize, at: DateTime<Utc>) -> Event {
    let event = event(number, at);
    Event { json: event.json.replacen(&format!("\"id\":\"audit-{number}\","), "", 1), ..event }
}

/// The answer to `GET /audit/events`; the body of a 400 where the query is not one.
pub(super) fn page(state: &State, query: &dyn Fn(&str) -> Option<String>) -> Result<String, Value> {
    let Shape { order, key, last_key, ends_count } = state.shape;
    let organization = query("organizationId").ok_or(json!({"message": "organizationId is required"}))?;
    let limit: usize = query("limit")
        .map_or(Some(50), |limit| limit.parse().ok())
        .filter(|limit| (1..=1000).contains(limit))
        .ok_or(json!({"message": "limit"}))?;
    let time = |name: &str| query(name).map(|time| DateTime::parse_from_rfc3339(&time).map(|time| time.to_utc()));
    let (from, to) = (time("from").transpose(), time("to").transpose());
    let (Ok(from), Ok(to)) = (from, to) else { return Err(json!({"message": "from or to"})) };
    let tick = TimeDelta::microseconds(1);
    let (first, end) = if ends_count { (TimeDelta::zero(), tick) } else { (tick, TimeDelta::zero()) };
    let from = from.map_or(DateTime::<Utc>::MIN_UTC, |from| from + first);
    let to = to.map_or(DateTime::<Utc>::MAX_UTC, |to| to + end);
    let mut events = state.audits.window(order, from, to);
    events.retain(|event| event.organization == organization);
    let offset = query("offset");
    let start = offset.as_ref().map_or(0, |offset| {
        let found = events.iter().position(|event| event.key == *offset).unwrap_or(events.len());
        if key == Key::LastAndBehind { found + 1 } else { found }
    });
    let page = &events[start.min(events.len())..(start + limit).min(events.len())];
    let rest = &events[(start + limit).min(events.len())..];
    let next = match (rest.first(), key, last_key) {
        (Some(next), Key::Next, _) => format!(r#","nextPageKey":"{}""#, next.key),
        (Some(_), _, _) => format!(r#","nextPageKey":"{}""#, page.last().unwrap().key),
        (None, _, LastKey::Absent) => String::new(),
        (None, _, LastKey::Null) => r#","nextPageKey":null"#.to_owned(),
        (None, _, LastKey::Empty) => r#","nextPageKey":"""#.to_owned(),
        (None, _, LastKey::Unchanged) => {
            let unchanged = offset.or_else(|| Some(page.last()?.key.clone())).unwrap_or_default();
            format!(r#","nextPageKey":"{unchanged}""#)
        }
    };
    let events = page.iter().map(|event| event.json.as_str()).collect::<Vec<_>>().join(",");
    Ok(format!(r#"{{"events":[{events}]{next}}}"#))
}
