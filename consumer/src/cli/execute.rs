//! The command line of `consumer execute`.

use std::path::PathBuf;

use clap::Args;

#[derive(Args)]
pub(crate) struct ExecuteArgs {
    /// Files with SQL, executed one after the other, each in a transaction of its own. A file is known by its name without
    /// folders, and is executed once in each database.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Take provider and queue from replay's configuration file. A flag overrides the file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The database that changes are captured in.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) provider: Option<String>,
    /// The queue, whose subscribers execute the files, too.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// How often a file is tried again when a lock cannot be had within five seconds.
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    pub(crate) retries: u32,
}
