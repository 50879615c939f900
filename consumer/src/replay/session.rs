//! The two ends, once connected: what they are, the settings that replay needs there, and the lock that keeps a second
//! replay out.
//!
//! Called by setup.rs at every start, before anything else. What is wrong with a whole end, [`check_ends`] finds; nothing
//! else can be looked at then.

use std::time::Duration;

use tokio_postgres::Client;

use super::findings::{Findings, Kind, Remedy};
use super::position::Who;
use super::survey::Facts;
use super::table::{literal, quoted};
use crate::backoff::Looks;
use crate::connect::End;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::shutdown::Shutdown;

/// The oldest extension whose functions replay can use.
const OLDEST_EXTENSION: (u32, u32) = (0, 1);

/// How long a lock is waited for: a replay that was killed a moment ago leaves a session that has not noticed yet.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The same after a lost connection, where the session that holds it is most likely our own former one.
pub(crate) const LOCK_PATIENCE_AGAIN: Duration = Duration::from_secs(60);

/// Who and what the provider is.
pub(super) struct ProviderFacts {
    /// System identifier and database oid, joined by a colon.
    pub(super) identity: String,
    pub(super) database: String,
    pub(super) encoding: String,
    pub(super) role: String,
    /// Whether the role may read queues; false also where there are none.
    pub(super) may_read: bool,
    /// Of the extension.
    version: Option<String>,
    /// It has schema pgq_node, ours or PgQ's.
    pgq: bool,
    pub(super) standby: bool,
    read_only: bool,
}

/// Who and what the subscriber is.
pub(super) struct SubscriberFacts {
    pub(super) identity: String,
    pub(super) database: String,
    pub(super) role: String,
    /// `server_version_num`.
    pub(super) server: i32,
    /// Whether replay has been there before.
    pub(super) installed: bool,
    /// Whether there is a schema of the name that replay uses.
    pub(super) schema_exists: bool,
    /// Whether the role may read and write what replay keeps there.
    pub(super) may_state: bool,
    pub(super) may_create: bool,
    standby: bool,
    read_only: bool,
}

impl ProviderFacts {
    /// It has PgQ's extension instead of ours.
    pub(super) fn of_pgq(&self) -> bool {
        self.version.is_none() && self.pgq
    }
}

pub(super) async fn provider_facts(client: &Client) -> Result<ProviderFacts> {
    let row = client
        .query_one(include_str!("sql/provider_facts.sql"), &[])
        .await
        .doing(|| "identify the provider".to_owned())?;
    Ok(ProviderFacts {
        identity: row.get("identity"),
        database: row.get("database"),
        encoding: row.get("encoding"),
        role: row.get("role"),
        may_read: row.get("may_read"),
        version: row.get("version"),
        pgq: row.get("pgq"),
        standby: row.get("standby"),
        read_only: row.get("read_only"),
    })
}

pub(super) async fn subscriber_facts(client: &Client, end: End) -> Result<SubscriberFacts> {
    let row = client
        .query_one(include_str!("sql/subscriber_facts.sql"), &[])
        .await
        .doing(|| format!("identify the {end}"))?;
    Ok(SubscriberFacts {
        identity: row.get("identity"),
        database: row.get("database"),
        role: row.get("role"),
        server: row.get("server"),
        installed: row.get("installed"),
        schema_exists: row.get("schema_exists"),
        may_state: row.get("may_state"),
        may_create: row.get("may_create"),
        standby: row.get("standby"),
        read_only: row.get("read_only"),
    })
}

