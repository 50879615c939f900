//! Tables without a key that are copied in chunks: ranges of blocks, each read with a snapshot of its own.
//!
//! Nothing of such a table can be applied twice, so of each event from the time of the copy it has to be known whether
//! the copy has the row. The capture trigger says in which block the row is (`place`, docs/capture.md): that tells the
//! chunk, and the chunk's snapshot whether the row was there when it was read.
//!
//! Why that is right. A row stays in its block: nothing updates or deletes it, as the trigger refuses that. (What
//! changes rows past the triggers, with another session_replication_role, is not replayed, and may be copied twice or
//! not at all.) What moves or removes all rows (TRUNCATE, VACUUM FULL, CLUSTER, ALTER TABLE) gives the table another
//! file, and waits for who reads it. So a chunk that finds the file of when the chunks were cut ([`check`]) is older
//! than any such thing; and what comes behind the last chunk of a table or partition no snapshot of its chunks sees,
//! wherever it is put. The last chunk ends where the table ended when the first snapshot, `from`, had been taken: what
//! `from` sees is below that, and what comes behind it is in no chunk.
//!
//! A place names the server and the database, too. So one that was made elsewhere and handed on is known for that, as
//! in a queue that others are merged into. Only a root's queue is read so, and while it stays the root: the places of a
//! base backup of it look like its own. A table with an event from the time of its copy whose place is not known is
//! copied again, whole ([`start_over`]): one that was written by a library of before, say; and so is one whose rows
//! were moved before all were copied, as a copy in one transaction keeps that off.
//!
//! Called by copy/ for the reading side, and by stream.rs.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};
use wire::snapshot::Snapshot;

use super::event::Event;
use super::position::Who;
use super::table::{Name, Table};
use super::table_state;
use crate::cascade::{self, Role};
use crate::connect::End;
use crate::error::{Doing, Error, Result};

/// A table, or partition of one, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// Without the block: what the places of its rows begin with.
    pub(super) place: String,
    pub(super) filenode: u32,
    /// The provider's; 0: it is no node.
    pub(super) epoch: i64,
}

impl Stored {
    /// What is in these columns of a row.
    pub(super) fn of(row: &Row, (place, filenode, epoch): (usize, usize, usize)) -> Option<Self> {
        Some(Self {
            place: row.get::<_, Option<String>>(place)?,
            filenode: row.get::<_, Option<u32>>(filenode)?,
            epoch: row.get::<_, Option<i64>>(epoch)?,
        })
    }
}

/// The same as it is found.
pub(super) struct Found {
    pub(super) stored: Stored,
    pub(super) blocks: u64,
}

/// Where the table's rows are, by oid; in the transaction that has it locked. None: some event would not tell its place.
pub(super) async fn find(provider: &Client, queue: &str, table: &Table) -> Result<Option<HashMap<u32, Found>>> {
    let what = || format!("look where the rows of table {} of the provider are", table.name);
    let rows = provider
        .query(
            include_str!("sql/places.sql"),
            &[&table.oid, &queue, &table.name.quoted()],
        )
        .await
        .doing(what)?;
    // Then the provider has our extension.
    if !rows.iter().all(|row| row.get::<_, Option<bool>>("told") == Some(true)) {
        return Ok(None);
    }
    let Some(epoch) = epoch(provider, queue).await? else {
        return Ok(None);
    };
    let found = |row: &Row| {
        let stored = Stored {
            place: row.get("place"),
            epoch,
            filenode: row.get::<_, Option<u32>>("filenode").unwrap_or(0),
        };
        let blocks = row.get::<_, Option<i64>>("blocks").unwrap_or(0);
        let blocks = u64::try_from(blocks).unwrap_or(0);
        (row.get("oid"), Found { stored, blocks })
    };
    Ok(Some(rows.iter().map(found).collect()))
}

/// The provider's, if it is the root of the queue's cascade; 0: it is no node.
async fn epoch(provider: &Client, queue: &str) -> Result<Option<i64>> {
    match cascade::load(provider, queue).await? {
        None => Ok(Some(0)),
        Some(node) if node.role == Role::Root => {
            let query = "select epoch from pgcascade.node_state where queue_name = $1";
            let row = provider.query_one(query, &[&queue]).await;
            let row = row.doing(|| format!("read the epoch of {}", node.title()))?;
            Ok(Some(row.get(0)))
        }
        Some(_) => Ok(None),
    }
}

