//! The entry hall; everything is behind [`env0_s3_logs::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    env0_s3_logs::cli::main_from(std::env::args_os())
}
