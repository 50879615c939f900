//! `consumer execute`: changes of tables and other objects, made on the provider and, at the same place among the changes of
//! rows, on the subscribers.
//!
//! On the provider a file is one transaction: its SQL, its record in `pgcascade_replay.executed`, and an event of type `EXECUTE`
//! (Londiste's: the SQL is the data, the file's name extra1, its attributes extra2). The event is made last: by then the
//! transaction has its locks, so whatever changed the tables before has a smaller event id, and whatever changes them after it a
//! greater one. Where it has none that keep writers out, it is refused.
//!
//! On a subscriber the event is executed at its place, in the batch's transaction, which also records it; so it is executed
//! once, whatever is killed when. The decoder stops at such an event and goes on behind it with the tables as they are then
//! (batch/transaction.rs). A copy is either wholly older than the file, or begins again after it: in between, rows may have
//! been read that the file has changed already. So no copy begins while a file is [`pending`].
//!
//! It runs as the role of `--execute-as`, and not at all without: what stands in a queue was written by whoever may write
//! there. At both ends `session_replication_role` is `local` meanwhile: the capture triggers make no events of what the SQL
//! does to rows, because it does the same on the other end. Names without a schema mean public. It runs as the body of a DO
//! block would, so it cannot end the transaction.

use std::path::Path;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::{ErrorPosition, SqlState};

use super::event::Event;
use super::pattern::Pattern;
use super::position::Who;
use super::session;
use super::state;
use super::table::{Name, literal, quoted};
use super::triggers;
use crate::backoff::Backoff;
use crate::cli::execute::ExecuteArgs;
use crate::config::{ReplaySettings, conninfo, name};
use crate::connect::{End, connect};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::shutdown::Shutdown;

/// The type of the events.
pub(super) const EVENT_TYPE: &[u8] = b"EXECUTE";

/// The longest pause before a file is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Whoever wants the table waits behind one that waits to change it: so not for long, and rather again. A shorter limit of the
/// role's or the database's stays.
const LOCK_LIMIT: &str = "select pg_catalog.set_config('lock_timeout', '5s', true)
                           where (select s.setting::int4 from pg_catalog.pg_settings s where s.name = 'lock_timeout') not between 1 and 5000";

/// A line of a file that starts with this has an attribute: `--*-- Local-Table: public.orders`.
const ATTRIBUTE: &str = "--*--";

/// The attribute that lists tables: who replays none of them does not execute the file.
const LOCAL_TABLE: &str = "local-table";

/// A file, or an event of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Execute {
    pub(super) id: i64,
    /// Of the transaction that ran it where the queue begins.
    pub(super) txid: u64,
    file: String,
    sql: String,
    /// The tables of the attribute.
    tables: Vec<String>,
}

/// Executes files on the provider, and leaves them for the subscribers.
pub(crate) async fn run(args: ExecuteArgs, shutdown: Shutdown) -> Result<()> {
    let flags = ReplaySettings {
        provider: args.provider,
        queue: args.queue,
        ..ReplaySettings::default()
    };
    let settings = flags.with_file(args.config.as_deref())?;
    let target = conninfo("provider", settings.provider.as_deref())?;
    let queue = name("queue", settings.queue.as_deref())?;
    let files = args.files.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let work = async {
        let session = connect(&target, End::Provider, "consumer execute").await?;
        let client = &session.client;
        prepare(client, &queue).await?;
        for file in &files {
            let mut backoff = Backoff::new(LONGEST_PAUSE);
            let mut left = args.retries;
            while let Err(error) = on_provider(client, &queue, file).await {
                let locked = error.sqlstate().is_some_and(|state| {
                    [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(state)
                });
                if !locked || left == 0 {
                    return Err(error);
                }
                client
                    .batch_execute("rollback")
                    .await
                    .doing(|| "roll back on the provider".to_owned())?;
                left -= 1;
                tracing::warn!("{error}; trying again");
                tokio::time::sleep(backoff.next_pause()).await;
            }
        }
        Ok(())
    };
    // What was on its way is rolled back with the session.
    tokio::select! {
        outcome = Box::pin(work) => outcome,
        () = shutdown.wait() => Err(Error::failure("stopped before the end").hint("Run it again: files that are done are left out.")),
    }
}

fn read(path: &Path) -> Result<Execute> {
    let shown = path.display();
    let sql = std::fs::read_to_string(path)
        .map_err(|error| Error::usage(format!("could not read the file {shown}: {error}")))?;
    let file = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| Error::usage(format!("the name of the file {shown} is not text")))?;
    // Some editors begin a file with the mark of its encoding, which psql passes over, too.
    let sql = sql.strip_prefix('\u{feff}').unwrap_or(&sql).to_owned();
    if sql.trim().is_empty() {
        return Err(Error::usage(format!("the file {shown} is empty")));
    }
    if sql.contains('\0') {
        return Err(Error::usage(format!(
            "the file {shown} holds a zero byte, which SQL cannot have"
        )));
    }
    let tables = attribute(&sql, LOCAL_TABLE);
    for table in &tables {
        Pattern::parse(table)?;
    }
    Ok(Execute {
        id: 0,
        txid: 0,
        file: file.to_owned(),
        sql,
        tables,
    })
}

