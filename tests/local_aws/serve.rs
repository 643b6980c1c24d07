//! `cargo run --example local-aws`: the local AWS for a daemon that something else starts.
//!
//! Prints the variables that point a daemon here, one `NAME=value` a line, then an empty line. When
//! its standard input ends, it prints every line that is in the bucket, and ends.

#[path = "mod.rs"]
mod local_aws;

use std::io::{Read, Write};

fn main() -> std::io::Result<()> {
    let aws = local_aws::LocalAws::start();
    let mut out = std::io::stdout().lock();
    for (name, value) in aws.environment() {
        writeln!(out, "{name}={value}")?;
    }
    writeln!(out)?;
    out.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for line in aws.s3.lines() {
        writeln!(out, "{line}")?;
    }
    out.flush()
}
