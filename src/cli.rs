//! The commands. Answers go to standard output, errors and the log to standard error.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::admin::client;
use crate::assembly::Files;
use crate::background::{KEEP_THREADS, try_threads};
use crate::check::{self, CheckOptions};
use crate::config::{self, Config, ConfigErrors, Loaded, Purpose};
use crate::drain::{self, DrainOptions};
use crate::ingest::opened_beside_a_pull;
use crate::network::Network;
use crate::spool::home;
use crate::verify::{self, VerifyOptions};
use crate::{daemon, exit_code, telemetry, volume};

/// What `--version` prints after the name.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (revision {})", telemetry::metrics::VERSION, telemetry::metrics::REVISION));

/// Stands below the error of a command that there is not.
const COMMANDS: &str = "\ncommands: run (the default), check, config, drain, healthcheck, verify; what a running daemon says of itself: \
                        env0-s3-logs check, or curl -s http://localhost:9090/status";

/// Stands below the error of an option or word that a command doesn't take.
const OPTIONS: &str = "\nall that is set up is an environment variable (config/example.env lists them): drain takes another spool as --spool DIR, \
                       verify its bucket from ENV0_S3_LOG_BUCKET_NAME and its days as --from and --to; an option begins with two dashes";

#[derive(Parser)]
#[command(name = "env0-s3-logs", version = VERSION.as_str(), about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon (the default)
    Run,
    /// Judge configuration, spool, token, STS and bucket, with a remedy for each failure
    Check(CheckOptions),
    /// Print the effective configuration and where each value came from, secrets redacted
    Config,
    /// Upload what a spool holds, with progress; exit code 0 only when it is empty
    Drain(DrainOptions),
    /// Ask the running daemon whether it is alive; exit code 0 or 1
    Healthcheck,
    /// Show that nothing in the bucket is missing or changed, with an auditor's own AWS credentials
    Verify(Box<VerifyOptions>),
}

/// Runs the command line `arguments` (the program's name first).
pub fn main_from(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Tokens are in memory: a core dump would write them down, and another process of this user could read them there.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Core,
        rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
    );
    telemetry::exit_on_panic();
    let command = Arguments::command().after_long_help(config::help_text()).after_help(config::help_text());
    let arguments = match command
        .try_get_matches_from(arguments)
        .and_then(|matches| clap::FromArgMatches::from_arg_matches(&matches))
    {
        Ok(Arguments { command }) => command.unwrap_or(Command::Run),
        Err(error) => {
            let code = if error.use_stderr() { exit_code::USAGE } else { exit_code::OK };
            let _ = error.print();
            match error.kind() {
                ErrorKind::InvalidSubcommand => complain(COMMANDS),
                ErrorKind::UnknownArgument => complain(OPTIONS),
                _ => {}
            }
            return code.into();
        }
    };
    if !matches!(arguments, Command::Config | Command::Healthcheck)
        && let Err((wanted, error)) = try_threads()
    {
        complain(format!(
            "error: the system does not give the {wanted} threads that may be needed: {error}; raise the limit of processes: \
             of the container (pids.max, --pids-limit), the unit (TasksMax=) or the user (ulimit -u)"
        ));
        return exit_code::NO_THREADS.into();
    }
    let code = match arguments {
        Command::Run => run(),
        Command::Check(options) => check(options),
        Command::Config => configuration(Purpose::Daemon).map_or_else(|code| code, |loaded| print(&loaded.describe())),
        Command::Drain(options) => drain(options),
        Command::Healthcheck => healthcheck(),
        Command::Verify(options) => verify(&options),
    };
    code.into()
}

/// A reader that went away early (`| head`) has had what it wanted.
fn print(text: &str) -> u8 {
    let _ = std::io::stdout().write_all(telemetry::shown(text).as_bytes());
    exit_code::OK
}

fn complain(error: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", telemetry::shown(&error.to_string()));
}

fn configuration(purpose: Purpose) -> Result<Loaded, u8> {
    Config::from_env(purpose).map_err(|errors: ConfigErrors| {
        complain(errors);
        exit_code::CONFIG
    })
}

