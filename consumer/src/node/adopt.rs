//! `consumer node adopt`: a database that is a copy of a node becomes a node of its own, without a copy of its tables.
//!
//! The copy knows its tables and the tick that they are at, which is all that a node is. What it must not keep is the name
//! under which the original reads. So, as in create.rs, from the outside in: the root and the provider learn the new name, the
//! provider keeps what comes after the copy's tick, and then one transaction makes the database that node. Until then replay
//! refuses it (cascade/home.rs).

use tokio_postgres::Client;

use super::create::{self, Candidate};
use super::tree::{self, Known, Reached};
use crate::cascade::{self, Node, Role, ask, home};
use crate::cli::AdoptArgs;
use crate::config::conninfo;
use crate::connect::{End, connect};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::{Who, duty, goal, state};

/// What the copy is to be.
struct Wanted {
    name: String,
    worker: String,
    location: String,
    admin_location: Option<String>,
    identity: String,
}

/// `adopt`
pub(super) async fn run(args: AdoptArgs) -> Result<()> {
    let candidate = create::look(args.node).await?;
    let Some(node) = cascade::load(&candidate.session.client, &candidate.queue).await? else {
        return Err(Error::failure(format!(
            "the database is no node of queue \"{}\", nor a copy of one",
            candidate.queue
        ))
        .hint("consumer node create-branch or create-leaf makes it one, with a copy of the tables."));
    };
    let Candidate {
        session,
        name,
        location,
        admin_location,
        worker,
        encoding,
        identity,
        ..
    } = candidate;
    let here = Reached { session, node };
    if here.node.name == name && here.node.role == Role::Root {
        return Err(
            Error::usage(format!("the copy of {} cannot have that name, too", here.node.title()))
                .hint("Choose another name; if there is no other root any more, see docs/takeover.md."),
        );
    }
    let wanted = Wanted {
        name,
        worker,
        location,
        admin_location,
        identity,
    };
    mend(&here).await?;
    state::install(&here.client(), End::Node).await?;
    let provider = provider(&here, args.provider.as_deref()).await?;
    check_provider(&here, &provider, &encoding).await?;
    let root = tree::root(&provider).await?;
    let root = root.as_ref().unwrap_or(&provider);
    if check_name(&here, root, &wanted).await? && is_done(&here, &wanted).await? {
        tracing::info!(
            node = wanted.name,
            queue = here.node.queue,
            "this {} exists",
            here.node.role.word()
        );
        return Ok(());
    }
    check_copy(&here, root, &wanted).await?;
    for node in [root, &provider] {
        tree::check_no_takeover(node).await?;
    }
    let copying = cascade::in_copy(&here.client(), &here.node).await?;
    if !copying.is_empty() {
        return Err(Error::failure(format!(
            "tables of {} were being copied when the database was: {}",
            here.node.title(),
            copying.join(", ")
        ))
        .hint("Take another copy of it when they are ok; consumer table list shows their states."));
    }
    let tick = common_tick(&here, &provider).await?;
    // It has whatever was on the root when the copy was made.
    let complete = match here.node.role {
        Role::Root => Some(goal::goal_tick(&root.client(), &here.node.queue).await?),
        Role::Branch | Role::Leaf => None,
    };

    let queue = &here.node.queue;
    let title = format!("node \"{}\" of queue \"{queue}\"", wanted.name);
    let above = (root.node.name != provider.node.name).then_some(&provider);
    for node in [Some(root), above].into_iter().flatten() {
        let call = "pgq_node.register_location($1, $2, $3, false)";
        ask(&node.client(), &title, call, &[queue, &wanted.name, &wanted.location]).await?;
        cascade::tell_admin_location(&node.client(), queue, &wanted.name, wanted.admin_location.as_deref()).await?;
        failpoint("node_known");
    }
    let call = "pgq_node.register_subscriber($1, $2, $3, $4)";
    ask(
        &provider.client(),
        &title,
        call,
        &[queue, &wanted.name, &wanted.worker, &tick],
    )
    .await?;
    failpoint("node_subscribed");
    become_node(&here, &provider, &wanted, (tick, complete)).await?;
    failpoint("node_adopted");
    tracing::info!(
        node = wanted.name,
        queue,
        original = here.node.name,
        provider = provider.node.name,
        tick,
        "copy adopted"
    );
    tell_of_consumers(&here).await
}

