//! Into which chunks a table is cut, and where that is kept.
//!
//! A table without a key is cut into blocks (places.rs), any other by its key.
//!
//! The borders are keys from a sample of the table's pages, so that they cost little to find whatever the size; the chunks are
//! only about equal. They are written once, in the transaction that makes sure that the subscriber's table is empty; from
//! then on a start, however many there are, does the chunks that are left.

use tokio_postgres::Client;

use super::super::displaced;
use super::super::places::{self, Stored};
use super::super::position::Who;
use super::super::setup::Target;
use super::super::sources;
use super::super::table::{Name, Table, literal, quoted};
use super::super::table_state;
use super::Job;
use super::parts::{self, Part};
use super::source::{self, Source};
use super::worker::Worker;
use crate::error::{Doing, Result};
use crate::failpoint::failpoint;

/// No table is cut into more.
const MOST_CHUNKS: u64 = 10_000;

/// Pages that are looked into per chunk, to find its border.
const PAGES_PER_CHUNK: u64 = 4;

const PAGE_BYTES: u64 = 8192;

/// How a table is copied.
pub(super) enum Plan {
    Whole,
    Chunks {
        from: String,
        /// Those that are left.
        chunks: Vec<Chunk>,
        /// Rows of those that are not.
        done_rows: u64,
    },
}

/// What the chunks of a table are ranges of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Its primary key.
    Key,
    /// Its blocks.
    Place,
}

/// A range.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) number: i32,
    /// Where its rows are; None: in the table.
    pub(super) partition: Option<Name>,
    /// Of blocks: of these.
    pub(super) stored: Option<Stored>,
    /// Of a range of the key of a partition: where that is, see [`Part`].
    pub(super) place: Option<String>,
    /// SQL, without WHERE.
    pub(super) condition: String,
}

impl Chunk {
    /// A chunk of no rows.
    pub(super) fn none() -> Self {
        Self {
            number: -1,
            partition: None,
            stored: None,
            place: None,
            condition: "false".to_owned(),
        }
    }
}

/// How the table may be cut. By its key where that is something that it can be read by, and its changes applied twice to; see copy.rs.
pub(super) fn by(target: &Target) -> Option<By> {
    let (provider, subscriber) = (&*target.provider, &*target.subscriber);
    let key = provider.primary_key();
    if key.is_empty() {
        return Some(By::Place);
    }
    let by = |table: &Table| {
        table.key_over(key).is_some_and(|index| {
            // An operator elsewhere would not be the one that the index has.
            index.is_immediate
                && index
                    .operators
                    .iter()
                    .all(|operator| operator.as_deref() == Some("pg_catalog.="))
        })
    };
    // A row that is there already could not be given its value of such a column.
    let settable = subscriber
        .columns
        .iter()
        .all(|column| column.identity != "a" || key.contains(&column.name));
    let fits = by(provider) && by(subscriber) && settable && target.other_keys().is_some();
    fits.then_some(By::Key)
}

