//! Tests what the spool promises on a disk that fails, dies and forgets.

#![allow(clippy::unwrap_used)]

mod bucket;
mod copies;
mod disk_errors;
mod durability;
mod every_call;
pub(crate) mod fault_disk;
mod listings;
mod os_disk;
mod place;
mod property;
mod refusals;
mod sealer;
mod start;
pub(crate) mod world;
mod writer;
