//! A branch that is to become the root fetches from a leaf what no branch has (docs/takeover.md, journal.rs).
//!
//! A leaf has no queue to read from, and perhaps not all tables. So its journal is copied first, in one transaction, into
//! `pgcascade_replay.donated_tick` and `donated_event` on the branch: divided into the ticks that the root made, and as text again
//! (donated/fetch.rs). From there replay reads it as from a provider ([`Queries`]), tick by tick in one transaction each, and looks at
//! the tables of the branch's own database in place of the provider's. Killed anywhere, it is fetched again from the tick that the branch
//! has come to.
//!
//! Which ticks these are the takeover decides (`node_promise.fetch_upto`); who may have any at all, sql/takeover_node.sql.

mod fetch;

use tokio_postgres::Client;

use crate::cascade::{self, Node, Role};
use crate::connect::{End, Session, connect, exists};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
pub(super) use fetch::fetch;

/// What stands in for the provider's functions for batches.
pub(super) struct Queries {
    pub(super) next: String,
    pub(super) open: String,
    pub(super) finish: String,
}

impl Queries {
    /// `of_pgq`: it has no confirm gate, and packs nothing.
    pub(super) fn of_provider(tick_by_tick: bool, of_pgq: bool) -> Self {
        Self {
            next: if tick_by_tick {
                include_str!("sql/next_tick.sql").to_owned()
            } else if of_pgq {
                include_str!("sql/next_batch.sql").replace("pgcascade.released_tick($1, $2)", "null::int8")
            } else {
                include_str!("sql/next_batch.sql").to_owned()
            },
            open: if of_pgq {
                let rows = "pgcascade.tick_row_sql(q.queue_id, s.sub_last_tick, s.sub_next_tick, s.sub_id)";
                include_str!("sql/open_batch.sql").replace(rows, "pgq.batch_event_sql(s.sub_batch)")
            } else {
                include_str!("sql/open_batch.sql").to_owned()
            },
            finish: "select pgq.finish_batch($1)".to_owned(),
        }
    }

    /// A batch's number is its tick.
    pub(super) fn donated() -> Self {
        Self {
            next: include_str!("sql/next_donated.sql").to_owned(),
            open: include_str!("sql/open_donated.sql").to_owned(),
            finish: "select 1::int4 where $1::int8 is not null".to_owned(),
        }
    }
}

/// What a takeover has the branch wait for, or fetch.
pub(super) enum Asked {
    /// Nothing: it takes ticks as always.
    Nothing,
    /// It takes no ticks.
    Wait,
    /// It takes ticks up to this one.
    Fetch(i64),
}

/// What the branch has promised.
pub(super) async fn asked(client: &Client, node: &Node) -> Result<Asked> {
    let row = client
        .query_opt(
            "select p.fetch_upto from pgcascade.node_state s
               join pgcascade.node_promise p on p.queue_name = s.queue_name and p.op_id = s.promised_op
              where s.queue_name = $1 and s.frozen",
            &[&node.queue],
        )
        .await
        .doing(|| format!("read what {} has promised", node.title()))?;
    Ok(match row.map(|row| row.get::<_, Option<i64>>(0)) {
        None => Asked::Nothing,
        Some(None) => Asked::Wait,
        Some(Some(upto)) => Asked::Fetch(upto),
    })
}

/// The node's provider, if that is a leaf.
pub(super) async fn giver(node: &Node) -> Result<Option<(Session, Node)>> {
    let Some(location) = &node.provider_location else {
        return Ok(None);
    };
    let session = connect(&ConnInfo::parse(location)?, End::Node, "pgcascade replay").await?;
    let leaf = cascade::load(&session.client, &node.queue).await?;
    let leaf = leaf.filter(|leaf| leaf.role == Role::Leaf && leaf.name == node.provider);
    Ok(leaf.map(|leaf| (session, leaf)))
}

