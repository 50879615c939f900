//! The command line: what a user may type, and nothing of what it means.
//!
//! Every flag's help text is its doc comment here, so `--help` and the reference in docs/configuration.md (compared by
//! a test in config.rs) say the same. clap exits with 2 on a wrong command line, which is our code for wrong usage.

pub(crate) mod execute;
mod node;
pub(crate) mod table;
mod takeover;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::config::ReplaySettings;
pub(crate) use node::{
    AdoptArgs, CascadeArgs, ChangeLocationArgs, ChangeProviderArgs, CreateArgs, CreateLeafArgs, CreateRootArgs,
    DropArgs, NewNodeArgs, NodeArgs, NodeCommand, RejoinArgs, RenameArgs, WaitArgs, WaitingArgs, Whose,
};
pub(crate) use takeover::TakeoverArgs;

/// Replays pgcascade queues into other databases, shows how far they are, and prints their events.
#[derive(Parser)]
#[command(name = "consumer", version, max_term_width = 110, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
CONNINFO is a libpq connection string, as keywords (\"host=db1 dbname=app user=replay\") or as a URI
(postgresql://replay@db1/app).
Keep passwords in ~/.pgpass (or PGPASSFILE): what stands in a command line, everybody on the machine can read.

Exit codes: 0 done, or stopped by SIGTERM or SIGINT; 1 something failed; 2 wrong usage or configuration;
130 or 143 a second SIGINT or SIGTERM.";

/// What goes to stderr; the same for every command.
#[derive(Args)]
pub(crate) struct LogArgs {
    /// Log more: -v adds what each step does, -vv everything, the libraries included. RUST_LOG overrides it.
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,
    /// Log warnings and errors only, and show no progress.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// How log lines look. With json there are never progress bars.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Time, level, sentence, fields.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Copy tables into another database and keep them up to date from a queue.
    ///
    /// Makes what is missing (the queue, the triggers that capture changes, the registration, the state on the
    /// subscriber), copies the tables, and then applies every batch in one transaction together with the position:
    /// exactly once. Started again, it goes on where it was. A position that the provider no longer has is an error;
    /// replay never starts "from now" by itself.
    Replay(Box<ReplayArgs>),
    /// Look for everything that would stop or spoil replay, at both ends, and change nothing.
    ///
    /// Takes replay's own command line or file. Prints each finding with its remedy, mostly a statement to run: docs/check.md
    /// lists them all. May run at any time, also beside the replay. Exits with 1 if anything stops replication, with 0 if
    /// there is nothing or only warnings.
    Check(Box<CheckArgs>),
    /// Compare the rows of both ends while both are in use.
    ///
    /// Locks nobody out and does not stop replay: a row is reported only if it differs between a state of the subscriber
    /// and one of the provider between which nothing happened to it. Exits with 0 if all tables are equal, and with 1 if
    /// rows differ, could not be compared yet, or something failed; the output says which.
    Compare(Box<CompareArgs>),
    /// Put right what compare would find: give the subscriber's rows the provider's values.
    ///
    /// While both ends are in use, as compare. Each transaction keeps replay waiting for a moment, looks at its rows again,
    /// and leaves those for later whose events are on their way. Exits with 0 if everything is equal or repaired (or written
    /// to --output), else with 1.
    Repair(Box<RepairArgs>),
    /// Make, change and drop the nodes of a cascade.
    Node(Box<NodeArgs>),
    /// Make another node of a cascade the root.
    ///
    /// Checks first what the new root lacks. Then closes the old root, lets the new one apply all that is there, and opens
    /// it; only in between are writes refused. Each step is recorded in the new root's database: a takeover that was
    /// interrupted is finished with --resume, or given up with --abort. Only one can be under way. With --dead the old root is gone:
    /// the new one fetches from the furthest branch what it lacks, and opens when another one has confirmed it.
    Takeover(Box<TakeoverArgs>),
    /// Show lag, position, tables and errors.
    ///
    /// Of one replay: --provider and --subscriber. Exits with 1 if one of the ends cannot be reached; what the other one
    /// knows is shown all the same.
    ///
    /// Of a cascade: --subscriber, any of its nodes, and --queue. All nodes are asked at once. Exits with 1 if any of them
    /// cannot be reached (unless it was declared dead), is not being replayed, has an error, is closed or frozen by a takeover,
    /// or is further behind than --max-lag; with --quiet that is all, as cron wants it.
    Status(Box<StatusArgs>),
    /// Print the events of a queue, one JSON object per line.
    ///
    /// Prints the last events (10, or as many as -n says), like tail(1); with --follow also those that come, whatever
    /// becomes of the connection. With --from, prints what comes after that, and -n is where it stops. Reads beside every
    /// consumer: without --consumer it registers none and changes nothing, so rotation may remove events before they are
    /// read; then it stops and says so. docs/tail.md describes the lines.
    Tail(Box<TailArgs>),
    /// Execute files of SQL on the provider and, at the same place among the changes of rows, on the queue's subscribers.
    ///
    /// For ALTER TABLE and other changes that both ends need. A line `--*-- Local-Table: NAME, ...` at the head of a file
    /// leaves out the subscribers that replay none of these tables; `@NAME@` in it is the table's name at each end.
    /// docs/tables.md tells the rest.
    Execute(execute::ExecuteArgs),
    /// Show and change the set of tables that are replayed, while replay runs or not.
    #[command(subcommand)]
    Table(table::TableCommand),
}

#[derive(Args)]
pub(crate) struct ReplayArgs {
    /// Read settings from this TOML file; its keys are the flags below without the dashes. A flag overrides the file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: ReplaySettings,
}

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) replay: ReplayArgs,
}

