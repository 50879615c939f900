//! The consumer: replays pgcascade queues into other databases, checks both ends, shows how far they are, and prints
//! their events.
//!
//! This file tells the story: the command line becomes settings, settings become a command, the command runs until it
//! is done or told to stop, and what came of it becomes the exit code: 0 done, 1 something failed, 2 wrong usage or
//! configuration.

mod backoff;
mod cascade;
mod check;
mod cli;
mod compare;
mod config;
mod connect;
mod conninfo;
mod error;
mod failpoint;
mod log;
mod node;
mod progress;
#[cfg(test)]
mod reference;
mod replay;
#[cfg(test)]
mod rules;
mod shutdown;
mod status;
mod tail;
mod takeover;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::table::TableCommand;
use crate::cli::{Cli, Command};
use crate::error::{Doing, Result};
use crate::progress::{Progress, Work};
use crate::shutdown::Shutdown;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let long_running = matches!(cli.command, Command::Replay(_));
    if let Err(error) = log::start(&cli.log) {
        eprintln!("consumer: error: {error:#}");
        return ExitCode::from(error.exit_code());
    }
    let log_args = cli.log;
    match run(cli.command, &log_args) {
        Ok(code) => code,
        Err(error) => {
            log::report(&error, &log_args, long_running);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command, log_args: &cli::LogArgs) -> Result<ExitCode> {
    failpoint::arm()?;
    // Two threads: one per connection is what a batch can keep busy.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .doing(|| "start the asynchronous runtime".to_owned())?;
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals().doing(|| "listen for signals".to_owned())?;
        match command {
            Command::Replay(args) => {
                let job = args.settings.with_file(args.config.as_deref())?.job()?;
                let progress = Progress::new(log_args, Work::Copy);
                let outcome = replay::run(job, shutdown, progress.clone()).await;
                progress.finish();
                outcome.map(|()| ExitCode::SUCCESS)
            }
            Command::Check(args) => check::run(*args, shutdown).await,
            Command::Compare(args) | Command::Table(TableCommand::Compare(args)) => {
                let progress = Progress::new(log_args, Work::Compare);
                let outcome = compare::run(*args, shutdown, progress.clone()).await;
                progress.finish();
                outcome
            }
            Command::Repair(args) | Command::Table(TableCommand::Repair(args)) => {
                let progress = Progress::new(log_args, Work::Compare);
                let outcome = compare::repair(*args, shutdown, progress.clone()).await;
                progress.finish();
                outcome
            }
            Command::Node(args) => node::run(*args, shutdown).await.map(|()| ExitCode::SUCCESS),
            Command::Execute(args) => replay::execute::run(args, shutdown).await.map(|()| ExitCode::SUCCESS),
            Command::Takeover(args) => takeover::run(*args, shutdown).await.map(|()| ExitCode::SUCCESS),
            Command::Status(args) => status::run(*args, log_args.quiet, shutdown).await,
            Command::Table(TableCommand::Set(verb)) => replay::administer::run(verb, shutdown)
                .await
                .map(|()| ExitCode::SUCCESS),
            Command::Tail(args) => tail::run(*args, shutdown).await.map(|()| ExitCode::SUCCESS),
        }
    })
}
