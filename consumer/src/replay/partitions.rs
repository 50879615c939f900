//! Partitioned tables, which are replayed as one table, whatever they are on the subscriber.
//!
//! PostgreSQL clones a row trigger of a partitioned table to its partitions, also to those that are made or attached later,
//! and the clone writes the partition's name into the event. So all that replay needs is which names stand for which
//! table. It looks at every start, and remembers what it saw on the subscriber, as the events of a partition may be read when
//! it is gone.
//!
//! With every batch, after its last tick, replay asks for a [`Fingerprint`] of what is below its tables. While that is the
//! one that it began with, every partition whose events are in the batch is known, or is part of the table no more; when it is
//! another, nothing of the batch is applied before replay has looked again. The table is then what its rows on the provider
//! are, whenever partitions come and go.
//!
//! What no trigger saw stops replay, with the reason: rows that were in a table when it was attached, and a TRUNCATE of a
//! new partition before replay had given it the trigger for that (which is not cloned). That is seen at the root: what a branch
//! of a cascade has came through its queue.
//!
//! A branch passes events on as they are, with the names of the root's partitions. So it has the same partitions by the same
//! names (branch.rs), and who reads from it finds there what the names mean.

mod branch;
mod check;
mod make;

use std::collections::{HashMap, HashSet};

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::chunk::Part;
use super::position::Who;
use super::table::{Name, Table};
use super::table_state::{Entry, State};
use super::triggers;
use crate::connect::End;
use crate::error::{Doing, Result};
use crate::failpoint::failpoint;
pub(super) use make::{make, statement};

/// `pg_class.relkind` of a foreign table.
const FOREIGN: &str = "f";

/// A table below a partitioned one.
#[derive(Debug, Clone)]
pub(super) struct Partition {
    root: u32,
    pub(super) oid: u32,
    pub(super) name: Name,
    /// `pg_class.relkind`.
    kind: String,
    pub(super) is_leaf: bool,
    pub(super) parent: Name,
    pub(super) bound: String,
    pub(super) part_key: Option<String>,
    /// The condition for its rows; None where a hash decides.
    rows: Option<String>,
    place: String,
    /// The clone of the capture trigger.
    clone: Option<Cloned>,
    own_trigger: Option<String>,
    captures_truncate: bool,
    rewritten: bool,
    may_read: bool,
    may_trigger: bool,
    may_truncate: bool,
}

/// A trigger that came from the table above.
#[derive(Debug, Clone)]
struct Cloned {
    oid: u32,
    /// One of them does not fire.
    disabled: Option<String>,
    /// The command that made it: transaction and number.
    made_by: (String, i64),
    /// The same transaction made the partition.
    born_here: bool,
}

/// What is below the partitioned tables of one end, by the oid of the table at the top.
type Trees = HashMap<u32, Vec<Partition>>;

/// A partition as replay remembers it.
#[derive(Debug)]
struct Known {
    name: Name,
    rows: Option<String>,
    clone: Option<u32>,
    /// The database in which the clone has that oid. None: the partition is known by its name only, from when this
    /// database was the root.
    provider: Option<String>,
}

/// The two ends of a look, and whose it is.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) provider: &'a Client,
    /// Which database that is.
    pub(super) identity: &'a str,
    /// It is a branch: what its tables have came through its queue.
    pub(super) external: bool,
    pub(super) who: &'a Who,
    /// See [`Partitions::late`].
    pub(super) ripe: &'a HashSet<Name>,
}

/// What the events of a partition mean: the table that they change, and what its TRUNCATE comes to.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) name: Name,
    /// None: the subscriber cannot tell which rows those are.
    pub(super) truncate: Option<Part>,
    /// What makes it, to be executed before its first event; see make.rs.
    pub(super) make: Option<String>,
}

/// What is below the tables of both ends, and what was.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    pub(super) fingerprint: Fingerprint,
    identity: String,
    provider: Trees,
    subscriber: Trees,
    /// Late ones whose time has come, by their names on the provider.
    ripe: HashSet<Name>,
    /// By the table's name on the provider.
    known: HashMap<Name, Vec<Known>>,
}