/// Decides, and writes down the chunks if there are any. None: to stop. `is_again`: rows that made way in a copy before this one did not
/// come back.
pub(super) async fn make(worker: &Worker, job: &Job, is_again: bool) -> Result<Option<Plan>> {
    let shared = &worker.shared;
    let (source, chunk_bytes) = (&shared.source, shared.config.copy_chunk_bytes);
    let Some(by) = job.cut_by else {
        return Ok(Some(Plan::Whole));
    };
    let least = source.least_chunks(by);
    if job.provider.bytes / chunk_bytes < least as u64 {
        return Ok(Some(Plan::Whole));
    }
    if by == By::Place {
        // A branch's rows have other places; and where there are rows of another source, what is there already could not be taken back.
        let (s, who) = (&worker.subscriber, &shared.who);
        if matches!(source, Source::Branch(..))
            || sources::are_several(s, who, &job.subscriber.name).await?
            || places::is_refused(s, who, &job.provider.name).await?
        {
            return Ok(Some(Plan::Whole));
        }
    }
    if !job.other_keys.is_empty()
        && (is_again || !displaced::is_allowed(&worker.subscriber, &shared.who, &job.subscriber.name).await?)
    {
        return Ok(Some(Plan::Whole));
    }
    let provider = &worker.provider.client;
    let name = &job.provider.name;
    let read = || format!("read table {name} of the provider");
    let from = match (source, &worker.elsewhere) {
        (Source::Branch(_, node), Some(branch)) => {
            super::begin_reading(&branch.client, name).await?;
            let from = source::of_branch(provider, (&branch.client, node), name, job.position).await?;
            branch.client.batch_execute("commit").await.doing(read)?;
            super::begin_reading(provider, name).await?;
            from
        }
        _ => super::begin_reading(provider, name).await?,
    };
    let ranges = match parts::readable(provider, &shared.who, &job.provider, by).await? {
        Some(parts) => ranges(provider, &job.provider, &parts, chunk_bytes).await?,
        None => Vec::new(),
    };
    provider.batch_execute("commit").await.doing(read)?;
    if ranges.iter().filter(|range| !range.is_empty).count() < least {
        return Ok(Some(Plan::Whole));
    }
    if let (Source::Standby(_), Some(standby), By::Key) = (source, &worker.elsewhere, by) {
        // Each chunk has to hold what `from` sees.
        if !source::wait_for_standby(provider, &standby.client, &shared.shutdown).await? {
            return Ok(None);
        }
    }
    let subscriber = &worker.subscriber;
    let what = || format!("write down the chunks of table {name} on the subscriber");
    subscriber.batch_execute("begin").await.doing(what)?;
    write_down(worker, job, &from, &ranges).await?;
    failpoint("before_plan_commit");
    subscriber.batch_execute("commit").await.doing(what)?;
    failpoint("after_plan_commit");
    tracing::info!(table = %name, chunks = ranges.len(), "cut into chunks");
    load(worker, job).await.map(Some)
}

/// Empties the table, as the first chunk does not know that it is the first.
async fn write_down(worker: &Worker, job: &Job, from: &str, ranges: &[Range]) -> Result<()> {
    let (subscriber, shared) = (&worker.subscriber, &worker.shared);
    let (name, who) = (&job.provider.name, &shared.who);
    let what = || format!("write down the chunks of table {name} on the subscriber");
    sources::make_room(
        subscriber,
        who,
        &job.subscriber,
        job.replace_rows,
        shared.config.truncate,
    )
    .await?;
    // First, so that nobody else changes it until this is committed.
    let begun = subscriber
        .execute(
            "update pgcascade_replay.table_state set copy_snapshot = $5, updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and state = 'in-copy'
                and copy_snapshot is null and revision = $6",
            &[
                &who.consumer,
                &who.queue,
                &name.schema,
                &name.table,
                &from,
                &job.revision,
            ],
        )
        .await
        .doing(what)?;
    if begun != 1 {
        return Err(table_state::changed(name));
    }
    // Of a plan that was committed while the table was told to start over.
    subscriber
        .execute(
            "delete from pgcascade_replay.copy_chunk
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &name.schema, &name.table],
        )
        .await
        .doing(what)?;
    // A branch may have rows still that are gone here.
    let empty_at = (!matches!(shared.source, Source::Branch(..))).then_some(from);
    add(subscriber, who, name, 0, ranges, empty_at).await
}

/// Adds chunks, numbered from there. What is empty counts as copied at that snapshot; None: it does not.
pub(super) async fn add(
    subscriber: &Client,
    who: &Who,
    name: &Name,
    first: i32,
    ranges: &[Range],
    empty_at: Option<&str>,
) -> Result<()> {
    let what = || format!("write down the chunks of table {name} on the subscriber");
    let statement = subscriber
        .prepare(
            "insert into pgcascade_replay.copy_chunk
               (consumer, queue, provider_schema, provider_table, chunk, above, upto, partition_schema,
                partition_table, copied_rows, place, filenode, epoch, snapshot, partition_place)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, case when $10 then 0 end, $11, $12, $13, $14, $15)",
        )
        .await
        .doing(what)?;
    for (chunk, range) in (first..).zip(ranges) {
        let partition = range.partition.as_ref().map(|name| (&name.schema, &name.table));
        let stored = range.stored.as_ref();
        let copied_at = empty_at.filter(|_| range.is_empty);
        subscriber
            .execute(
                &statement,
                &[
                    &who.consumer,
                    &who.queue,
                    &name.schema,
                    &name.table,
                    &chunk,
                    &range.above,
                    &range.upto,
                    &partition.map(|(schema, _)| schema),
                    &partition.map(|(_, table)| table),
                    &copied_at.is_some(),
                    &stored.map(|stored| &stored.place),
                    &stored.map(|stored| stored.filenode),
                    &stored.map(|stored| stored.epoch),
                    &stored.and(copied_at),
                    &range.place,
                ],
            )
            .await
            .doing(what)?;
    }
    Ok(())
}