fn run() -> u8 {
    let loaded = match Config::from_env(Purpose::Daemon) {
        Ok(loaded) => loaded,
        Err(mut errors) => {
            let files = errors.so_far.as_deref().and_then(|config| Files::read(config).err());
            errors.errors.extend(files.into_iter().flatten());
            complain(errors);
            return exit_code::CONFIG;
        }
    };
    telemetry::init(&loaded.config.log_level, loaded.config.log_filter.as_deref(), loaded.config.log_format);
    telemetry::metrics::Exporter::install();
    let files = match Files::read(&loaded.config) {
        Ok(files) => files,
        Err(errors) => {
            complain(ConfigErrors { errors, unknown: loaded.unknown, warnings: loaded.warnings, so_far: None });
            return exit_code::CONFIG;
        }
    };
    let weaknesses = volume::weaknesses(&loaded.config.spool_dir);
    let others = home::files_of_others(&loaded.config.spool_dir);
    let both_ways = opened_beside_a_pull(&loaded.config);
    for warning in loaded.unknown.iter().chain(&loaded.warnings).chain(&both_ways).chain(&weaknesses).chain(&others) {
        tracing::warn!("{warning}");
    }
    let settings = loaded.digests();
    match in_runtime(daemon::run(loaded.config, settings, files)) {
        Ok(Ok(())) => exit_code::OK,
        Ok(Err(failure)) => {
            tracing::error!("{failure}; see config/README.md#it-does-not-start");
            failure.exit_code
        }
        Err(code) => code,
    }
}

fn check(options: CheckOptions) -> u8 {
    match in_runtime(check::run(Config::from_env(Purpose::Daemon), options)) {
        Ok(report) => {
            print(&if options.json { report.json() } else { report.text() });
            report.exit_code
        }
        Err(code) => code,
    }
}

fn drain(options: DrainOptions) -> u8 {
    let config = match configuration(Purpose::Drain) {
        Ok(loaded) => loaded.config,
        Err(code) => return code,
    };
    telemetry::init(&config.log_level, config.log_filter.as_deref(), config.log_format);
    let show = |line: &str| {
        print(&format!("{line}\n"));
    };
    match in_runtime(drain::run(config, options, show)) {
        Ok(Ok(())) => exit_code::OK,
        Ok(Err(failure)) => {
            complain(format!("error: {failure}"));
            failure.exit_code
        }
        Err(code) => code,
    }
}

fn verify(options: &VerifyOptions) -> u8 {
    let config = match configuration(Purpose::Verify) {
        Ok(loaded) => loaded.config,
        Err(code) => return code,
    };
    let network = match Network::new(&config.network) {
        Ok(network) => network,
        Err(error) => {
            complain(format!("error: {error}"));
            return exit_code::CONFIG;
        }
    };
    match in_runtime(verify::run(options, &config, &network)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            complain(format!("error: {error}"));
            error.exit_code()
        }
        Err(code) => code,
    }
}

fn in_runtime<T>(future: impl Future<Output = T>) -> Result<T, u8> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().thread_keep_alive(KEEP_THREADS).build().map_err(|error| {
        complain(format!("error: the runtime can't be started: {error}"));
        exit_code::SOFTWARE
    })?;
    // The first of those that may block.
    runtime.spawn_blocking(|| ());
    let outcome = runtime.block_on(future);
    // A thread that hangs in the file system must not hold up the exit.
    runtime.shutdown_background();
    Ok(outcome)
}

fn healthcheck() -> u8 {
    let address = match config::admin_addr_from_env() {
        Ok(address) => address,
        Err(errors) => {
            complain(errors);
            return exit_code::FAILED;
        }
    };
    match client::healthy(address) {
        Ok(()) => exit_code::OK,
        Err(reason @ client::AskError::Unreachable { .. }) => {
            complain(format!(
                "unhealthy: {reason}; asked was the address of ENV0_S3_LOG_ADMIN_ADDR: if the daemon has another, set it here, too"
            ));
            exit_code::FAILED
        }
        Err(reason) => {
            complain(format!("unhealthy: {reason}"));
            exit_code::FAILED
        }
    }
}