/// Whether a table or partition of the provider still is the one that was cut, and has that file; in a transaction that has it locked
/// by its name.
pub(super) async fn check(provider: &Client, table: &Name, stored: &Stored) -> Result<()> {
    let oid: Option<u32> = stored.place.rsplit(':').next().and_then(|oid| oid.parse().ok());
    let row = provider
        .query_opt(
            "select pg_catalog.pg_relation_filenode(r.oid) from pg_catalog.to_regclass($1) r(oid) where r.oid::oid = $2",
            &[&table.quoted(), &oid],
        )
        .await
        .doing(|| format!("look where the rows of table {table} of the provider are"))?;
    if row.is_some_and(|row| row.get::<_, Option<u32>>(0) == Some(stored.filenode)) {
        Ok(())
    } else {
        Err(Error::failure(format!(
            "the rows of table {table} of the provider were moved or removed while it was copied"
        ))
        .transient())
    }
}

/// Has a table copied again, whole; inside a change of the set of that number.
pub(super) async fn start_over(subscriber: &Client, who: &Who, table: &Name, number: i64) -> Result<()> {
    table_state::start_over(subscriber, who, table, number).await?;
    subscriber
        .execute(
            "update pgcascade_replay.table_state set copy_whole = true
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &table.schema, &table.table],
        )
        .await
        .doing(|| format!("record the state of table {table} on the subscriber"))?;
    Ok(())
}

/// Whether it is to be copied whole for that reason.
pub(super) async fn is_refused(subscriber: &Client, who: &Who, table: &Name) -> Result<bool> {
    let row = subscriber
        .query_opt(
            "select copy_whole from pgcascade_replay.table_state
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &table.schema, &table.table],
        )
        .await
        .doing(|| format!("read the state of table {table} on the subscriber"))?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// Whether the database's capture triggers know to tell places: ours do, PgQ's own do not.
pub(super) async fn are_told(database: &Client, end: End) -> Result<bool> {
    let row = database
        .query_one(
            "select exists (select from pg_catalog.pg_proc p join pg_catalog.pg_language l on l.oid = p.prolang
                             where p.oid = pg_catalog.to_regprocedure('pgq.logutriga()')
                               and case l.lanname when 'c' then p.probin ~ 'pgcascade' else p.prosrc ~ 'plain_capture' end)",
            &[],
        )
        .await
        .doing(|| format!("look at the capture triggers on the {end}"))?;
    Ok(row.get(0))
}

/// The chunks of a copy that is complete, by what the places of their rows begin with; each from its first block up to before another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The database that the places are of.
    database: Vec<u8>,
    /// Of when the chunks were cut.
    epoch: i64,
    /// In the order of the blocks.
    chunks: HashMap<Vec<u8>, Vec<Blocks>>,
}

/// A chunk: from one block to before another, as that snapshot saw them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Blocks {
    above: u32,
    upto: Option<u32>,
    snapshot: Snapshot,
}

impl Places {
    /// Those of a table that was copied so. None: it was not.
    pub(super) async fn load(subscriber: &Client, who: &Who, table: &Name) -> Result<Option<Self>> {
        let rows = subscriber
            .query(
                "select place, above[1], upto[1], snapshot, epoch from pgcascade_replay.copy_chunk
                  where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and place is not null and snapshot is not null",
                &[&who.consumer, &who.queue, &table.schema, &table.table],
            )
            .await
            .doing(|| format!("read the chunks of table {table} on the subscriber"))?;
        if rows.is_empty() {
            return Ok(None);
        }
        let wrong = || Error::failure(format!("the chunks of table {table} on the subscriber cannot be read"));
        let mut places = Self {
            database: split(rows[0].get::<_, &str>(0).as_bytes())
                .map_or_else(Vec::new, |(database, _)| database.to_vec()),
            epoch: rows[0].get(4),
            chunks: HashMap::new(),
        };
        for row in rows {
            let place: &str = row.get(0);
            let block = |at: usize| row.get::<_, Option<&str>>(at).map(str::parse).transpose();
            let above = block(1).map_err(|_| wrong())?.unwrap_or(0);
            let upto = block(2).map_err(|_| wrong())?;
            let snapshot = row.get::<_, Option<&str>>(3).map(str::parse);
            let snapshot = snapshot.and_then(Result::ok).ok_or_else(wrong)?;
            let chunks = places.chunks.entry(place.as_bytes().to_vec()).or_default();
            chunks.push(Blocks { above, upto, snapshot });
        }
        for chunks in places.chunks.values_mut() {
            chunks.sort_by_key(|chunk| chunk.above);
        }
        Ok(Some(places))
    }