/// Whether the two are what a provider and a subscriber have to be. `leaf`: a leaf is fed, which PgQ's own nodes can do; `donated`: they
/// are to be one database.
pub(super) fn check_ends(facts: &Facts, leaf: bool, donated: bool, findings: &mut Findings) {
    let Facts {
        provider, subscriber, ..
    } = facts;
    let database = &provider.database;
    let object = format!("database {}", quoted(database));
    if provider.standby {
        findings.add(
            Kind::Standby,
            (End::Provider, &object),
            format!("the provider (database \"{database}\") is a standby, which cannot be replayed from"),
            "name its primary in --provider",
        );
    }
    let (major, minor) = OLDEST_EXTENSION;
    match &provider.version {
        None if provider.of_pgq() && leaf => {}
        None => findings.add(
            Kind::ExtensionMissing,
            (End::Provider, &object),
            format!("database \"{database}\" of the provider does not have the extension pgcascade"),
            Remedy::run(End::Provider, "create extension pgcascade").words("as a superuser"),
        ),
        Some(version) if version_of(version) < OLDEST_EXTENSION => findings.add(
            Kind::ExtensionOld,
            (End::Provider, &object),
            format!("database \"{database}\" of the provider has pgcascade {version}, and replay needs {major}.{minor} or later"),
            Remedy::run(End::Provider, "alter extension pgcascade update").words("install the new version there, and as a superuser"),
        ),
        Some(_) => {}
    }
    if subscriber.standby {
        let database = &subscriber.database;
        findings.add(
            Kind::Standby,
            (End::Subscriber, &format!("database {}", quoted(database))),
            format!("the subscriber (database \"{database}\") is a standby, which cannot be written to"),
            "name its primary in --subscriber",
        );
    }
    let ends = [
        (End::Provider, provider.read_only, &provider.role, database),
        (
            End::Subscriber,
            subscriber.read_only,
            &subscriber.role,
            &subscriber.database,
        ),
    ];
    for (end, _, role, database) in ends.into_iter().filter(|(_, read_only, ..)| *read_only) {
        let database = format!("database {}", quoted(database));
        findings.add(
            Kind::ReadOnly,
            (end, &database),
            format!("default_transaction_read_only is on at the {end}, where replay has to write"),
            Remedy::run(
                end,
                format!(
                    "alter role {} in {database} set default_transaction_read_only = off",
                    quoted(role)
                ),
            ),
        );
    }
    if facts.same_database != donated {
        findings.add(
            Kind::SameDatabase,
            (End::Subscriber, &object),
            "the provider and the subscriber are the same database",
            "correct --provider or --subscriber",
        );
    }
}

