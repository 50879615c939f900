//! The ticker of one database: makes ticks, puts retried events back, runs maintenance.
//!
//! All decisions are SQL (`sql/tick.sql`, `sql/maint.sql`); this is the loop that calls them. Each queue, and each
//! maintenance operation, has its own transaction: one that fails is logged once per cause and does not hold up another.
//! A session lock makes sure that a database has one ticker. Commits that put events into a queue wake it ([`wake`]).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::{FromDatum, IntoDatum, PgTryBuilder, pg_sys};

use super::wake;
use crate::pg::{self, ActingAs, SettingsNest};
use crate::{guc, lock};

/// Longest time between two looks at the queues: idle ticks and limits in time fall due without a commit.
const LOOK: Duration = Duration::from_secs(1);
/// A look is followed by the next one after this many times as long as it took, at least;
const REST: u32 = 10;
/// but not after more than this many of the intervals that are set, however long it took.
const MOST_INTERVALS: u32 = 5;
/// Shortest time between two looks at the size of the tables of positions. They grow with each batch, and while somebody holds
/// back vacuum every read of a position walks through what they have grown by.
const COMPACT: Duration = Duration::from_millis(250);

/// What the ticker sets for itself, whatever the database or the role says: it must not wait or stop for reasons meant for
/// applications, and it needs a new snapshot per statement.
const SESSION: &[(&std::ffi::CStr, &std::ffi::CStr)] = &[
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"statement_timeout", c"0"),
    // Somebody who holds the lock of one queue must not keep the others from being ticked for long.
    (c"lock_timeout", c"5s"),
    (c"idle_in_transaction_session_timeout", c"0"),
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    (c"transaction_timeout", c"0"),
    (c"row_security", c"off"),
    (c"jit", c"off"),
    (c"client_min_messages", c"error"),
];

/// Ends the process cleanly.
enum End {
    /// No extension here, or the ticker is switched off: do not come back unless asked.
    NotWanted,
    /// Another ticker has this database, or its settings changed: the launcher starts a new one.
    Again,
}

