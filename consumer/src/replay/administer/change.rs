//! `consumer table remove` and `consumer table resync`.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::super::copy::indexes;
use super::super::pattern::Pattern;
use super::super::sources;
use super::super::table::{self, Name};
use super::super::table_state::{self, Entry};
use super::super::triggers;
use super::{Set, completed, open, patterns};
use crate::cli::table::{RemoveArgs, ResyncArgs};
use crate::config::conninfo;
use crate::connect::{End, connect};
use crate::error::{Doing, Error, Result};

/// Takes tables out: first out of the set, so that replay does not miss the triggers.
pub(super) async fn remove(args: RemoveArgs) -> Result<()> {
    let (settings, node) = completed(args.whose.settings()?).await?;
    // The nodes of a cascade share them, and a branch's serve it when it is the root.
    let provider = if args.keep_triggers || node.is_some() {
        None
    } else {
        let target = conninfo("provider", settings.provider.as_deref())?;
        // Before anything is changed: without it the triggers would stay.
        Some(connect(&target, End::Provider, "consumer table").await?)
    };
    let set = open(&settings, true).await?;
    let names: Vec<Name> = set
        .chosen(&patterns(&args.patterns)?)?
        .into_iter()
        .map(|entry| entry.provider.clone())
        .collect();
    let (s, who) = (set.client(), &set.who);
    for name in &names {
        indexes::make_left_over(s, who, name).await?;
    }
    table_state::begin_change(s, who).await?;
    for name in &names {
        indexes::check_none_left(s, who, name).await?;
        table_state::remove(s, who, name).await?;
    }
    s.batch_execute("commit")
        .await
        .doing(|| "take tables out of the set on the subscriber".to_owned())?;
    for name in &names {
        tracing::info!(table = %name, "table removed; its rows stay on the subscriber");
    }
    let Some(provider) = provider else { return Ok(()) };
    let p = &provider.client;
    let others = other_users(&set, p, &names).await?;
    let there = table::inspect(p, End::Provider, &names).await?;
    let mut failures = Vec::new();
    for name in &names {
        let Some(table) = there.get(name) else { continue };
        if let Some(other) = others.get(name) {
            tracing::info!(table = %name, "its capture triggers stay: {other}");
            continue;
        }
        if let Err(error) = triggers::drop(p, who, table).await {
            failures.push(error);
        }
    }
    match failures.into_iter().next() {
        None => Ok(()),
        Some(error) => Err(error.hint(
            "The table is not replayed any more, but its changes still go into the queue: let the table's owner drop its triggers.",
        )),
    }
}

/// The tables whose triggers another consumer of the queue needs or may need, and why. What a consumer of another subscriber
/// replays cannot be seen from here.
async fn other_users(set: &Set, provider: &Client, names: &[Name]) -> Result<HashMap<Name, String>> {
    let who = &set.who;
    let what = || format!("look for other consumers of queue \"{}\"", who.queue);
    let rows = provider
        .query(
            "select c.co_name from pgq.queue q join pgq.subscription s on s.sub_queue = q.queue_id
               join pgq.consumer c on c.co_id = s.sub_consumer
              where q.queue_name = $1 and c.co_name <> $2 order by 1",
            &[&who.queue, &who.consumer],
        )
        .await
        .doing(what)?;
    let mut users = HashMap::new();
    for row in rows {
        let other: String = row.get(0);
        let known = set
            .client()
            .query(
                "select t.provider_schema, t.provider_table
                   from pgcascade_replay.position mine
                   join pgcascade_replay.position theirs using (queue, provider_identity)
                   left join pgcascade_replay.table_state t on t.consumer = theirs.consumer and t.queue = theirs.queue
                  where mine.consumer = $1 and mine.queue = $2 and theirs.consumer = $3",
                &[&who.consumer, &who.queue, &other],
            )
            .await
            .doing(what)?;
        for name in names {
            let replays = known.iter().any(|row| {
                row.get::<_, Option<&str>>(0) == Some(&name.schema)
                    && row.get::<_, Option<&str>>(1) == Some(&name.table)
            });
            if known.is_empty() {
                users.insert(
                    name.clone(),
                    format!(
                        "consumer \"{other}\" of the queue may need them, which cannot be seen from this subscriber"
                    ),
                );
            } else if replays {
                users.insert(
                    name.clone(),
                    format!("consumer \"{other}\" of the queue replays it, too"),
                );
            }
        }
    }
    Ok(users)
}

/// Copies tables again.
pub(super) async fn resync(args: ResyncArgs) -> Result<()> {
    let (settings, _) = completed(args.whose.settings()?).await?;
    let set = open(&settings, true).await?;
    let patterns = patterns(&args.patterns)?;
    let is_in_copy = |entry: &&Entry| entry.to_copy() && entry.error.is_none();
    let (in_copy, chosen): (Vec<&Entry>, Vec<&Entry>) = set.chosen(&patterns)?.into_iter().partition(is_in_copy);
    let names = |entry: &Entry| {
        let by_name = |pattern: &Pattern| pattern.is_literal() && pattern.matches(&entry.provider);
        patterns.iter().any(by_name)
    };
    if let Some(entry) = in_copy.iter().find(|entry| names(entry)) {
        return Err(
            Error::failure(format!("table {} is being copied already", entry.provider))
                .hint("consumer status shows how far; replay has to run for it."),
        );
    }
    for entry in in_copy {
        tracing::info!(table = %entry.provider, "left out: it is being copied already");
    }
    if chosen.is_empty() {
        return Ok(());
    }
    let (s, who) = (set.client(), &set.who);
    for entry in &chosen {
        sources::keep_others(s, who, &entry.subscriber).await?;
    }
    let revision = table_state::begin_change(s, who).await?;
    for entry in &chosen {
        table_state::start_over(s, who, &entry.provider, revision).await?;
    }
    s.batch_execute("commit")
        .await
        .doing(|| "have tables copied again".to_owned())?;
    for entry in &chosen {
        tracing::info!(table = %entry.provider, "table to be copied again");
    }
    Ok(())
}
