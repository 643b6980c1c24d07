//! `cargo run --release --example load`: what an event costs, from the client's bytes to the object.
//!
//! Starts the release binary on one core; a client and a loopback S3, STS and issuer
//! (`tests/local_aws`) share the other. Every acknowledgement follows an fsync, every event is
//! looked for in the objects. Beside each figure stand yardsticks from the same run: a bare HTTP server
//! that discards the same requests, one that appends and fsyncs their bodies before it answers, and a
//! plain loop that appends and fsyncs the same bytes.
//! `--help` tells how to choose what is measured.

mod client;
mod events;
mod machine;
mod measure;
mod plan;
mod process;
mod table;
mod yardsticks;

#[path = "../local_aws/mod.rs"]
mod local_aws;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use machine::Cores;
use plan::{Point, Section};

/// Measures speed and cost of the daemon and prints tables.
#[derive(Parser)]
#[command(name = "load")]
struct Arguments {
    /// What to measure, comma-separated
    #[arg(long, value_delimiter = ',', default_value = "sizes,forms,connections,compression")]
    plan: Vec<Section>,
    /// A point of one's own instead: EVENTS_PER_REQUEST:FORM:CONNECTIONS:CODEC:EVENTS, for instance
    /// 100:ndjson:64:none:1000000; may be repeated
    #[arg(long)]
    point: Vec<Point>,
    /// Runs of each point; figures are medians
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Multiplies the number of events of each point
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Where the spool is; the file system decides what an fsync costs
    #[arg(long)]
    spool: Option<PathBuf>,
    /// Leaves the yardsticks and the pass at half load out
    #[arg(long)]
    alone: bool,
    /// VARIABLE=VALUE for the daemon; may be repeated
    #[arg(long)]
    env: Vec<String>,
    /// The daemon's binary, instead of the one that is built
    #[arg(long)]
    daemon: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The processes on the measured core are this program once more.
    let outcome = match words[..] {
        [process::PINNED, core, program, ref rest @ ..] => process::run_pinned(core, program, rest),
        [yardsticks::DISCARD] => yardsticks::serve(None),
        [yardsticks::KEEP, folder] => yardsticks::serve(Some(folder.as_ref())),
        [yardsticks::APPEND, folder, body_bytes] => yardsticks::append(folder.as_ref(), body_bytes),
        _ => run(&Arguments::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let cores = Cores::choose()?;
    let binary = match &arguments.daemon {
        Some(binary) => binary.clone(),
        None => process::build_daemon()?,
    };
    let spool = arguments.spool.clone().unwrap_or_else(machine::scratch_folder);
    std::fs::create_dir_all(&spool)?;
    machine::describe(&cores, &spool, &binary)?;
    cores.take_client_core()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (env, alone) = (arguments.env.clone(), arguments.alone);
    let bench = measure::Bench { cores, binary, spool, env, alone, runtime };
    let sections: Vec<(&str, Vec<Point>)> = match &arguments.point[..] {
        [] => arguments.plan.iter().map(|section| (section.title(), section.points())).collect(),
        points => vec![("Chosen points", points.to_vec())],
    };
    let mut failures = Vec::new();
    for (title, points) in sections {
        println!("\n{title}\n");
        let points: Vec<Point> = points.into_iter().map(|point| point.scaled(arguments.scale)).collect();
        let mut runs: Vec<Vec<_>> = points.iter().map(|_| Vec::new()).collect();
        // A round of all points at a time: where the machine gets slower or faster, it does for all of them.
        for number in 1..=arguments.runs.max(1) {
            for (point, runs) in points.iter().zip(&mut runs) {
                eprint!("\r{point} run {number} of {} …   ", arguments.runs);
                runs.push(bench.run(point)?);
            }
        }
        eprint!("\r{:70}\r", "");
        let mut table = table::Table::begin();
        for (point, runs) in points.iter().zip(&runs) {
            failures.extend(runs.iter().filter_map(|run| run.failure(point)));
            table.row(point, runs);
        }
        table.end();
    }
    anyhow::ensure!(failures.is_empty(), "points that do not count:\n{}", failures.join("\n"));
    Ok(())
}