impl Partitions {
    /// Looks at the provider's, and at what is remembered.
    pub(super) async fn look(
        Source {
            provider: p,
            identity,
            who,
            ripe,
            ..
        }: Source<'_>,
        remembered_by: Option<&Client>,
        tables: impl Iterator<Item = &Table>,
    ) -> Result<Self> {
        let roots = roots(tables);
        if roots.is_empty() {
            return Ok(Self::default());
        }
        // Before the look at the trees: what comes in between is noticed later.
        let fingerprint = Fingerprint::take(p, oids(&roots)).await?;
        let provider = trees(p, End::Provider, who, &roots).await?;
        let known = match remembered_by {
            Some(s) => load(s, who).await?,
            None => HashMap::new(),
        };
        let mut partitions = Self {
            fingerprint,
            identity: identity.to_owned(),
            provider,
            subscriber: Trees::new(),
            ripe: ripe.clone(),
            known,
        };
        partitions.forget_others(p, who).await?;
        Ok(partitions)
    }

    /// Looks at the subscriber's.
    pub(super) async fn look_there(
        &mut self,
        s: &Client,
        who: &Who,
        tables: impl Iterator<Item = &Table>,
    ) -> Result<()> {
        self.subscriber = trees(s, End::Subscriber, who, &roots(tables)).await?;
        Ok(())
    }

    /// A table that was a partition, and is captured by itself now, is another one.
    async fn forget_others(&mut self, p: &Client, who: &Who) -> Result<()> {
        let below: HashSet<&Name> = self.provider.values().flatten().map(|part| &part.name).collect();
        let known = self.known.values().flatten().map(|known| &known.name);
        let gone: HashSet<Name> = known.filter(|name| !below.contains(name)).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let captured = triggers::captured(p, &who.queue).await?;
        let others: HashSet<Name> = captured
            .into_iter()
            .map(|(_, name)| name)
            .filter(|name| gone.contains(name))
            .collect();
        for known in self.known.values_mut() {
            known.retain(|known| !others.contains(&known.name));
        }
        Ok(())
    }

    /// What is below a table of that end, from the top down.
    pub(super) fn below(&self, end: End, table: &Table) -> &[Partition] {
        let trees = match end {
            End::Subscriber => &self.subscriber,
            _ => &self.provider,
        };
        trees.get(&table.oid).map_or(&[], Vec::as_slice)
    }

    /// The same as the subscriber is to have it: by other names, where the table has another.
    pub(super) fn for_subscriber(&self, entry: &Entry, table: &Table) -> Vec<Partition> {
        let parts = self.below(End::Provider, table).iter();
        parts
            .filter(|part| part.kind != FOREIGN)
            .map(|part| Partition {
                name: entry.name_there(&part.name),
                parent: entry.name_there(&part.parent),
                ..part.clone()
            })
            .collect()
    }

    /// The same without those that the subscriber's table has; nothing if that is partitioned otherwise, or not.
    pub(super) fn missing(&self, entry: &Entry, provider: &Table, subscriber: &Table) -> Vec<Partition> {
        if provider.part_key.is_none() || provider.part_key != subscriber.part_key {
            return Vec::new();
        }
        let there = self.below(End::Subscriber, subscriber);
        let mut missing = self.for_subscriber(entry, provider);
        missing.retain(|part| !there.iter().any(|there| there.place == part.place));
        missing
    }

    /// The names that a table's events have, those of partitions that are gone included. `late` are partitions that are
    /// going to be made.
    pub(super) fn leaves(&self, provider: &Table, subscriber: &Table, late: &[Partition]) -> Vec<Leaf> {
        let delete = |rows: &Option<String>| {
            let table = subscriber.name.quoted();
            rows.as_ref()
                .map(|rows| Part::Delete(format!("delete from {table} where {rows}")))
        };
        let there = self.below(End::Subscriber, subscriber);
        let below = self.below(End::Provider, provider).iter().filter(|part| part.is_leaf);
        let mut leaves: Vec<Leaf> = below
            .map(|leaf| {
                // The rows of a default partition are those that have no other; a late one has none before it is made.
                let same = there.iter().find(|there| {
                    there.place == leaf.place
                        && there.may_truncate
                        && (there.rows == leaf.rows || late.iter().any(|part| part.parent == there.parent))
                });
                let truncate = same.map(|there| Part::Truncate(there.name.clone()));
                Leaf {
                    name: leaf.name.clone(),
                    truncate: truncate.or_else(|| delete(&leaf.rows)),
                    make: make::chain(late, &leaf.place),
                }
            })
            .collect();
        for known in self.known.get(&provider.name).into_iter().flatten() {
            if !leaves.iter().any(|leaf| leaf.name == known.name) {
                leaves.push(Leaf {
                    name: known.name.clone(),
                    truncate: delete(&known.rows),
                    make: None,
                });
            }
        }
        leaves
    }