/// The values of an attribute in the comments at the head of a file.
fn attribute(sql: &str, wanted: &str) -> Vec<String> {
    sql.lines()
        .map(str::trim)
        .take_while(|line| line.is_empty() || line.starts_with("--"))
        .filter_map(|line| line.strip_prefix(ATTRIBUTE)?.split_once(':'))
        .filter(|(key, _)| key.trim().eq_ignore_ascii_case(wanted))
        .flat_map(|(_, values)| list(values))
        .collect()
}

fn list(values: &str) -> Vec<String> {
    let values = values.split(',').map(|value| value.trim().to_owned());
    values.filter(|value| !value.is_empty()).collect()
}

/// The queue must be there and begin there, and the place for the records.
async fn prepare(client: &Client, queue: &str) -> Result<()> {
    let row = client
        .query_opt(
            "select q.queue_external_ticker from pgq.queue q where q.queue_name = $1",
            &[&queue],
        )
        .await
        .doing(|| format!("look for queue \"{queue}\" on the provider"))?;
    match row.map(|row| row.get::<_, bool>(0)) {
        None => {
            return Err(
                Error::failure(format!("queue \"{queue}\" does not exist on the provider"))
                    .hint("Correct --queue; consumer replay makes the queue it is told."),
            );
        }
        Some(true) => {
            return Err(Error::failure(format!(
                "the provider gets queue \"{queue}\" from somewhere else, and what is executed there would not reach the others"
            ))
            .hint("Name the root of the cascade in --provider; consumer status shows which it is."));
        }
        Some(false) => {}
    }
    if let Err(error) = client
        .batch_execute("set session_replication_role = local")
        .await
        .doing(|| "set session_replication_role on the provider".to_owned())
    {
        let row = client
            .query_one("select pg_catalog.quote_ident(current_user)", &[])
            .await
            .doing(|| "ask who acts on the provider".to_owned())?;
        let role: &str = row.get(0);
        return Err(error.hint(format!(
            "As a superuser there (PostgreSQL 15 and later): grant set on parameter session_replication_role to {role}"
        )));
    }
    state::install(client, End::Provider).await?;
    // Replay has to see what is pending.
    client
        .batch_execute(
            "do $$ begin
               if not pg_catalog.has_table_privilege('pgq_reader', 'pgcascade_replay.executed', 'select') then
                 grant usage on schema pgcascade_replay to pgq_reader;
                 grant select on pgcascade_replay.executed to pgq_reader;
               end if;
             end $$",
        )
        .await
        .doing(|| "let role pgq_reader see what was executed on the provider".to_owned())
}

