//! The `smbdirect` program: the engine, and tools round it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod args;
mod bench;
mod disconnect;
mod engine;
mod failure;
mod interfaces;
mod logging;
mod ping;
mod proxy;
mod session;
mod signals;
mod status;
mod table;
mod units;

/// SMB Direct (SMB3 over RDMA) in user space: the engine that serves smbd, and tools.
#[derive(Parser)]
#[command(
    name = "smbdirect",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(after_help = "Exit status: 0 success, 1 failure, 2 wrong usage.\n\
    Environment: SMBDIRECT_LOG sets what is logged to standard error, for instance \
    SMBDIRECT_LOG=debug or SMBDIRECT_LOG=smbdirect::engine=trace,warn (default: info).\n\
    `smbdirect COMMAND --help` tells more, with examples.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Engine(engine::Args),
    Proxy(proxy::Args),
    Ping(ping::Args),
    Bench(Box<bench::Args>),
    #[command(hide = true)]
    BenchHelper(bench::HelperArgs),
    Status(status::Args),
    Interfaces(interfaces::Args),
    Disconnect(disconnect::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    let outcome = match cli.command {
        Command::Engine(args) => engine::run(&args),
        Command::Proxy(args) => proxy::run(&args),
        Command::Ping(args) => ping::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BenchHelper(args) => bench::run_helper(&args),
        Command::Status(args) => status::run(&args),
        Command::Interfaces(args) => interfaces::run(&args),
        Command::Disconnect(args) => disconnect::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("smbdirect: {failure}");
            failure.exit_code()
        }
    }
}
