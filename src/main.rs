//! The program's entry. Everything else is in [`env0_s3_logs::cli`] and below it.

use std::process::ExitCode;

/// Gives memory back to the system soon after a peak. Under a flood of the worst bodies the daemon had 90 MiB in RAM
/// with it, 130 with mimalloc and 180 with glibc's allocator. Its settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    env0_s3_logs::cli::main_from(std::env::args_os())
}
