//! Where log lines go: stderr, one line each, with the time in UTC.
//!
//! On a terminal they pass the progress bars, which step aside for them. RUST_LOG, when set, decides what is logged;
//! otherwise --verbose and --quiet do. stdout belongs to what a command prints as its result.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::{LogArgs, LogFormat};
use crate::error::{Error, Result};
use crate::progress;

/// Sets up logging for the whole process.
pub(crate) fn start(args: &LogArgs) -> Result<()> {
    let filter = filter(args, std::env::var("RUST_LOG").ok().as_deref())?;
    let terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Stderr)
        .with_target(args.verbose > 1)
        .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none());
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

fn filter(args: &LogArgs, variable: Option<&str>) -> Result<EnvFilter> {
    let default = match (args.quiet, args.verbose) {
        (true, _) => "warn",
        (false, 0) => "warn,consumer=info",
        (false, 1) => "warn,consumer=debug",
        (false, _) => "trace",
    };
    let text = variable.filter(|text| !text.is_empty()).unwrap_or(default);
    EnvFilter::try_new(text).map_err(|error| {
        Error::usage(format!("RUST_LOG cannot be read: {error}"))
            .hint("For example: RUST_LOG=consumer=debug,tokio_postgres=info")
    })
}

/// Prints the error that ends the process: as a log line where the log of something that ran is collected, else as
/// plain text.
pub(crate) fn report(error: &Error, args: &LogArgs, long_running: bool) {
    if args.log_format == LogFormat::Json || (long_running && error.exit_code() == 1 && !io::stderr().is_terminal()) {
        tracing::error!(
            sqlstate = error.sqlstate().map(|code| code.code()),
            detail = error.get_detail(),
            hint = error.get_hint(),
            "{}",
            error.to_string().replace('\n', " ")
        );
    } else {
        // Nothing is left to be done if stderr is gone.
        let _ = writeln!(io::stderr(), "consumer: error: {error:#}");
    }
}

/// stderr, below or between the bars. Each call gets one whole line.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line
    }
}

struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        progress::aside(|| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