    /// Whether the provider has been the root ever since the chunks were cut.
    pub(super) async fn check_epoch(&self, provider: &Client, queue: &str, table: &Name) -> Result<()> {
        if epoch(provider, queue).await? == Some(self.epoch) {
            return Ok(());
        }
        Err(Error::failure(format!(
            "the root of queue \"{queue}\" is another one than when the copy of table {table} began"
        ))
        .transient())
    }

    /// Whether the copy has what the event is about. None: that cannot be said, as it is no insert, or does not tell.
    pub(super) fn has_row(&self, event: &Event<'_>) -> Option<bool> {
        if event.event_type.starts_with(b"R") {
            return self.is_older_than(event.txid).then_some(false);
        }
        let place = event.place.filter(|_| event.event_type.starts_with(b"I"))?;
        self.has(place, event.txid)
    }

    /// Whether no chunk has anything of this transaction, or of one behind it that waited for its lock.
    fn is_older_than(&self, txid: u64) -> bool {
        let mut chunks = self.chunks.values().flatten();
        !chunks.any(|chunk| chunk.snapshot.sees(txid))
    }

    /// Whether the copy has the row that this transaction has put there. None: that cannot be said.
    fn has(&self, place: &[u8], txid: u64) -> Option<bool> {
        let (stored, block) = split(place)?;
        let (database, _) = split(stored)?;
        let block: u32 = str::from_utf8(block).ok()?.parse().ok()?;
        if database != self.database {
            return None;
        }
        // A partition that came behind the last chunk has none.
        let Some(chunks) = self.chunks.get(stored) else {
            return Some(false);
        };
        let behind = chunks.partition_point(|chunk| chunk.above <= block);
        let chunk = behind.checked_sub(1).and_then(|at| chunks.get(at));
        Some(chunk.is_some_and(|chunk| chunk.upto.is_none_or(|upto| block < upto) && chunk.snapshot.sees(txid)))
    }
}

/// What is before the last colon, and behind it.
fn split(place: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = place.iter().rposition(|&byte| byte == b':')?;
    Some((&place[..at], &place[at + 1..]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_in_the_chunk_of_its_block_if_that_saw_it() {
        let chunk = |above, upto, snapshot: &str| Blocks {
            above,
            upto,
            snapshot: snapshot.parse().unwrap(),
        };
        let places = Places {
            database: b"7:5".to_vec(),
            epoch: 1,
            chunks: HashMap::from([(
                b"7:5:100".to_vec(),
                vec![
                    chunk(0, Some(4), "10:10:"),
                    chunk(4, Some(8), "20:30:25"),
                    chunk(12, None, "40:40:"),
                ],
            )]),
        };
        for (place, txid, has) in [
            ("7:5:100:0", 9, Some(true)),
            ("7:5:100:3", 10, Some(false)),
            ("7:5:100:4", 10, Some(true)),
            ("7:5:100:7", 25, Some(false)),
            ("7:5:100:7", 26, Some(true)),
            ("7:5:100:8", 1, Some(false)),
            ("7:5:100:4294967295", 39, Some(true)),
            ("7:5:101:0", 1, Some(false)),
            ("7:6:100:0", 1, None),
            ("8:5:100:0", 1, None),
            ("7:5:100:", 1, None),
            ("7:5:100:-1", 1, None),
            ("mine", 1, None),
            ("", 1, None),
        ] {
            assert_eq!(places.has(place.as_bytes(), txid), has, "{place} {txid}");
        }
        for (txid, older) in [
            (9, false),
            (10, false),
            (25, false),
            (29, false),
            (39, false),
            (40, true),
        ] {
            assert_eq!(places.is_older_than(txid), older, "{txid}");
        }
    }
}