/// The chunks that are left of a table that was begun.
pub(super) async fn load(worker: &Worker, job: &Job) -> Result<Plan> {
    let (client, who) = (&worker.subscriber, &worker.shared.who);
    parts::bring_up_to_date((&worker.provider.client, client), who, &job.provider, job.cut_by).await?;
    let name = &job.provider.name;
    let what = || format!("read the chunks of table {name} on the subscriber");
    let key: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[&who.consumer, &who.queue, &name.schema, &name.table];
    // Whether it is still this one, the end of each chunk will see.
    let from: Option<String> = client
        .query_opt(
            "select copy_snapshot from pgcascade_replay.table_state
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            key,
        )
        .await
        .doing(what)?
        .and_then(|row| row.get(0));
    let from = from.ok_or_else(|| table_state::changed(name))?;
    let rows = client
        .query(
            "select chunk, above, upto, copied_rows, partition_schema, partition_table, place, filenode, epoch,
                    partition_place
               from pgcascade_replay.copy_chunk
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 order by chunk",
            key,
        )
        .await
        .doing(what)?;
    let mut chunks = Vec::new();
    let mut done_rows = 0;
    for row in rows {
        match row.get::<_, Option<i64>>(3) {
            Some(rows) => done_rows += u64::try_from(rows).unwrap_or(0),
            None => {
                let stored = Stored::of(&row, (6, 7, 8));
                let (above, upto) = (row.get(1), row.get(2));
                chunks.push(Chunk {
                    number: row.get(0),
                    partition: partition(row.get(4), row.get(5)),
                    condition: match stored {
                        Some(_) => blocks(above, upto),
                        None => condition(job.provider.primary_key(), above, upto),
                    },
                    stored,
                    place: row.get(9),
                });
            }
        }
    }
    Ok(Plan::Chunks {
        from,
        chunks,
        done_rows,
    })
}

/// What two columns of a chunk say.
pub(super) fn partition(schema: Option<&str>, table: Option<&str>) -> Option<Name> {
    schema.zip(table).map(|(schema, table)| Name::new(schema, table))
}

/// What becomes a chunk.
pub(super) struct Range {
    partition: Option<Name>,
    stored: Option<Stored>,
    place: Option<String>,
    above: Option<Vec<String>>,
    upto: Option<Vec<String>>,
    /// There is nothing to copy.
    is_empty: bool,
}

impl Range {
    /// All of it.
    pub(super) fn of(part: &Part) -> Self {
        Self {
            partition: part.partition.clone(),
            stored: part.found.as_ref().map(|found| found.stored.clone()),
            place: part.place.clone().filter(|_| part.found.is_none()),
            above: None,
            upto: None,
            is_empty: false,
        }
    }
}

async fn ranges(provider: &Client, table: &Table, parts: &[Part], chunk_bytes: u64) -> Result<Vec<Range>> {
    let chunk_bytes = chunk_bytes.max(table.bytes / MOST_CHUNKS).max(1);
    let mut ranges = Vec::new();
    for part in parts {
        let wanted = (part.bytes / chunk_bytes).min(MOST_CHUNKS);
        if let Some(found) = &part.found {
            ranges.extend(ranges_of_blocks(part, found, wanted.max(1)));
            continue;
        }
        let borders = if wanted < 2 {
            Vec::new()
        } else {
            borders(provider, table, part, wanted).await?
        };
        for number in 0..=borders.len() {
            ranges.push(Range {
                partition: part.partition.clone(),
                stored: None,
                place: part.place.clone(),
                above: number.checked_sub(1).and_then(|i| borders.get(i)).cloned(),
                upto: borders.get(number).cloned(),
                is_empty: part.partition.is_some() && part.bytes == 0,
            });
        }
    }
    Ok(ranges)
}

/// Up to where the part ends now, and at least one.
fn ranges_of_blocks(part: &Part, found: &places::Found, wanted: u64) -> Vec<Range> {
    let each = found.blocks.div_ceil(wanted).max(1);
    let block = |block: u64| Some(vec![block.to_string()]);
    let from = (0..found.blocks.max(1)).step_by(usize::try_from(each).unwrap_or(usize::MAX));
    from.map(|above| Range {
        partition: part.partition.clone(),
        stored: Some(found.stored.clone()),
        place: None,
        above: block(above),
        upto: block((above + each).min(found.blocks)),
        is_empty: found.blocks == 0,
    })
    .collect()
}