/// Whether the database has been made that node. The original may have had the name, too, and its home was elsewhere, or was
/// dropped.
async fn is_done(here: &Reached, wanted: &Wanted) -> Result<bool> {
    if here.node.name != wanted.name {
        return Ok(false);
    }
    let row = here
        .client()
        .query_opt(
            "select home from pgcascade_replay.position where consumer = $1 and queue = $2",
            &[&here.node.worker, &here.node.queue],
        )
        .await
        .doing(|| format!("read which database {} is", here.node.title()))?;
    Ok(row.and_then(|row| row.get(0)) == Some(wanted.identity.clone()))
}

/// A queue that was loaded from a dump gets transaction ids of this server.
async fn mend(here: &Reached) -> Result<()> {
    if here.node.role == Role::Leaf {
        return Ok(());
    }
    let what = || format!("look at the queue of the copy of {}", here.node.title());
    let marked = "select exists (select from pgcascade.restored_queue r join pgq.queue q using (queue_id) where q.queue_name = $1)";
    if here
        .client()
        .query_one(marked, &[&here.node.queue])
        .await
        .doing(what)?
        .get(0)
    {
        here.client()
            .execute("select pgcascade.mend_restored()", &[])
            .await
            .doing(what)?;
    }
    Ok(())
}

/// Whom it is to read from: the node that was named, or who the original read from, or the original, if that is the root.
async fn provider(here: &Reached, named: Option<&str>) -> Result<Reached> {
    if let Some(named) = named {
        return tree::reach(&conninfo("provider", Some(named))?, &here.node.queue).await;
    }
    let known = tree::find(here, &here.node.provider).await?;
    tree::reach_known(&known, &here.node.queue)
        .await
        .map_err(|error| error.hint("--provider names the node that the copy is to read from."))
}

async fn check_provider(here: &Reached, provider: &Reached, encoding: &str) -> Result<()> {
    if provider.node.role == Role::Leaf {
        return Err(Error::usage(format!(
            "the provider, {}, is a leaf, which has no queue to read from",
            provider.node.title()
        )));
    }
    if home::same_database(&here.client(), &provider.client()).await? {
        return Err(Error::usage(format!(
            "--db leads to {} itself, not to a copy of it",
            provider.node.title()
        )));
    }
    let there: String = create::facts(&provider.client()).await?.get(1);
    if here.node.role != Role::Leaf && there != encoding {
        return Err(Error::failure(format!(
            "the copy has the encoding {encoding}, and its provider has {there}"
        ))
        .hint("A branch keeps the events as they are, so its database must have the same encoding."));
    }
    Ok(())
}

/// Refuses a name that another node has. Returns whether the root knows it as this database's.
async fn check_name(here: &Reached, root: &Reached, wanted: &Wanted) -> Result<bool> {
    let known = tree::known(root).await?;
    match known.iter().find(|known| known.name == wanted.name) {
        Some(known) if known.location != wanted.location => Err(Error::failure(format!(
            "queue \"{}\" has a node \"{}\" already, at {}",
            here.node.queue, wanted.name, known.location
        ))
        .hint("Choose another name; or, if that node is gone: consumer node drop")),
        known => Ok(known.is_some()),
    }
}

