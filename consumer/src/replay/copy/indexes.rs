//! Indexes that are made when the rows are there: those that --create left for then, and those that a table had, which were put
//! aside before its copy began.
//!
//! Put aside are indexes that nobody but readers needs (sql/aside.sql) of a table that is large and empty. What makes them is
//! written down in the transaction that drops them, and forgotten in the one that makes them: so a table that was killed in between
//! gets them with the rest of its copy, and one that is taken out of the set before (`consumer table remove`).
//!
//! A table in chunks gets them after the last chunk, several at once where sessions are to spare; one that is copied whole in its
//! transaction.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use futures_util::future;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::super::duty;
use super::super::position::Who;
use super::super::sources;
use super::super::table::{self, Name, Table, literal};
use super::super::{create, table_state};
use super::{Job, Shared};
use crate::cascade::Node;
use crate::connect::{End, connect, exists};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;

/// What the definitions are written and read with.
const PATH: &str = "set local search_path = ''";

/// An index that is to be made.
#[derive(Debug)]
pub(super) struct Later {
    name: Name,
    /// None: it is there.
    sql: Option<String>,
}

/// Drops the indexes of a table that is going to be copied. Where that is not possible they stay.
pub(super) async fn put_aside(s: &Client, who: &Who, job: &Job, chunk_bytes: u64) -> Result<()> {
    let (table, name) = (&job.subscriber, &job.provider.name);
    let what = || format!("put the indexes of table {} on the subscriber aside", table.name);
    // Nobody is to wait behind a lock that is of no use.
    if job.provider.bytes < chunk_bytes || candidates(s, table).await?.is_empty() || sources::has_rows(s, table).await?
    {
        return Ok(());
    }
    s.batch_execute(&format!("begin; set local lock_timeout = '5s'; {PATH}"))
        .await
        .doing(what)?;
    let outcome = put(s, who, job).await;
    let end = if matches!(outcome, Ok(count) if count > 0) {
        "commit"
    } else {
        "rollback"
    };
    s.batch_execute(end).await.doing(what)?;
    match outcome {
        Ok(0) => {}
        Ok(count) => {
            tracing::info!(table = %name, indexes = count, "indexes put aside until the rows are there");
            failpoint("after_aside");
        }
        Err(error) if error.sqlstate() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            tracing::info!(table = %name, "somebody reads the table, so its indexes stay during the copy");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn candidates(subscriber: &Client, table: &Table) -> Result<Vec<(Name, String)>> {
    let rows = subscriber
        .query(include_str!("../sql/aside.sql"), &[&table.oid])
        .await
        .doing(|| format!("read the indexes of table {} on the subscriber", table.name))?;
    let index = |row: &tokio_postgres::Row| {
        let name = Name::new(row.get::<_, &str>("schema"), row.get::<_, &str>("name"));
        (name, row.get("definition"))
    };
    Ok(rows.iter().map(index).collect())
}

async fn put(s: &Client, who: &Who, job: &Job) -> Result<usize> {
    let (table, name) = (&job.subscriber, &job.provider.name);
    let what = || format!("put the indexes of table {} on the subscriber aside", table.name);
    s.batch_execute(&format!("lock table {} in access exclusive mode", table.own_rows()))
        .await
        .doing(what)?;
    // The copy at hand, and no other, will make them again.
    let same = s
        .query_opt(
            "select from pgcascade_replay.table_state
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and state = 'in-copy'
                and revision = $5 for update",
            &[&who.consumer, &who.queue, &name.schema, &name.table, &job.revision],
        )
        .await
        .doing(what)?;
    if same.is_none() {
        return Err(table_state::changed(name));
    }
    if sources::has_rows(s, table).await? {
        return Ok(0);
    }
    let indexes = candidates(s, table).await?;
    for (index, definition) in &indexes {
        s.execute(
            "insert into pgcascade_replay.index_aside values ($1, $2, $3, $4, $5, $6, $7)
                 on conflict (consumer, queue, provider_schema, provider_table, index_schema, index_name)
                 do update set definition = excluded.definition",
            &[
                &who.consumer,
                &who.queue,
                &name.schema,
                &name.table,
                &index.schema,
                &index.table,
                definition,
            ],
        )
        .await
        .doing(what)?;
        s.batch_execute(&format!("drop index {}", index.quoted()))
            .await
            .doing(what)?;
    }
    Ok(indexes.len())
}

/// Those that were put aside, and are not there.
async fn aside(s: &Client, who: &Who, name: &Name) -> Result<Vec<Later>> {
    let rows = s
        .query(
            "select index_schema, index_name, definition,
                    pg_catalog.to_regclass(pg_catalog.format('%I.%I', index_schema, index_name)) is not null
               from pgcascade_replay.index_aside
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 order by 1, 2",
            &[&who.consumer, &who.queue, &name.schema, &name.table],
        )
        .await
        .doing(|| format!("read the indexes of table {name} that were put aside"))?;
    let later = |row: &tokio_postgres::Row| Later {
        name: Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
        sql: (!row.get::<_, bool>(3)).then(|| row.get(2)),
    };
    Ok(rows.iter().map(later).collect())
}

/// All that are to be made for a table that has its rows.
pub(super) async fn later(s: &Client, who: &Who, job: &Job) -> Result<Vec<Later>> {
    let mut later = aside(s, who, &job.provider.name).await?;
    if job.made {
        let name = job.subscriber.name.clone();
        let fresh = table::inspect(s, End::Subscriber, std::slice::from_ref(&name)).await?;
        if let Some(there) = fresh.get(&name) {
            for create::Later { name, sql, .. } in create::later_indexes(&job.provider, there) {
                if !later.iter().any(|other| other.name == name) {
                    later.push(Later { name, sql: Some(sql) });
                }
            }
        }
    }
    Ok(later)
}

/// Makes one inside a transaction. One that cannot be made is missed by queries, not by replay.
pub(super) async fn make(s: &Client, who: &Who, table: &Name, index: &Later) -> Result<()> {
    if let Some(sql) = &index.sql {
        let made = s
            .batch_execute(&format!(
                "savepoint later_index; {PATH}; {sql}; release savepoint later_index"
            ))
            .await
            .doing(|| format!("make index {} on the subscriber", index.name));
        if let Err(error) = made {
            if error.is_transient() {
                return Err(error);
            }
            tracing::warn!("{error}; it was to be: {sql}");
            s.batch_execute("rollback to savepoint later_index")
                .await
                .doing(|| format!("go on without index {}", index.name))?;
        }
    }
    s.execute(
        "delete from pgcascade_replay.index_aside
          where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and index_schema = $5
            and index_name = $6",
        &[
            &who.consumer,
            &who.queue,
            &table.schema,
            &table.table,
            &index.name.schema,
            &index.name.table,
        ],
    )
    .await
    .doing(|| format!("forget that index {} was put aside", index.name))?;
    Ok(())
}

/// Makes all of a table in chunks, each in a transaction of its own.
pub(super) async fn make_all(shared: &Shared, s: &Client, job: &Job) -> Result<()> {
    let (who, table) = (&shared.who, &job.provider.name);
    let list: VecDeque<Later> = later(s, who, job).await?.into();
    let others = shared.queue().connected.saturating_sub(1);
    let sessions = list.len().min(shared.config.jobs.saturating_sub(others)).max(1);
    let list = Mutex::new(list);
    let work = async |s: &Client| {
        let next = || list.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        while let Some(index) = next() {
            if shared.stopping() || job.is_given_up() {
                return Err(Error::failure(format!("the indexes of table {table} are not all made")).transient());
            }
            let what = || format!("make index {} on the subscriber", index.name);
            s.batch_execute("begin").await.doing(what)?;
            make(s, who, table, &index).await?;
            s.batch_execute("commit").await.doing(what)?;
            failpoint("after_index");
        }
        Ok::<(), Error>(())
    };
    let more = (1..sessions).map(|_| async {
        let application_name = format!("pgcascade copy {} {}", who.queue, who.consumer);
        match connect(&shared.config.subscriber, End::Subscriber, &application_name).await {
            Ok(session) => work(&session.client).await,
            Err(error) => {
                tracing::warn!("{error}; indexes are made in fewer sessions");
                Ok(())
            }
        }
    });
    future::try_join(work(s), future::try_join_all(more)).await?;
    Ok(())
}

/// Makes those of a table whose copy is not going to, because it is not copied any more.
pub(in crate::replay) async fn make_left_over(s: &Client, who: &Who, table: &Name) -> Result<()> {
    for index in aside(s, who, table).await? {
        let what = || format!("make index {} on the subscriber", index.name);
        s.batch_execute("begin").await.doing(what)?;
        make(s, who, table, &index).await?;
        s.batch_execute("commit").await.doing(what)?;
        tracing::info!(index = %index.name, "index made that was put aside for a copy");
    }
    Ok(())
}

/// The same for all tables of a node that is dropped.
pub(crate) async fn make_left_over_indexes(s: &Client, node: &Node) -> Result<()> {
    let what = || format!("look for indexes that {} has put aside", node.title());
    if !exists(s, "pgcascade_replay.index_aside").await? {
        return Ok(());
    }
    let who = duty::who(node);
    let rows = s
        .query(
            "select distinct provider_schema, provider_table from pgcascade_replay.index_aside where consumer = $1 and queue = $2",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(what)?;
    for row in rows {
        make_left_over(s, &who, &Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).await?;
    }
    Ok(())
}

/// Whether any is left, for a change of the set of tables.
pub(in crate::replay) async fn check_none_left(s: &Client, who: &Who, table: &Name) -> Result<()> {
    if aside(s, who, table).await?.is_empty() {
        return Ok(());
    }
    Err(
        Error::failure(format!("replay has just put indexes of table {table} aside again"))
            .hint(format!("Try again: consumer table remove {}", literal(&table.quoted()))),
    )
}