/// Keys that cut that part of the table into about so many parts, in the order of the key.
async fn borders(provider: &Client, table: &Table, part: &Part, chunks: u64) -> Result<Vec<Vec<String>>> {
    let key: Vec<String> = table.primary_key().iter().map(|name| quoted(name)).collect();
    let pages = (part.bytes / PAGE_BYTES).max(1);
    let percent = (100 * chunks * PAGES_PER_CHUNK).div_ceil(pages).clamp(1, 100);
    let texts: Vec<String> = key.iter().map(|name| format!("{name}::pg_catalog.text")).collect();
    let sql = format!(
        "select array[{}] from {} tablesample system ({percent}) order by {}",
        texts.join(", "),
        part.partition.as_ref().map_or_else(|| table.own_rows(), Name::quoted),
        key.join(", ")
    );
    let sample: Vec<Vec<String>> = provider
        .query(&sql, &[])
        .await
        .doing(|| format!("find out how to cut table {} of the provider", table.name))?
        .into_iter()
        .map(|row| row.get(0))
        .collect();
    let chunks = usize::try_from(chunks).unwrap_or(2);
    Ok((1..chunks.min(sample.len()))
        .map(|i| sample[i * sample.len() / chunks.min(sample.len())].clone())
        .collect())
}

fn condition(key: &[String], above: Option<Vec<String>>, upto: Option<Vec<String>>) -> String {
    let names: Vec<String> = key.iter().map(|name| quoted(name)).collect();
    let side = |operator: &str, values: Option<Vec<String>>| {
        values.map(|values| {
            let values: Vec<String> = values.iter().map(|value| literal(value)).collect();
            format!("({}) {operator} ({})", names.join(", "), values.join(", "))
        })
    };
    let sides: Vec<String> = [side(">", above), side("<=", upto)].into_iter().flatten().collect();
    if sides.is_empty() {
        "true".to_owned()
    } else {
        sides.join(" and ")
    }
}

/// From one block to before another.
fn blocks(above: Option<Vec<String>>, upto: Option<Vec<String>>) -> String {
    let side = |operator: &str, block: Option<Vec<String>>| {
        let block = block.and_then(|block| block.into_iter().next());
        block.map(|block| format!("ctid {operator} {}::pg_catalog.tid", literal(&format!("({block},0)"))))
    };
    let sides: Vec<String> = [side(">=", above), side("<", upto)].into_iter().flatten().collect();
    if sides.is_empty() {
        "true".to_owned()
    } else {
        sides.join(" and ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_complete_and_do_not_overlap() {
        let key = ["a".to_owned(), "B\"".to_owned()];
        let values = |a: &str, b: &str| Some(vec![a.to_owned(), b.to_owned()]);
        assert_eq!(
            condition(&key, None, values("1", "x'")),
            "(\"a\", \"B\"\"\") <= ('1', 'x''')"
        );
        assert_eq!(
            condition(&key, values("1", "x'"), values("2", "")),
            "(\"a\", \"B\"\"\") > ('1', 'x''') and (\"a\", \"B\"\"\") <= ('2', '')"
        );
        assert_eq!(condition(&key, None, None), "true");
    }

    #[test]
    fn each_block_is_in_one_range() {
        let part = || Part::of_blocks(7);
        for wanted in 1..9 {
            let found = part();
            let ranges = ranges_of_blocks(&found, found.found.as_ref().unwrap(), wanted);
            let sides = |range: &Range| {
                let number = |side: &Option<Vec<String>>| side.as_ref().unwrap()[0].parse::<u64>().unwrap();
                (number(&range.above), number(&range.upto))
            };
            let sides: Vec<_> = ranges.iter().map(sides).collect();
            assert!(sides.windows(2).all(|pair| pair[0].1 == pair[1].0), "{sides:?}");
            assert_eq!((sides[0].0, sides[sides.len() - 1].1), (0, 7), "{sides:?}");
            assert!(sides.iter().all(|(above, upto)| above < upto), "{sides:?}");
        }
        let block = |block: &str| Some(vec![block.to_owned()]);
        assert_eq!(
            blocks(block("0"), block("8")),
            "ctid >= '(0,0)'::pg_catalog.tid and ctid < '(8,0)'::pg_catalog.tid"
        );
        assert_eq!(blocks(None, None), "true");
    }
}