/// Refuses the node itself. One that cannot be asked and was not given up might be this one.
async fn check_copy(here: &Reached, root: &Reached, wanted: &Wanted) -> Result<()> {
    let known = tree::known(root).await?;
    // One of the wanted name was made known by this command.
    let is_original = |known: &&Known| known.name == here.node.name && known.name != wanted.name && !known.dead;
    let Some(original) = known.iter().find(is_original) else {
        return Ok(());
    };
    let place = original.place()?;
    let there = connect(&place, End::Node, "consumer node").await.map_err(|error| {
        error
            .within(format_args!(
                "nobody can tell whether the database is a copy of {}",
                here.node.title()
            ))
            .hint(format!(
                "Start that node; or, if it is gone for good: consumer node drop {} --dead",
                here.node.name
            ))
    })?;
    if home::same_database(&here.client(), &there.client).await? {
        return Err(Error::usage(format!(
            "the database is {} itself, not a copy of it",
            here.node.title()
        ))
        .hint("To give a node another name: consumer node rename"));
    }
    Ok(())
}

/// The tick where the copy goes on: its position, which has to be the same tick at the provider.
async fn common_tick(here: &Reached, provider: &Reached) -> Result<i64> {
    let node = &here.node;
    if let Some(tick) = last_of_root(here, provider).await? {
        return Ok(tick);
    }
    let tick = node.tick;
    let row = provider
        .client()
        .query_opt(
            "select t.tick_time::text, (select max(x.tick_id) from pgq.tick x where x.tick_queue = q.queue_id)
               from pgq.queue q left join pgq.tick t on t.tick_queue = q.queue_id and t.tick_id = $2
              where q.queue_name = $1",
            &[&node.queue, &tick],
        )
        .await
        .doing(|| format!("look for tick {tick} of {}", provider.node.title()))?;
    let (time, top): (Option<String>, Option<i64>) = row.map_or((None, None), |row| (row.get(0), row.get(1)));
    match (time, &node.tick_time) {
        (None, _) if top.is_none_or(|top| top < tick) => Err(Error::failure(format!(
            "the copy of {} is at tick {tick}, and {} is at tick {} only",
            node.title(),
            provider.node.title(),
            top.unwrap_or(0)
        ))
        .hint("Nothing was changed. Wait until that node has the tick, or name another one in --provider.")),
        (None, _) => Err(Error::failure(format!(
            "the copy of {} is at tick {tick}, which {} does not have any more",
            node.title(),
            provider.node.title()
        ))
        .hint("Nothing was changed. Take a younger copy; or make the node with consumer node create-branch or create-leaf, which copies the tables.")),
        (Some(there), Some(known)) if there != *known => Err(Error::failure(format!(
            "the copy of {} and {} do not have the same ticks: tick {tick} was made at {known} here and at {there} there",
            node.title(),
            provider.node.title()
        ))
        .hint("Nothing was changed. One of them was restored to an older state, or is of another cascade.")),
        _ => Ok(tick),
    }
}