/// The first two numbers; 0 for what is none.
fn version_of(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Sets up a session at each end.
pub(super) async fn set_up_sessions(provider: &Client, subscriber: &Client) -> Result<()> {
    set_up(provider, End::Provider).await?;
    set_up(subscriber, End::Subscriber).await
}

/// Settings that only replay needs, beyond those that every session of ours has.
pub(super) async fn set_up(client: &Client, end: End) -> Result<()> {
    // What the provider was told must not be forgotten by its crash, nor the position by the subscriber's: the next
    // step on the other end relies on it. Stricter settings than `on` stay.
    const DURABLE: &str = "select pg_catalog.set_config('synchronous_commit', 'on', false)
                            where pg_catalog.current_setting('synchronous_commit') = 'off'";
    // A statement cannot be given up from here without losing its connection, so a lock that somebody keeps would keep
    // a shutdown waiting. A limit of the role's or the database's own stays. Running into it is a transient error.
    const NO_ENDLESS_WAIT: &str = "select pg_catalog.set_config('lock_timeout', '15s', false)
                                    where pg_catalog.current_setting('lock_timeout') = '0'";
    // A replay that dies, or whose machine does, must not hold its locks for hours. No tcp_user_timeout: it would also end the
    // provider's session while a chunk takes long on the subscriber and nothing is read meanwhile.
    const NOTICE_DEATH: &str =
        "set tcp_keepalives_idle = 20; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3;
                                set client_connection_check_interval = '2s'";
    let what = || format!("set up the session on the {end}");
    client.batch_execute(DURABLE).await.doing(what)?;
    client.batch_execute(NO_ENDLESS_WAIT).await.doing(what)?;
    if let Err(error) = client.batch_execute(NOTICE_DEATH).await.doing(what) {
        // Not every platform can.
        tracing::debug!(%end, "{error}");
    }
    Ok(())
}

/// Whether what streams is in an encoding that the subscriber has to convert from.
pub(super) fn converts_from(encoding: &str) -> bool {
    !matches!(encoding, "UTF8" | "SQL_ASCII")
}

/// Lets the subscriber convert what streams. Values are escaped in the event byte by byte in the provider's encoding,
/// so that is what arrives, whatever the sessions' encodings. From SQL_ASCII nobody can convert: what is not UTF-8 the
/// subscriber refuses.
pub(super) async fn match_encoding(subscriber: &Client, encoding: &str) -> Result<()> {
    if !converts_from(encoding) {
        return Ok(());
    }
    subscriber
        .batch_execute(&format!("set client_encoding = {}", literal(encoding)))
        .await
        .doing(|| format!("let the subscriber convert from the provider's encoding {encoding}"))
}

/// Has every change of many rows look them up by their key's index, one after the other. The planner knows neither how many
/// there will be nor how the table will grow while its plan is kept; a plan that reads the whole table for each batch
/// would be slow for good. That the plan begins with the changes, and not with the table, is for their statement to see to
/// (statement.rs). Not where triggers of the user fire in this session, whose queries it would spoil.
pub(super) async fn look_up_by_index(subscriber: &Client) -> Result<()> {
    subscriber
        .batch_execute(
            "set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off;
             set enable_material = off; set plan_cache_mode = force_generic_plan; set jit = off",
        )
        .await
        .doing(|| "set up the session on the subscriber".to_owned())
}

/// Takes the consumer's lock, which the session holds until it ends.
pub(crate) async fn lock(client: &Client, end: End, who: &Who, patience: Duration) -> Result<()> {
    let what = || format!("lock the consumer on the {end}");
    let looks = Looks::new(patience, Duration::from_millis(100));
    if lock_soon(client, who.lock_key(), looks).await.doing(what)? {
        return Ok(());
    }
    let holder = holder(client, who.lock_key())
        .await
        .ok()
        .flatten()
        .map_or_else(String::new, |(pid, place)| {
            format!(" (from {place}, server process {pid} of the {end})")
        });
    Err(Error::failure(format!(
        "consumer \"{}\" of queue \"{}\" is in use already{holder}",
        who.consumer, who.queue
    ))
    .hint("Stop that one first, or choose another --consumer name."))
}

/// Whether the session has got a lock of this kind, and holds it until it ends. Polled, as a wait for the lock could not be given up
/// without cancelling a statement.
pub(super) async fn lock_soon(client: &Client, key: i64, mut looks: Looks) -> Result<bool, tokio_postgres::Error> {
    let sql = "select pg_catalog.pg_try_advisory_lock($1)";
    while !client.query_one(sql, &[&key]).await?.get::<_, bool>(0) {
        if !looks.again().await {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What [`lock`] does, and longer where the session that holds it is at one statement all the time: so is one whose replay was killed, until that lets it
/// notice. And where it has ended that statement, or itself, since the lock was refused.
async fn lock_of_killed(client: &Client, end: End, who: &Who, patience: Duration) -> Result<()> {
    let deadline = tokio::time::Instant::now() + LOCK_PATIENCE_AGAIN;
    let mut before = None;
    loop {
        let Err(error) = lock(client, end, who, patience).await else {
            return Ok(());
        };
        failpoint("lock_refused");
        let Ok(now) = what_holds(client, who.lock_key()).await else {
            return Err(error);
        };
        let is_late = tokio::time::Instant::now() >= deadline;
        before = match (before, now) {
            (_, Holds::Nobody) => None,
            _ if is_late => return Err(error),
            (None, Holds::At(now)) => Some(now),
            (Some(before), Holds::At(now)) if before == now => Some(now),
            (Some(_), Holds::Idle) => None,
            _ => return Err(error),
        };
    }
}

/// The same for who may be told to stop meanwhile: then it fails, and the session is not to be used again.
pub(super) async fn lock_unless_stopped(
    client: &Client,
    end: End,
    who: &Who,
    patience: Duration,
    shutdown: &Shutdown,
) -> Result<()> {
    tokio::select! {
        outcome = lock_of_killed(client, end, who, patience) => outcome,
        () = shutdown.wait() => Err(Error::failure(format!("stopped before the consumer on the {end} was locked"))),
    }
}

/// Who holds a lock of this kind, if anybody does: the server's process, and where its client is. Takes no lock, so it keeps nobody out.
pub(crate) async fn holder(client: &Client, key: i64) -> Result<Option<(i32, String)>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            "select l.pid, coalesce(a.client_addr::text, 'a local connection')
               from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a using (pid)
              where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
                and ((l.classid::int8 << 32) | l.objid::int8) = $1",
            &[&key],
        )
        .await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// What the session does that holds a lock of this kind.
enum Holds {
    /// There is none.
    Nobody,
    /// Nothing, or it may not be seen.
    Idle,
    /// Which process it is, and since when it is at its statement.
    At((i32, String)),
}

async fn what_holds(client: &Client, key: i64) -> Result<Holds, tokio_postgres::Error> {
    let Some((pid, _)) = holder(client, key).await? else {
        return Ok(Holds::Nobody);
    };
    let row = client
        .query_opt(
            "select query_start::text from pg_catalog.pg_stat_activity where pid = $1 and state = 'active'",
            &[&pid],
        )
        .await?;
    Ok(row.map_or(Holds::Idle, |row| Holds::At((pid, row.get(0)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version_of("0.1.0"), (0, 1));
        assert_eq!(version_of("12.3"), (12, 3));
        assert!(version_of("0.0.9") < OLDEST_EXTENSION);
        assert!(version_of("") < OLDEST_EXTENSION);
    }
}