/// One file on the provider.
async fn on_provider(client: &Client, queue: &str, file: &Execute) -> Result<()> {
    let name = &file.file;
    let what = || format!("execute file \"{name}\" on the provider");
    client
        .batch_execute(&format!("begin; {LOCK_LIMIT}"))
        .await
        .doing(what)?;
    if let Some(Recorded { same, when }) = record(client, queue, file).await.doing(what)? {
        client.batch_execute("rollback").await.doing(what)?;
        if !same {
            return Err(Error::failure(format!(
                "another file \"{name}\" was executed on the provider on {when}"
            ))
            .hint("A file is known by its name: give this one another."));
        }
        tracing::info!(file = name, when, "executed already, left out");
        return Ok(());
    }
    let before = triggers::captured(client, queue).await?;
    let named = file.literals()?;
    for (_, name) in &named {
        if before.iter().any(|(_, captured)| captured == name) {
            client
                .batch_execute(&format!("lock table {} in share row exclusive mode", name.quoted()))
                .await
                .doing(what)?;
        }
    }
    let sql = file.with_names(&named);
    if let Err(error) = body(client, &sql).await {
        let line = line_of(&error, &sql);
        return match Err(error).doing(what) {
            Err(error) => Err(advise(error, line, &sql)),
            Ok(()) => Ok(()),
        };
    }
    check_captured(client, queue, file, &before).await?;
    let attributes = (!file.tables.is_empty()).then(|| {
        let mut text = Vec::new();
        wire::urlenc::push(
            &mut text,
            LOCAL_TABLE.as_bytes(),
            Some(file.tables.join(", ").as_bytes()),
        );
        String::from_utf8_lossy(&text).into_owned()
    });
    client
        .query_one(
            "select pgq.insert_event($1, 'EXECUTE', $2, $3, $4, null, null)",
            &[&queue, &file.sql, name, &attributes],
        )
        .await
        .doing(what)?;
    failpoint("before_commit");
    client.batch_execute("commit").await.doing(what)?;
    failpoint("after_commit");
    tracing::info!(file = name, "executed on the provider");
    Ok(())
}

/// The number of the line that the server points at, and the line.
fn line_of(error: &tokio_postgres::Error, sql: &str) -> Option<(usize, String)> {
    let Some(ErrorPosition::Internal { position, query }) = error.as_db_error()?.position() else {
        return None;
    };
    // Characters, from 1 on.
    let before = usize::try_from(*position).ok()?.checked_sub(1)?;
    let number = sql.chars().take(before).filter(|&one| one == '\n').count();
    let line = sql.lines().nth(number).filter(|_| query == sql)?;
    Some((number + 1, line.trim().to_owned()))
}

/// Where in the file it is, and what a file cannot have.
fn advise(mut error: Error, line: Option<(usize, String)>, sql: &str) -> Error {
    let psql = |line: &str| line.trim_start().starts_with('\\');
    let hint = match error.sqlstate().map_or("", SqlState::code) {
        "0A000" | "25001" | "2D000" => {
            "A file is one transaction: it has no BEGIN and no COMMIT of its own, and nothing that PostgreSQL refuses in a transaction; \
             CREATE INDEX CONCURRENTLY and VACUUM can be run by hand at each end."
        }
        "42601" if sql.lines().any(psql) => {
            "A file has SQL only: no command of psql, which begins with a backslash, and no rows for COPY FROM STDIN."
        }
        _ => "",
    };
    if let Some((number, line)) = line {
        error = error.detail(format!("line {number}: {line}"));
    }
    if hint.is_empty() { error } else { error.hint(hint) }
}