    /// The partitions whose TRUNCATE is not captured.
    pub(super) fn without_truncate(&self, end: End, table: &Table) -> impl Iterator<Item = &Name> {
        let parts = self.below(end, table).iter();
        parts
            .filter(|part| part.is_leaf && !part.captures_truncate)
            .map(|part| &part.name)
    }

    /// Remembers what is there, for the next look. The triggers of tables that are to be copied may be new, and their partitions
    /// have got the clones since the look at them: so these are looked at again.
    pub(super) async fn remember(
        self,
        source: Source<'_>,
        s: &Client,
        entries: &[Entry],
        (at_provider, at_subscriber): (&HashMap<Name, Table>, &HashMap<Name, Table>),
    ) -> Result<Self> {
        let table = |entry: &Entry| at_provider.get(&entry.provider).filter(|table| table.kind == "p");
        let partitioned = entries.iter().filter_map(|entry| Some((entry, table(entry)?)));
        let (copied, to_copy): (Vec<_>, Vec<_>) = partitioned.partition(|(entry, _)| was_copied(entry));
        for (_, table) in copied {
            self.store(s, source.who, table).await?;
        }
        if to_copy.is_empty() {
            return Ok(self);
        }
        let mut again = Self::look(source, Some(s), at_provider.values()).await?;
        again.look_there(s, source.who, at_subscriber.values()).await?;
        for (_, table) in to_copy {
            again.store(s, source.who, table).await?;
        }
        Ok(again)
    }

    async fn store(&self, s: &Client, who: &Who, table: &Table) -> Result<()> {
        let leaves: Vec<&Partition> = self
            .below(End::Provider, table)
            .iter()
            .filter(|part| part.is_leaf)
            .collect();
        let schemas: Vec<&str> = leaves.iter().map(|leaf| leaf.name.schema.as_str()).collect();
        let names: Vec<&str> = leaves.iter().map(|leaf| leaf.name.table.as_str()).collect();
        let rows: Vec<Option<&str>> = leaves.iter().map(|leaf| leaf.rows.as_deref()).collect();
        let clones: Vec<Option<u32>> = leaves.iter().map(|leaf| Some(leaf.clone.as_ref()?.oid)).collect();
        let name = &table.name;
        s.execute(
            include_str!("sql/remember_partitions.sql"),
            &[
                &who.consumer,
                &who.queue,
                &name.schema,
                &name.table,
                &schemas,
                &names,
                &rows,
                &clones,
                &self.identity,
            ],
        )
        .await
        .doing(|| format!("remember the partitions of table {name} on the subscriber"))?;
        Ok(())
    }
}

/// Whether the rows that a table's partitions have must have come through the queue, or with a copy.
fn was_copied(entry: &Entry) -> bool {
    !entry.is_new && entry.state != State::InCopy
}

fn roots<'a>(tables: impl Iterator<Item = &'a Table>) -> Vec<&'a Table> {
    let mut roots: Vec<&Table> = tables.filter(|table| table.kind == "p").collect();
    roots.sort_unstable_by_key(|table| table.oid);
    roots
}

fn oids(roots: &[&Table]) -> Vec<u32> {
    roots.iter().map(|table| table.oid).collect()
}

/// The server locks a partition before the table above it, to show which rows belong into it; who drops a partition locks them the other way
/// round. So the tables are locked first, not to have an application's DDL ended as a deadlock. Parsing a query does that, and asks for no
/// right to them as LOCK would, only to their schema. In the caller's transaction.
pub(super) async fn lock(
    client: &Client,
    tables: impl IntoIterator<Item = &Name>,
) -> Result<(), tokio_postgres::Error> {
    for table in tables {
        client.prepare(&format!("select from only {}", table.quoted())).await?;
    }
    Ok(())
}