#[doc(hidden)]
#[allow(unreachable_pub, reason = "the server finds it by its symbol")]
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn pgcascade_ticker_main(argument: pg_sys::Datum) {
    super::accept_signals();
    // SAFETY: the launcher passes an oid.
    let database = unsafe { pg_sys::Oid::from_datum(argument, false) }.unwrap_or(pg_sys::InvalidOid);
    // SAFETY: once, before anything else; as the bootstrap superuser, like the server's own workers.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
        for (name, value) in SESSION {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
        // A tick that others can see must be on disk (correctness.md, R13). Stronger levels are the user's choice.
        if pg_sys::synchronous_commit == pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32 {
            pg_sys::SetConfigOption(
                c"synchronous_commit".as_ptr(),
                c"on".as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }

    let end = match begin() {
        // The slot belongs to the ticker that has the lock.
        Err(End::Again) => return,
        Err(end) => end,
        Ok(settings) => {
            wake::ticker_started(database);
            // Also on FATAL, which does not unwind.
            // SAFETY: the callback is ours and takes the oid as its argument.
            unsafe { pg_sys::before_shmem_exit(Some(forget), argument) };
            run(database, settings)
        }
    };
    wake::ticker_ended(database, matches!(end, End::NotWanted));
}

/// Exit callback: the launcher must see that there is no ticker any more. A clean end has already said why.
#[pg_guard]
unsafe extern "C-unwind" fn forget(_code: i32, argument: pg_sys::Datum) {
    // SAFETY: the oid that was registered.
    if let Some(database) = unsafe { pg_sys::Oid::from_datum(argument, false) }
        && wake::state(database) == wake::Ticker::Running
    {
        wake::ticker_ended(database, false);
    }
}

/// Looks whether a ticker is wanted and alone here. Returns the database's own settings, to notice when they change.
fn begin() -> Result<String, End> {
    let mut found = Err(End::NotWanted);
    let mut log = Log::default();
    log.unit("start", || {
        // Before they are applied: what is changed in between is then noticed at the next look.
        let settings = database_settings()?;
        found = if !apply_settings()? {
            Err(End::Again)
        } else if !guc::ticker() {
            Err(End::NotWanted)
        } else if lock::try_database() {
            Ok(settings)
        } else {
            Err(End::Again)
        };
        Ok(())
    });
    found
}

/// The server applied the database's settings when this session began; they may have changed since, and would then never differ from
/// what is compared with. False: one is gone, which only a new session can do without.
fn apply_settings() -> Result<bool, spi::Error> {
    let same = ask::<bool>(
        &format!(
            "with wanted as (
                 select pg_catalog.split_part(line, '=', 1) as name, pg_catalog.substr(line, pg_catalog.strpos(line, '=') + 1) as value
                   {OF_DATABASE}),
             applied as materialized (select pg_catalog.set_config(name, value, false) from wanted)
             select not exists (select from pg_catalog.pg_settings p where p.source = 'database' and p.name like 'pgcascade.%'
                                   and p.name not in (select name from wanted))
                    and (select pg_catalog.count(*) >= 0 from applied)"
        ),
        &[],
    );
    Ok(same?.unwrap_or(true))
}

/// What ALTER DATABASE has set of ours.
fn database_settings() -> Result<String, spi::Error> {
    let settings = ask::<String>(
        &format!("select pg_catalog.string_agg(line, ',' order by line) {OF_DATABASE}"),
        &[],
    );
    Ok(settings?.unwrap_or_default())
}

/// Where the database's settings of ours are, a `line` each: `name=value`.
const OF_DATABASE: &str = "
    from pg_catalog.pg_db_role_setting s
    join pg_catalog.pg_database d on d.oid = s.setdatabase,
         pg_catalog.unnest(s.setconfig) line
   where d.datname = pg_catalog.current_database() and s.setrole = 0 and line like 'pgcascade.%'";

/// The first column of the first row. Not by `Spi::run` or `Spi::get_one`, which assign a transaction id whatever they run: one
/// who only looks must not, and step 2 of a rotation runs without one only.
fn ask<T: FromDatum + IntoDatum>(query: &str, arguments: &[DatumWithOid<'_>]) -> Result<Option<T>, spi::Error> {
    Spi::connect(|client| client.select(query, None, arguments)?.first().get_one::<T>())
}

/// Whether the extension is there, and if so, that it stays until the end of the transaction. DROP EXTENSION takes this lock
/// first and then those of all that it drops: without it, it and a ticker that uses one thing after the other would wait for
/// each other.
fn hold_extension() -> bool {
    // SAFETY: catalog look-ups by name, and a lock on what they found, inside a transaction.
    unsafe {
        let find = || pg_sys::get_extension_oid(c"pgcascade".as_ptr(), true);
        let extension = find();
        if extension == pg_sys::InvalidOid {
            return false;
        }
        let share = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, extension, 0, share);
        find() == extension
    }
}

fn run(database: pg_sys::Oid, settings: String) -> End {
    let mut log = Log::default();
    let mut settings_read = Instant::now();
    let mut maintained: Option<Instant> = None;
    let mut deliveries = Deliveries::default();
    let mut standbys = Standbys::default();
    let mut compacted = Instant::now();
    loop {
        let look = Instant::now();
        let mut next = LOOK;
        let mut end = Some(End::NotWanted);
        // The launcher gives the slot back while the database takes no connections; we go on.
        if wake::state(database) != wake::Ticker::Running {
            wake::ticker_started(database);
        }
        log.unit("read the settings", || {
            if !guc::ticker() {
                return Ok(());
            }
            end = None;
            if settings_read.elapsed() >= LOOK {
                settings_read = Instant::now();
                if database_settings()? != settings {
                    end = Some(End::Again);
                }
            }
            Ok(())
        });
        if let Some(end) = end {
            return end;
        }

        let mut due = Vec::new();
        log.unit("look at the queues", || {
            for (queue, wait) in queues_due()? {
                if wait.is_zero() {
                    due.push(queue);
                } else {
                    next = next.min(wait);
                }
            }
            Ok(())
        });
        let ticked = !due.is_empty();
        for queue in due {
            let failed = log.unit(&format!("tick queue {}", pg::shown(&queue)), || {
                Spi::run_with_args("select pgq.ticker($1)", &[pg::text_argument(Some(&queue))])
            });
            if let Some(cause) = failed {
                log.unit("note why a queue is not ticked", || {
                    let cause = pg::stored(&cause);
                    let arguments = [&queue[..], &cause[..]].map(|bytes| pg::text_argument(Some(bytes)));
                    Spi::run_with_args("select pgcascade.note_tick_error($1, $2)", &arguments)
                });
            }
        }
        next = next.min(standbys.look(ticked, &mut log)).min(deliveries.look(&mut log));
        if maintained.is_none_or(|last| last.elapsed() >= guc::maint_interval()) {
            maintained = Some(Instant::now());
            maintain(&mut log);
        }
        if compacted.elapsed() >= COMPACT {
            compacted = Instant::now();
            log.unit("compact the positions", || {
                ask::<i32>("select pgcascade.compact_positions()", &[]).map(drop)
            });
        }
        // Workers have to do this themselves; autovacuum of the tick table depends on it.
        // SAFETY: outside of any transaction, as the server wants it.
        unsafe { pg_sys::pgstat_report_stat(false) };
        pause(look, next);
    }
}

/// Names of the queues that are to be ticked and when: at once (zero) or after a while; see `pgcascade.queues_due()`.
/// Names are bytes of the server's encoding (converting to that changes nothing): they need not be UTF-8, as a `String` must.
fn queues_due() -> Result<Vec<(Vec<u8>, Duration)>, spi::Error> {
    Spi::connect(|client| {
        client
            .select(
                "select pg_catalog.convert_to(queue_name, pg_catalog.getdatabaseencoding()), due_ms
                   from pgcascade.queues_due()",
                None,
                &[],
            )?
            .map(|row| {
                let milliseconds = row.get::<i64>(2)?.unwrap_or(0);
                Ok((
                    row.get::<Vec<u8>>(1)?.unwrap_or_default(),
                    Duration::from_millis(milliseconds.unsigned_abs()),
                ))
            })
            .collect()
    })
}

/// Finds out which standbys have the ticks that are kept back until they have them (sql/gate_standby.sql). Nobody tells us when one has: after
/// a tick we look again soon, and less and less often while nothing comes of it; else once in [`LOOK`], also to see whether any are named.
#[derive(Default)]
struct Standbys {
    named: bool,
    looked: Option<Instant>,
    /// A standby is waited for: when to look again. It doubles.
    pause: Option<Duration>,
}

impl Standbys {
    /// Returns when to look again at the latest.
    fn look(&mut self, ticked: bool, log: &mut Log) -> Duration {
        let wanted = if ticked && self.named {
            Duration::ZERO
        } else {
            self.pause.unwrap_or(LOOK)
        };
        let left = wanted.saturating_sub(self.looked.map_or(LOOK, |looked| looked.elapsed()));
        if !left.is_zero() {
            return left;
        }
        self.looked = Some(Instant::now());
        let mut found = None;
        log.unit("see which ticks standbys have", || {
            self.named = ask::<bool>("select exists (select from pgcascade.gate_standby)", &[])? == Some(true);
            if self.named {
                found = ask::<bool>("select pgcascade.confirm_standbys()", &[])?;
            }
            Ok(())
        });
        self.pause = found.map(|changed| match self.pause {
            Some(pause) if !changed => (pause * 2).min(LOOK),
            _ => guc::tick_interval().min(LOOK),
        });
        self.pause.unwrap_or(LOOK)
    }
}

/// Puts retried and delayed events into their queues when they are due.
#[derive(Default)]
struct Deliveries {
    /// When what was due could not be put in: it is tried again after `pgcascade.retry_interval`.
    stuck: Option<Instant>,
}

impl Deliveries {
    /// Returns when to look again at the latest. Stops after a while, for the sake of the queues' ticks.
    fn look(&mut self, log: &mut Log) -> Duration {
        let due = next_delivery(log);
        if due != Some(Duration::ZERO) {
            self.stuck = None;
            return due.unwrap_or(LOOK);
        }
        if self.stuck.is_some_and(|since| since.elapsed() < guc::retry_interval()) {
            return LOOK;
        }
        let began = Instant::now();
        let mut some = false;
        while began.elapsed() < LOOK && deliver(log) {
            some = true;
        }
        self.stuck = (!some).then_some(began);
        if some { Duration::ZERO } else { LOOK }
    }
}

/// See `pgcascade.next_delivery()`.
fn next_delivery(log: &mut Log) -> Option<Duration> {
    let mut due = None;
    log.unit("look for events to deliver", || {
        due = ask::<i32>("select pgcascade.next_delivery()", &[])?;
        Ok(())
    });
    due.map(|milliseconds| Duration::from_millis(u64::from(milliseconds.unsigned_abs())))
}

/// Puts some retried or delayed events into their queues; `true` means call again.
fn deliver(log: &mut Log) -> bool {
    let mut moved = 0;
    log.unit("put retried and delayed events into their queues", || {
        moved = Spi::get_one::<i32>("select pgq.maint_retry_events()")?.unwrap_or(0);
        Ok(())
    });
    moved > 0
}

/// Runs what `pgq.maint_operations()` lists, each in its own transaction, as pgqd does from outside. VACUUM, which it may
/// list too, cannot run inside a transaction: autovacuum does that. Functions that are not our own are there because
/// somebody put them into `queue_extra_maint`, which takes no more than pgq_admin: they run as that role.
fn maintain(log: &mut Log) {
    let mut operations: Vec<(String, Option<Vec<u8>>)> = Vec::new();
    log.unit("list maintenance operations", || {
        Spi::connect(|client| {
            let operations_due = "select pg_catalog.convert_to(func_name, pg_catalog.getdatabaseencoding()),
                       pg_catalog.convert_to(func_arg, pg_catalog.getdatabaseencoding())
                  from pgq.maint_operations()";
            for row in client.select(operations_due, None, &[])? {
                if let Some(function) = row.get::<Vec<u8>>(1)? {
                    operations.push((pg::shown(&function), row.get::<Vec<u8>>(2)?));
                }
            }
            Ok(())
        })
    });
    for (function, argument) in operations {
        if function.eq_ignore_ascii_case("vacuum") {
            continue;
        }
        let what = format!("run {function}({})", pg::shown(argument.as_deref().unwrap_or_default()));
        log.unit(&what, || {
            // By their full names: an administrator chooses the argument too, and `pgq.seq_getval` of a view would run what
            // is in the view.
            let own = function == "pgq.maint_rotate_tables_step1" || function == "pgq.maint_rotate_tables_step2";
            let _acting = (!own).then(as_admin);
            let name = quoted(&function)?;
            // Not by `Spi::run`, see `ask`; and what it returns may be anything.
            Spi::connect(|client| {
                let called = match &argument {
                    Some(argument) => client.select(
                        &format!("select {name}($1)"),
                        None,
                        &[pg::text_argument(Some(argument))],
                    ),
                    None => client.select(&format!("select {name}()"), None, &[]),
                };
                called.map(drop)
            })
        });
    }
}

/// Gives up the superuser's rights, and the way back to them, until dropped. A search_path that is set meanwhile would be
/// such a way: what the ticker itself runs later would find other operators on it. So settings are put back as well.
fn as_admin() -> (ActingAs, SettingsNest) {
    let settings = SettingsNest::open();
    // SAFETY: a look-up by name; raises an ERROR if somebody dropped the role.
    let acting = ActingAs::role(unsafe { pg_sys::get_role_oid(c"pgq_admin".as_ptr(), false) }, true);
    (acting, settings)
}

/// `schema.function` with each part quoted where SQL needs it.
fn quoted(function: &str) -> Result<String, spi::Error> {
    Ok(ask::<String>("select pgq.quote_fqname($1)", &[function.into()])?.unwrap_or_default())
}

/// Waits until the next look: `pgcascade.tick_interval` after the last one if a commit wakes us, else `longest` after it. Where a
/// look takes its time, because there is much to do or the machine is busy, the interval is longer: consumers have several times
/// the ticker's work with each tick, and a batch of more events is less work than more batches.
fn pause(look: Instant, longest: Duration) {
    let worked = look.elapsed();
    let mut woken = false;
    loop {
        let shortest = guc::tick_interval();
        let interval = (worked * REST).clamp(shortest, shortest * MOST_INTERVALS);
        let wanted = if woken { interval } else { longest.max(interval) };
        let left = wanted.saturating_sub(look.elapsed());
        if left.is_zero() {
            return;
        }
        // Less than a millisecond would be a wait of nothing.
        woken |= super::wait(left.max(Duration::from_millis(1)));
        super::reload_configuration();
    }
}

/// Runs units of work, each in its own transaction, and logs what fails: once for each new cause, until it works again.
#[derive(Default)]
struct Log {
    last: HashMap<String, String>,
}

impl Log {
    /// Returns the cause, if it is a new one.
    fn unit(&mut self, what: &str, work: impl FnOnce() -> Result<(), spi::Error>) -> Option<String> {
        match transaction(work) {
            Ok(()) => {
                if self.last.remove(what).is_some() {
                    pgrx::log!("pgcascade ticker: {what}: works again");
                }
                None
            }
            Err(cause) if self.last.get(what) == Some(&cause) => None,
            Err(cause) => {
                pgrx::warning!("pgcascade ticker could not {what}: {cause}");
                self.last.insert(what.to_owned(), cause.clone());
                Some(cause)
            }
        }
    }
}

/// A transaction that does its work and commits, or aborts and returns why; without the extension it does nothing. An error is caught only here, right before the abort that cleans
/// up after it. FATAL (a shutdown, DROP DATABASE WITH FORCE) ends the process and is not caught.
fn transaction(work: impl FnOnce() -> Result<(), spi::Error>) -> Result<(), String> {
    // SAFETY: called from the worker's loop, outside of any transaction.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
    }
    PgTryBuilder::new(std::panic::AssertUnwindSafe(|| {
        if hold_extension() {
            // SAFETY: inside a transaction. Not before the lock, for which we may have waited.
            unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
            work().map_err(|error| error.to_string())?;
            // SAFETY: pops what was pushed above.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
        // SAFETY: commits what was started above; an ERROR is caught below.
        unsafe { pg_sys::CommitTransactionCommand() };
        Ok(())
    }))
    .catch_others(|error| match &error {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => {
            let hint = report.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            Err(format!(
                "{} (SQLSTATE {}){hint}",
                report.message(),
                sqlstate(report.sql_error_code())
            ))
        }
    })
    .execute()
    .inspect_err(|_| {
        // SAFETY: the transaction is open and failed; this ends it and releases all it held.
        unsafe { pg_sys::AbortCurrentTransaction() }
    })
}

/// The five characters of an error code.
fn sqlstate(code: pgrx::PgSqlErrorCode) -> String {
    let packed = code as i32;
    (0..5)
        .map(|place| char::from(((packed >> (6 * place)) & 0x3f) as u8 + b'0'))
        .collect()
}
