//! The process's exit codes (`sysexits.h` where it has a fitting one).

/// All went well.
pub const OK: u8 = 0;
/// `healthcheck`: not healthy. `verify`: something does not hold.
pub const FAILED: u8 = 1;
/// `verify`: nothing but `pending` is open.
pub const PENDING: u8 = 2;
/// Wrong usage of the command line.
pub const USAGE: u8 = 64;
/// A service can't be reached (`check`, `drain`).
pub const UNAVAILABLE: u8 = 69;
/// A bug: a panic or a broken invariant.
pub const SOFTWARE: u8 = 70;
/// An address can't be listened on. Not a mistake of the configuration alone, so that a supervisor tries again.
pub const CANT_BIND: u8 = 71;
/// The system gives too few threads. A supervisor tries again, as it does for an address.
pub const NO_THREADS: u8 = CANT_BIND;
/// The spool is locked by another process, or can't be created.
pub const CANT_CREATE: u8 = 73;
/// Reading or writing the spool failed.
pub const IO: u8 = 74;
/// A service denied what was asked (`check`).
pub const DENIED: u8 = 77;
/// The configuration is wrong, or contradicts the spool's manifest.
pub const CONFIG: u8 = 78;
