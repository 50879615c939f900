//! A repair written down as SQL: one transaction, which reads texts as we write them and keeps replay away while it runs.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::Scope;
use crate::connect::SETTINGS;
use crate::error::{Doing, Error, Result};
use crate::replay::table::literal;

/// A file, or stdout.
pub(super) struct Script {
    out: BufWriter<Box<dyn Write>>,
    name: String,
    statements: u64,
}

impl Script {
    /// Empties the file. `-` is stdout.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let out: Box<dyn Write> = if name == "-" {
            Box::new(io::stdout())
        } else {
            let file = File::create(path).doing(|| format!("open {name}"));
            Box::new(file.map_err(|error| Error::usage(error.to_string()))?)
        };
        Ok(Self {
            out: BufWriter::new(out),
            name,
            statements: 0,
        })
    }

    pub(super) fn is_stdout(&self) -> bool {
        self.name == "-"
    }

    pub(super) fn begin(&mut self, scope: &Scope) -> Result<()> {
        let (queue, consumer) = (&scope.who.queue, &scope.who.consumer);
        let one_line = |name: &str| name.replace(['\n', '\r'], " ");
        self.write(&format!(
            "-- What consumer \"{}\" of queue \"{}\" would need to have the provider's rows. For psql, on the subscriber.\n\
             -- A statement does nothing to a row that has changed since.\n\
             \\set ON_ERROR_STOP on\n{SETTINGS};\nset session_replication_role = replica;\nbegin;\n\
             select tick from pgcascade_replay.position where queue = {} and consumer = {} for update;\n",
            one_line(consumer),
            one_line(queue),
            literal(queue),
            literal(consumer)
        ))
    }

    pub(super) fn statement(&mut self, sql: &str) -> Result<()> {
        self.statements += 1;
        self.write(&format!("{sql};\n"))
    }

    /// Ends it, and returns how many statements it has.
    pub(super) fn end(mut self) -> Result<u64> {
        self.write("commit;\n")?;
        let flushed = self.out.flush();
        flushed.doing(|| format!("write {}", self.name))?;
        Ok(self.statements)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.out
            .write_all(text.as_bytes())
            .doing(|| format!("write {}", self.name))
    }
}