async fn trees(client: &Client, end: End, who: &Who, roots: &[&Table]) -> Result<Trees> {
    let mut trees = Trees::new();
    if roots.is_empty() {
        return Ok(trees);
    }
    let what = || format!("read the partitions of the {end}");
    failpoint("before_partitions");
    client.batch_execute("begin").await.doing(what)?;
    let usable = roots.iter().filter(|table| table.schema_usage);
    lock(client, usable.map(|table| &table.name)).await.doing(what)?;
    for row in client
        .query(include_str!("sql/partitions.sql"), &[&oids(roots), &who.queue])
        .await
        .doing(what)?
    {
        let partition = partition(&row).doing(what)?;
        trees.entry(partition.root).or_default().push(partition);
    }
    client.batch_execute("commit").await.doing(what)?;
    Ok(trees)
}

fn partition(row: &Row) -> Result<Partition, tokio_postgres::Error> {
    let rows: Option<String> = row.try_get("rows")?;
    let clone = match row.try_get("clone")? {
        Some(oid) => Some(Cloned {
            oid,
            disabled: row.try_get("clone_disabled")?,
            made_by: (row.try_get("clone_made_by")?, row.try_get("clone_made_in")?),
            born_here: row.try_get("born_here")?,
        }),
        None => None,
    };
    Ok(Partition {
        root: row.try_get("root")?,
        oid: row.try_get("oid")?,
        name: Name::new(row.try_get::<_, String>("schema")?, row.try_get::<_, String>("name")?),
        kind: row.try_get("kind")?,
        is_leaf: row.try_get("is_leaf")?,
        parent: Name::new(
            row.try_get::<_, String>("parent_schema")?,
            row.try_get::<_, String>("parent_name")?,
        ),
        bound: row.try_get::<_, Option<_>>("bound")?.unwrap_or_default(),
        part_key: row.try_get("part_key")?,
        rows: rows.filter(|rows| !rows.contains("satisfies_hash_partition(")),
        place: row.try_get::<_, Option<_>>("place")?.unwrap_or_default(),
        clone,
        own_trigger: row.try_get("own_trigger")?,
        captures_truncate: row.try_get("captures_truncate")?,
        rewritten: row.try_get("rewritten")?,
        may_read: row.try_get("may_read")?,
        may_trigger: row.try_get("may_trigger")?,
        may_truncate: row.try_get("may_truncate")?,
    })
}

/// What is remembered of each table of the provider.
async fn load(subscriber: &Client, who: &Who) -> Result<HashMap<Name, Vec<Known>>> {
    let mut known: HashMap<Name, Vec<_>> = HashMap::new();
    let rows = subscriber
        .query(
            "select provider_schema, provider_table, partition_schema, partition_table, partition_rows, clone,
                    provider
               from pgcascade_replay.partition where consumer = $1 and queue = $2",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "read the partitions that are known on the subscriber".to_owned())?;
    for row in rows {
        let name = |at: usize| Name::new(row.get::<_, String>(at), row.get::<_, String>(at + 1));
        known.entry(name(0)).or_default().push(Known {
            name: name(2),
            rows: row.get(4),
            clone: row.get(5),
            provider: row.get(6),
        });
    }
    Ok(known)
}

/// What is below some tables, in short: another when a partition comes, goes, or gets another name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    roots: Vec<u32>,
    below: Option<String>,
}

impl Fingerprint {
    async fn take(provider: &Client, roots: Vec<u32>) -> Result<Self> {
        let row = provider
            .query_typed_one(include_str!("sql/fingerprint.sql"), &[(&roots, Type::OID_ARRAY)])
            .await
            .doing(|| "look for new partitions on the provider".to_owned())?;
        Ok(Self {
            roots,
            below: row.get(0),
        })
    }

    /// Whether it is still this one.
    pub(super) async fn holds(&self, provider: &Client) -> Result<bool> {
        Ok(self.roots.is_empty() || Self::take(provider, self.roots.clone()).await? == *self)
    }
}
