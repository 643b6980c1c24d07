//! libFuzzer over the parsers: `FUZZ_FAMILY` names the family of protocols (`FAMILIES` in
//! `src/protocols/tests/fuzz.rs`), the arguments are libFuzzer's own. `run.sh` beside this
//! file builds, runs and minimises.
//!
//! The parsers' sources are compiled here a second time, since the daemon's other rooms would take long to build and
//! have nothing to be guided by.

#![no_main]
#![allow(unused, reason = "the tests' helpers are here without the tests")]

#[path = "../../src"]
mod daemon {
    pub mod batch;
    pub mod protocols;
}

use std::sync::LazyLock;

use daemon::{batch, protocols};

static FAMILY: LazyLock<String> = LazyLock::new(|| std::env::var("FUZZ_FAMILY").expect("FUZZ_FAMILY names a family"));

libfuzzer_sys::fuzz_target!(|input: &[u8]| protocols::tests::fuzz::execute(&FAMILY, input));