/// What a file must not do to captured tables, as the others could not follow.
async fn check_captured(client: &Client, queue: &str, file: &Execute, before: &[(u32, Name)]) -> Result<()> {
    let name = &file.file;
    let what = || format!("look what file \"{name}\" did on the provider");
    let after = triggers::captured(client, queue).await?;
    if let Some((_, table)) = before.iter().find(|table| !after.contains(table)) {
        return Err(Error::failure(format!(
            "file \"{name}\" renames, moves or drops table {table}, which is captured into queue \"{queue}\""
        ))
        .hint("Nothing was executed. Take the table out first (consumer table remove), and add it by its new name afterwards."));
    }
    // Changes of rows that others may change at the same time: which came first is not the same on the other end.
    let weakly = client
        .query(
            "select l.relation from pg_catalog.pg_locks l where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation'
              group by l.relation
             having pg_catalog.bool_or(l.mode = 'RowExclusiveLock')
                and not pg_catalog.bool_or(l.mode in ('ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))",
            &[],
        )
        .await
        .doing(what)?;
    let weakly: Vec<u32> = weakly.iter().map(|row| row.get(0)).collect();
    if let Some((_, table)) = before.iter().find(|(oid, _)| weakly.contains(oid)) {
        return Err(Error::failure(format!(
            "file \"{name}\" changes rows of table {table} while others may change them, so that the other end could come to another result"
        ))
        .hint(format!(
            "Nothing was executed. Have the table locked: name it in a line \"--*-- Local-Table: {table}\" at the head of the file, or \
             begin with: lock table {} in share row exclusive mode;",
            table.quoted()
        )));
    }
    Ok(())
}

/// Whether a file was executed on the provider behind the position: then the ends may differ, and will not for long.
pub(super) async fn pending(provider: &Client, who: &Who, tick: i64) -> Result<bool> {
    let what = || "look for what was executed on the provider".to_owned();
    let there = provider
        .query_one(
            "select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                             where n.nspname = 'pgcascade_replay' and c.relname = 'executed'
                               and pg_catalog.has_schema_privilege(n.oid, 'usage')
                               and pg_catalog.has_table_privilege(c.oid, 'select'))",
            &[],
        )
        .await
        .doing(what)?;
    if !there.get::<_, bool>(0) {
        return Ok(false);
    }
    let row = provider
        .query_one(include_str!("sql/pending.sql"), &[&who.queue, &tick])
        .await
        .doing(what)?;
    Ok(row.get(0))
}

impl Execute {
    /// What an event says.
    pub(super) fn of(event: &Event<'_>) -> Result<Self> {
        let id = event.id;
        let text = |bytes: Option<&[u8]>| {
            String::from_utf8(bytes.unwrap_or_default().to_vec()).map_err(|_| {
                Error::failure(format!("event {id}, which is to be executed, is not text in UTF-8"))
                    .hint("A provider in another encoding can have files of ASCII characters executed.")
            })
        };
        let mut tables = Vec::new();
        for pair in wire::urlenc::pairs(event.extra2.unwrap_or_default()) {
            let (key, value) = pair.map_err(|error| {
                Error::failure(format!(
                    "the attributes of event {id}, which is to be executed, cannot be read: {error}"
                ))
            })?;
            if key.eq_ignore_ascii_case(LOCAL_TABLE.as_bytes()) {
                tables.extend(list(&text(value.as_deref())?));
            }
        }
        let file = text(event.table)?;
        Ok(Self {
            id,
            txid: event.txid,
            file: if file.is_empty() { format!("event {id}") } else { file },
            sql: text(event.data)?,
            tables,
        })
    }

    /// The tables of the attribute, by the names that they have on the provider.
    fn literals(&self) -> Result<Vec<(String, Name)>> {
        let mut named = Vec::new();
        for text in &self.tables {
            if let (Some(schema), Some(table)) = Pattern::parse(text)?.literals() {
                named.push((text.clone(), Name::new(schema, table)));
            }
        }
        Ok(named)
    }

    /// The tables of the attribute by the names that they have here. `tables` are those of the set, by their names at both ends.
    /// None: it is none of this subscriber's business.
    pub(super) fn here(&self, tables: &[(Name, Name)]) -> Result<Option<Vec<(String, Name)>>> {
        let mut named = Vec::new();
        for text in &self.tables {
            let pattern = Pattern::parse(text)?;
            let here = tables.iter().filter(|(provider, _)| pattern.matches(provider));
            named.extend(here.map(|(_, subscriber)| (text.clone(), subscriber.clone())));
        }
        if named.is_empty() && !self.tables.is_empty() {
            tracing::info!(file = self.file, "not executed, as none of its tables is replayed");
            return Ok(None);
        }
        // Whichever of them is not replayed here has the provider's name, if it is there at all.
        for (text, name) in self.literals()? {
            if !named.iter().any(|(known, _)| *known == text) {
                named.push((text, name));
            }
        }
        Ok(Some(named))
    }

    /// The SQL with `@table@` replaced by the table's name at this end.
    fn with_names(&self, named: &[(String, Name)]) -> String {
        named.iter().fold(self.sql.clone(), |sql, (text, name)| {
            sql.replace(&format!("@{text}@"), &name.quoted())
        })
    }
}

/// Executes an event in the batch's transaction, unless it is recorded already. `named` is what [`Execute::here`] gave;
/// `encoding` that of the session, which is the provider's. The text is UTF-8: so is the session afterwards.
pub(super) async fn on_subscriber(
    client: &Client,
    who: &Who,
    role: Option<&str>,
    encoding: &str,
    named: &[(String, Name)],
    execute: &Execute,
) -> Result<()> {
    let (file, id) = (&execute.file, execute.id);
    let what = || format!("execute file \"{file}\" on the subscriber, which event {id} asks for");
    if session::converts_from(encoding) {
        client
            .batch_execute("set local client_encoding = 'UTF8'")
            .await
            .doing(what)?;
    }
    if let Some(Recorded { same, .. }) = record(client, &who.queue, execute).await.doing(what)? {
        if !same {
            return Err(Error::failure(format!(
                "event {id} asks for file \"{file}\", and another file of that name was executed on the subscriber"
            ))
            .hint(
                "A file is known by its name and queue: two providers of one subscriber need queues of different names, or files of \
                 different names. Nothing of the batch was applied.",
            ));
        }
        tracing::info!(file, event = id, "executed already, left out");
        return Ok(());
    }
    let by_hand = format!(
        "make the change by hand and record it: insert into pgcascade_replay.executed (queue, file) values ({}, {})",
        literal(&who.queue),
        literal(file)
    );
    let Some(role) = role else {
        return Err(Error::failure(format!(
            "event {id} asks for file \"{file}\" to be executed on the subscriber, and no role is named for that"
        ))
        .hint(format!(
            "Name one with --execute-as; or {by_hand}. Nothing of the batch was applied."
        )));
    };
    client
        .batch_execute(&format!(
            "{LOCK_LIMIT}; set local session_replication_role = local; set local role {}",
            quoted(role)
        ))
        .await
        .doing(what)?;
    body(client, &execute.with_names(named))
        .await
        .doing(what)
        .map_err(|error| {
            if error.is_transient() {
                return error;
            }
            error.hint(format!(
                "Put the cause right and start replay again, or {by_hand}. Nothing of the batch was applied."
            ))
        })?;
    // What the file has left behind for the transaction's end would otherwise be done as the other role and in replica mode.
    client
        .batch_execute(
            "set constraints all immediate; set constraints all deferred; reset role;
             set local session_replication_role = replica",
        )
        .await
        .doing(what)?;
    tracing::info!(file, event = id, "executed on the subscriber");
    Ok(())
}

/// A record that was there before.
struct Recorded {
    /// Of this SQL, or made by hand.
    same: bool,
    when: String,
}

/// Records the file, unless it is recorded already. Waits for somebody who is just executing it.
async fn record(client: &Client, queue: &str, file: &Execute) -> Result<Option<Recorded>, tokio_postgres::Error> {
    let inserted = client
        .execute(
            "insert into pgcascade_replay.executed (queue, file, sql, txid)
             values ($1, $2, $3, pg_catalog.pg_current_xact_id()::text::int8) on conflict do nothing",
            &[&queue, &file.file, &file.sql],
        )
        .await?;
    if inserted == 1 {
        return Ok(None);
    }
    let row = client
        .query_one(
            "select sql is null or sql = $3, pg_catalog.to_char(executed, 'YYYY-MM-DD HH24:MI:SS OF')
               from pgcascade_replay.executed where queue = $1 and file = $2",
            &[&queue, &file.file, &file.sql],
        )
        .await?;
    Ok(Some(Recorded {
        same: row.get(0),
        when: row.get(1),
    }))
}

/// Runs the SQL inside the transaction.
async fn body(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let inner = format!("begin execute {}; end", literal(sql));
    client
        .batch_execute(&format!(
            "set local search_path = public; do {}; set local search_path = ''",
            literal(&inner)
        ))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_stand_at_the_head() {
        let sql = "-- a change\n\n--*-- Local-Table: public.a, b ,\n--*-- Need-Table: c\n  --*-- LOCAL-TABLE:d\nselect 1;\n\
                   --*-- Local-Table: e\n";
        assert_eq!(attribute(sql, LOCAL_TABLE), ["public.a", "b", "d"]);
        assert!(attribute("select 1", LOCAL_TABLE).is_empty());
    }
}
