//! The entry hall; everything is behind [`env0_s3_logs::cli`].

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Gives memory back to the system after a peak. glibc keeps up to 64 MiB of it for each of its arenas, and a thread
/// that parses a body gets an arena of its own. Huge pages are off (`no_thp`): the system gives out a whole one where a
/// few bytes of it are needed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the allocators read before `main`.
const SETTINGS: [(&str, &str); 2] = [
    // How long mimalloc keeps what was freed, in milliseconds. By itself it keeps that for a second: in a flood of large
    // bodies a third more is in RAM.
    ("MIMALLOC_PURGE_DELAY", "10"),
    // From how many bytes on glibc gives back at once what C libraries free. By itself it raises that to 32 MiB at the first
    // large piece, so that it keeps zstd's windows of 8 MiB, one for each thread.
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
];

fn main() -> ExitCode {
    // This process becomes the same program once more, with the variables set.
    if SETTINGS.iter().any(|(name, _)| std::env::var_os(name).is_none())
        && let Ok(program) = std::env::current_exe()
    {
        let mut arguments = std::env::args_os();
        let mut again = Command::new(program);
        if let Some(first) = arguments.next() {
            again.arg0(first);
        }
        for (name, value) in SETTINGS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()) {
            again.env(name, value);
        }
        // Returns only where that can't be done, and then all works as well, with more memory.
        let _ = again.args(arguments).exec();
    }
    env0_s3_logs::cli::main_from(std::env::args_os())
}