/// What of the way from the branch's tick to the leaf's is not in the leaf's journal; None: all is.
pub(crate) async fn lacks(client: &Client, leaf: &Node, branch: &Node) -> Result<Option<String>> {
    let what = || format!("look at the journal of {}", leaf.title());
    let row = if exists(client, "pgcascade_replay.journal").await? {
        client
            .query_opt(
                include_str!("sql/journal_reach.sql"),
                &[&leaf.queue, &branch.tick, &branch.tick_time],
            )
            .await
            .doing(what)?
    } else {
        None
    };
    let Some(row) = row else {
        return Ok(Some(format!(
            "leaf \"{}\" keeps no journal: its replay runs with --journal-bytes 0, or has taken no tick since the leaf was made",
            leaf.name
        )));
    };
    let (first, last, same): (i64, i64, Option<bool>) = (row.get(0), row.get(1), row.get(2));
    let reach = format!(
        "the journal of leaf \"{}\" reaches from tick {first} to {last}",
        leaf.name
    );
    let at = format!("\"{}\" is at tick {}", branch.name, branch.tick);
    Ok(match same {
        _ if last != leaf.tick => Some(format!("{reach}, and the leaf is at tick {}", leaf.tick)),
        Some(true) => None,
        Some(false) => Some(format!(
            "{reach}, and has another tick {} than \"{}\"",
            branch.tick, branch.name
        )),
        None => Some(format!("{reach}, and {at}")),
    })
}

/// Refuses a branch that has to copy tables first. Their rows were to come from the old root; and what a copy holds is known by the
/// transaction ids of whom it was made from, who need not be the leaf's provider. Called before every fetch: a table may have been
/// told to start over since the takeover looked at it.
pub(crate) async fn check_tables(branch: &Client, node: &Node) -> Result<()> {
    let rows = branch
        .query(
            "select pg_catalog.format('%s.%s (%s)', provider_schema, provider_table, state)
               from pgcascade_replay.table_state
              where consumer = $1 and queue = $2 and state in ('in-copy', 'catching-up') order by 1",
            &[&node.worker, &node.queue],
        )
        .await
        .doing(|| format!("read the states of the tables of {}", node.title()))?;
    if rows.is_empty() {
        return Ok(());
    }
    let tables: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Err(Error::failure(format!(
        "{} cannot take what leaf \"{}\" gives: tables of it have to be copied first, and the root that had their rows is gone: {}",
        node.title(),
        node.provider,
        tables.join(", ")
    ))
    .hint(
        "Give the takeover up with --abort, and take them out here: consumer table remove. Then make a branch the root that has all of \
         them, and add them again: consumer table add --replace.",
    ))
}

/// How many events a leaf has given.
pub(crate) async fn events(client: &Client, queue: &str) -> Result<i64> {
    let row = client
        .query_one(
            "select count(*) from pgcascade_replay.donated_event where queue = $1",
            &[&queue],
        )
        .await
        .doing(|| "count the events that a leaf has given".to_owned())?;
    Ok(row.get(0))
}

/// Whether something was fetched, and has not been removed yet.
pub(crate) async fn any(branch: &Client, queue: &str) -> Result<bool> {
    // A promoted standby that fetches nothing has no such tables.
    if !exists(branch, "pgcascade_replay.donated_tick").await? {
        return Ok(false);
    }
    let query = "select exists (select from pgcascade_replay.donated_tick where queue = $1)";
    let row = branch.query_one(query, &[&queue]).await;
    Ok(row
        .doing(|| format!("look at what was fetched for queue \"{queue}\""))?
        .get(0))
}

/// Nothing is to be fetched any more.
pub(crate) async fn clear(branch: &Client, queue: &str) -> Result<()> {
    if !exists(branch, "pgcascade_replay.donated_tick").await? {
        return Ok(());
    }
    branch
        .execute("delete from pgcascade_replay.donated_tick where queue = $1", &[&queue])
        .await
        .doing(|| format!("remove what was fetched for queue \"{queue}\""))?;
    Ok(())
}

/// The last tick that is to be applied, for `--until-caught-up`.
pub(super) async fn last(branch: &Client, queue: &str) -> Result<i64> {
    let row = branch
        .query_one(
            "select coalesce(max(tick), 0) from pgcascade_replay.donated_tick where queue = $1",
            &[&queue],
        )
        .await
        .doing(|| format!("look at what was fetched for queue \"{queue}\""))?;
    Ok(row.get(0))
}
