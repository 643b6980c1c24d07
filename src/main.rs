//! The entry hall; everything is behind [`env0_s3_logs::cli`].

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Gives memory back to the system after a peak. glibc keeps up to 64 MiB of it for each of its arenas, and a thread
/// that parses a body gets an arena of its own. Huge pages are off (`no_thp`): the system gives out a whole one where a
/// few bytes of it are needed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's setting for how long it keeps what was freed, in milliseconds.
const KEEP: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "50");

fn main() -> ExitCode {
    // By itself it keeps that for a second: in a flood of large bodies a third more is in RAM. With 10 ms, what a request
    // needed is given back before the next one needs it, which takes 5 % more of the processor at bodies of 44 KB. It reads
    // the variable before `main`, so this process becomes the same program once more, with the variable set.
    let (name, value) = KEEP;
    if std::env::var_os(name).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        let mut arguments = std::env::args_os();
        let mut again = Command::new(program);
        if let Some(first) = arguments.next() {
            again.arg0(first);
        }
        // Returns only where that can't be done, and then all works as well, with more memory.
        let _ = again.args(arguments).env(name, value).exec();
    }
    env0_s3_logs::cli::main_from(std::env::args_os())
}