/// Of the copy of a root, which may have made ticks of its own before anybody saw that it is one: the last that it has not made.
async fn last_of_root(here: &Reached, provider: &Reached) -> Result<Option<i64>> {
    if here.node.role != Role::Root {
        return Ok(None);
    }
    let rows = here
        .client()
        .query(
            "select t.tick_id, t.tick_time::text, t.tick_event_seq from pgq.queue q join pgq.tick t on t.tick_queue = q.queue_id
              where q.queue_name = $1 order by t.tick_id",
            &[&here.node.queue],
        )
        .await
        .doing(|| format!("read the ticks of the copy of {}", here.node.title()))?;
    let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let times: Vec<String> = rows.iter().map(|row| row.get(1)).collect();
    let event_seqs: Vec<i64> = rows.iter().map(|row| row.get(2)).collect();
    let row = provider
        .client()
        .query_one(
            "select max(t.tick_id)
               from rows from (pg_catalog.unnest($2::int8[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::int8[]))
                    c (tick_id, tick_time, tick_event_seq)
               join pgq.queue q on q.queue_name = $1
               join pgq.tick t on t.tick_queue = q.queue_id and t.tick_id = c.tick_id
              where t.tick_time::text = c.tick_time and t.tick_event_seq = c.tick_event_seq",
            &[&here.node.queue, &ids, &times, &event_seqs],
        )
        .await
        .doing(|| format!("compare the ticks with those of {}", provider.node.title()))?;
    Ok(row.get(0))
}

/// The one transaction.
async fn become_node(
    here: &Reached,
    provider: &Reached,
    wanted: &Wanted,
    (tick, complete): (i64, Option<i64>),
) -> Result<()> {
    let (client, node) = (&here.client(), &here.node);
    let what = || format!("make the copy of {} node \"{}\"", node.title(), wanted.name);
    let locations = tree::known(provider).await?;
    let old = Who {
        consumer: node.worker.clone(),
        queue: node.queue.clone(),
    };
    let new = Who {
        consumer: wanted.worker.clone(),
        queue: node.queue.clone(),
    };
    client.batch_execute("begin").await.doing(what)?;
    old.lock_row(client).await?;
    state::rename(client, &old, &wanted.worker).await?;
    if node.role == Role::Leaf {
        client
            .execute(
                "update pgcascade_replay.node set node = $2, worker = $3, provider = $4, paused = false, uptodate = false, error = null,
                                                  promises = '{}'
                  where queue = $1",
                &[&node.queue, &wanted.name, &wanted.worker, &provider.node.name],
            )
            .await
            .doing(what)?;
        client
            .execute(
                "delete from pgcascade_replay.node_location where queue = $1",
                &[&node.queue],
            )
            .await
            .doing(what)?;
        for known in &locations {
            known.tell(client, node).await?;
        }
    } else {
        let history = cascade::newer_epochs(&provider.client(), &node.queue, 0).await?;
        let nodes: Vec<_> = locations
            .iter()
            .map(|known| {
                serde_json::json!({ "node_name": known.name, "node_location": known.location, "dead": known.dead })
            })
            .collect();
        let after: i64 = client
            .query_one(
                "select pgcascade.adopt_node($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8::text::jsonb)",
                &[
                    &node.queue,
                    &wanted.name,
                    &wanted.worker,
                    &provider.node.name,
                    &tick,
                    &complete,
                    &history,
                    &serde_json::Value::Array(nodes).to_string(),
                ],
            )
            .await
            .doing(what)?
            .get(0);
        for known in &locations {
            cascade::tell_admin_location(client, &node.queue, &known.name, known.admin_location.as_deref()).await?;
        }
        if after > 0 && node.role == Role::Branch {
            return Err(Error::failure(format!(
                "the copy of {} has {after} events after tick {tick}, its last one",
                node.title()
            ))
            .hint("Nothing was changed on it. Make it anew: consumer node drop, then create-branch."));
        }
    }
    new.set(client, tick).await?;
    client
        .execute(
            "update pgcascade_replay.position set home = $3 where consumer = $1 and queue = $2",
            &[&new.consumer, &new.queue, &wanted.identity],
        )
        .await
        .doing(what)?;
    if node.role == Role::Root {
        duty::captured_tables(client, &new).await?;
    }
    client.batch_execute("commit").await.doing(what)
}

/// Consumers of the original that belong to no node were copied with it.
async fn tell_of_consumers(here: &Reached) -> Result<()> {
    let node: &Node = &here.node;
    if node.role == Role::Leaf {
        return Ok(());
    }
    let names = plain_consumers(&here.client(), &node.queue).await?;
    if !names.is_empty() {
        tracing::warn!(
            "consumers of {} are registered here, too, and keep events until they read them or are unregistered: {}",
            node.title(),
            names.join(", ")
        );
    }
    Ok(())
}

async fn plain_consumers(client: &Client, queue: &str) -> Result<Vec<String>> {
    let rows = client
        .query(
            "select c.co_name from pgq.subscription s join pgq.queue q on q.queue_id = s.sub_queue
               join pgq.consumer c on c.co_id = s.sub_consumer
              where q.queue_name = $1 and c.co_name <> '.global_watermark' order by 1",
            &[&queue],
        )
        .await
        .doing(|| format!("look at the consumers of queue \"{queue}\""))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