/// Both ends, for the verbs that look at a replay from outside.
#[derive(Args)]
pub(crate) struct EndsArgs {
    /// Take provider, subscriber, queue and consumer from replay's configuration file. A flag overrides the file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The database that changes are captured in.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) provider: Option<String>,
    /// The database that they are replayed into.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) subscriber: Option<String>,
}

impl EndsArgs {
    /// As replay's settings, with those of the file.
    pub(crate) fn settings(
        self,
        queue: Option<String>,
        consumer: Option<String>,
    ) -> crate::error::Result<ReplaySettings> {
        let flags = ReplaySettings {
            provider: self.provider,
            subscriber: self.subscriber,
            queue,
            consumer,
            ..ReplaySettings::default()
        };
        flags.with_file(self.config.as_deref())
    }
}

#[derive(Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) ends: EndsArgs,
    /// The queue; may be left out where the subscriber has one consumer only.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// The consumer; may be left out where the subscriber has one only.
    #[arg(long, value_name = "NAME")]
    pub(crate) consumer: Option<String>,
    /// Compare these tables only, as for replay [default: every table that is replayed]. May be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) table: Vec<String>,
    /// How many parts are compared at the same time: 1 to 64 [default: 2].
    #[arg(long, value_name = "NUMBER", default_value_t = 2, hide_default_value = true, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) jobs: u8,
    /// How long rows whose events are on their way are looked at again, at the end [default: 60].
    #[arg(long, value_name = "SECONDS", default_value_t = 60, hide_default_value = true)]
    pub(crate) wait: u64,
    /// How many differing rows, and ranges, of a table are named [default: 100].
    #[arg(long, value_name = "N", default_value_t = 100, hide_default_value = true)]
    pub(crate) rows: usize,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    pub(crate) fix: Fix,
    #[command(flatten)]
    pub(crate) compare: CompareArgs,
}

/// Where the repair goes.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Fix {
    /// Change the rows of the subscriber.
    #[arg(long)]
    pub(crate) apply: bool,
    /// Change nothing, and write the statements to this file, for psql; `-` is stdout.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) ends: EndsArgs,
    /// Show this queue only [default: every queue that the subscriber replays; a cascade's must be named].
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// Show this consumer only [default: every consumer that the subscriber knows].
    #[arg(long, value_name = "NAME")]
    pub(crate) consumer: Option<String>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
    /// Of a cascade: show it again after so many seconds, until stopped; a signal ends it with 0. If --subscriber is away meanwhile, that
    /// is shown.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) watch: Option<u64>,
    /// Of a cascade: how many seconds each node has to answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
    /// Of a cascade: exit with 1 if a node is further behind than so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_lag: Option<u64>,
}

#[derive(Args)]
pub(crate) struct TailArgs {
    /// The queue to read.
    pub(crate) queue: String,
    /// Take the provider from replay's configuration file. A flag overrides the file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The database that the queue is in.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) provider: Option<String>,
    /// Print only the events of these tables, as schema.table; `*` and `?` stand for any characters, and without a
    /// schema it is public's. May be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) table: Vec<String>,
    /// What the lines look like.
    #[arg(long, value_enum, default_value_t = TailFormat::Json, value_name = "FORMAT")]
    pub(crate) format: TailFormat,
    /// Print the events after this one, oldest first: a line's cursor (TICK/EVENT) for what follows that line, a tick for
    /// what follows that tick, `oldest` for all that is still there.
    #[arg(long, value_name = "CURSOR", value_parser = parse_from)]
    pub(crate) from: Option<From>,
    /// Register this consumer, so that rotation waits until the events are printed, and go on from its position, unless
    /// --from is later. The position moves after the lines are flushed: after a crash the last ones may come again.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) consumer: Option<String>,
    /// How many of the last events are printed [default: 10]. With --from or --consumer: stop after this many.
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) lines: Option<u64>,
    /// Wait for more at the end of the queue, until stopped.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// What a line of `tail` looks like.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TailFormat {
    /// The event's columns, decoded.
    Json,
    /// Debezium's envelope.
    Debezium,
}

/// Where `tail` begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// After the oldest tick.
    Oldest,
    /// After this tick.
    Tick(i64),
    /// After this event, which that tick made visible.
    Event { tick: i64, event: i64 },
}

fn parse_from(text: &str) -> Result<From, String> {
    if text == "oldest" {
        return Ok(From::Oldest);
    }
    let number = |text: &str| text.parse().ok().filter(|number: &i64| *number >= 0);
    let from = match text.split_once('/') {
        Some((tick, event)) => number(tick)
            .zip(number(event))
            .map(|(tick, event)| From::Event { tick, event }),
        None => number(text).map(From::Tick),
    };
    from.ok_or_else(|| "neither a line's cursor (TICK/EVENT), nor a tick's number, nor `oldest`".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_says_what_it_does() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn a_wrong_command_line_exits_with_2() {
        for line in [
            &["consumer", "replay", "--nonsense"][..],
            &["consumer", "check", "--nonsense"],
            &["consumer", "tail"],
            &["consumer", "tail", "q", "--from", "yesterday"],
            &["consumer", "tail", "q", "--from", "-1"],
            &["consumer", "tail", "q", "--from", "1/"],
            &["consumer", "tail", "q", "--from", "1/2/3"],
            &["consumer", "tail", "q", "--consumer", ""],
            &["consumer", "tail", "q", "--format", "xml"],
            &["consumer", "nonsense"],
            &["consumer", "-v", "-q", "status"],
        ] {
            let error = Cli::try_parse_from(line).err().unwrap();
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }
}
