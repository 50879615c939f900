//! Keeps the subscriber's sequences ahead of the values that stand in its rows, so that it can be written to whenever it
//! has to be.
//!
//! Meant are the sequences of replicated columns: those of identity columns, those that a column owns (serial), and those that a
//! column's default draws from, which several columns may share. One of
//! the provider's goes with the one of the column of the same name on the subscriber; where that has none
//! there is nothing to keep.
//!
//! The promise: when a batch is committed, no sequence of the subscriber stands below a value that the provider's had
//! given out when the batch's last tick was made. [`Sequences::read`] asks the provider after that tick, and
//! [`Sequences::advance`] moves the subscriber's before the commit; setval is not undone by a rollback, which does no
//! harm, as it only goes forward. A margin on top covers what the provider gives out and loses with its disk, and saves
//! most of the calls. [`set_exactly`] is for a takeover: once the provider is not written to any more, the same values
//! as there, without a gap.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::findings::{Findings, Kind, Remedy};
use super::table::{Name, Table, literal, quoted};
use crate::connect::End;
use crate::error::{Doing, Result};

/// How many steps of the provider's sequence the subscriber's is kept ahead of it, at most; at least half of it.
pub(crate) const MARGIN: i64 = 1000;

/// The last value of many sequences; a sequence that was dropped meanwhile has none.
const LAST_VALUES: &str = "\
select c.oid, pg_catalog.pg_sequence_last_value(c.oid)
  from pg_catalog.pg_class c where c.oid = any ($1::oid[]) and c.relkind = 'S'";

/// The sequences that columns of tables draw from. Its comment has the rest.
pub(crate) const OF_TABLES: &str = include_str!("sql/sequences.sql");

/// Sets sequences, by oid.
pub(crate) const PLACE: &str = "\
select pg_catalog.setval(c.oid, s.place)
  from rows from (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::int8[])) s (oid, place)
  join pg_catalog.pg_class c on c.oid = s.oid and c.relkind = 'S'";

/// A sequence as one end has it.
#[derive(Debug, Clone)]
struct Sequence {
    oid: u32,
    name: Name,
    may_read: bool,
    may_set: bool,
    increment: i64,
    least: i64,
    most: i64,
    cycles: bool,
    type_name: String,
    options: String,
    /// In the schema of its table.
    beside: bool,
    /// It belongs to the column.
    is_owned: bool,
    /// The column's default is its next value and nothing else.
    is_plain: bool,
}

/// A table of the provider, with the columns that are replayed, and the subscriber's.
pub(super) type Pair<'a> = (&'a Table, &'a Table);

/// By table and column.
type Owned = HashMap<(u32, String), Sequence>;

/// One of the provider's, and its counterpart.
#[derive(Debug)]
struct Kept {
    /// The provider's table.
    table: Name,
    theirs: Sequence,
    ours: Sequence,
    /// Where ours stands.
    at: Option<i64>,
}

/// All that are kept.
#[derive(Debug, Default)]
pub(super) struct Sequences(Vec<Kept>);

/// What the provider's have given out, by oid.
pub(super) type Values = HashMap<u32, i64>;

/// Adds a finding for each sequence that the role may not read on the provider or set on the subscriber.
pub(super) async fn check(
    provider: (&Client, &str),
    subscriber: (&Client, &str),
    pairs: &[Pair<'_>],
    findings: &mut Findings,
) -> Result<()> {
    for kept in match_up(provider.0, subscriber.0, pairs).await?.0 {
        findings.about(Some(&kept.table));
        for (end, role, sequence, may, privilege) in [
            (End::Provider, provider.1, &kept.theirs, kept.theirs.may_read, "select"),
            (
                End::Subscriber,
                subscriber.1,
                &kept.ours,
                kept.ours.may_set,
                "select, update",
            ),
        ] {
            if !may {
                lacks(findings, (end, role), &sequence.name, privilege);
            }
        }
    }
    findings.about(None);
    Ok(())
}

/// The same for tables that are to be made on the subscriber, and their sequences with them.
pub(super) async fn check_missing(
    provider: &Client,
    role: &str,
    tables: impl Iterator<Item = (&Name, &Table)>,
    findings: &mut Findings,
) -> Result<()> {
    let tables: Vec<(&Name, &Table)> = tables.collect();
    let all = owned(provider, End::Provider, tables.iter().map(|(_, table)| *table)).await?;
    for (name, table) in tables {
        findings.about(Some(name));
        let theirs = all
            .iter()
            .filter(|((oid, _), sequence)| *oid == table.oid && !sequence.may_read);
        for (_, sequence) in theirs {
            lacks(findings, (End::Provider, role), &sequence.name, "select");
        }
    }
    findings.about(None);
    Ok(())
}

fn lacks(findings: &mut Findings, (end, role): (End, &str), sequence: &Name, privilege: &str) {
    findings.add(
        Kind::SequenceRight,
        (end, sequence),
        format!("role \"{role}\" lacks {privilege} on sequence {sequence} of the {end}"),
        Remedy::run(
            end,
            format!(
                "grant {privilege} on sequence {} to {}",
                sequence.quoted(),
                quoted(role)
            ),
        )
        .words("leave sequences alone with --no-sequences, or"),
    );
}

/// Adds a finding for each sequence of the subscriber that is behind and stays so: because nobody keeps it ahead, or because
/// it cannot go so far. Who writes there after a takeover gets values that are taken.
pub(super) async fn check_places(
    provider: &Client,
    subscriber: &Client,
    are_kept: bool,
    pairs: &[Pair<'_>],
    findings: &mut Findings,
) -> Result<()> {
    let mut sequences = match_up(provider, subscriber, pairs).await?;
    sequences
        .0
        .retain(|kept| kept.theirs.may_read && kept.ours.may_read && !kept.theirs.cycles);
    sequences.begin(subscriber).await?;
    let values = sequences.read(provider).await?;
    for Kept { theirs, ours, at, .. } in &sequences.0 {
        let Some(&value) = values.get(&theirs.oid) else {
            continue;
        };
        let reach = value.clamp(ours.least, ours.most);
        let at = if are_kept { Some(reach) } else { *at };
        if at.is_some_and(|at| !theirs.is_before(at, value)) {
            continue;
        }
        let sequence = &ours.name;
        let remedy = if reach == value {
            Remedy::run(
                End::Subscriber,
                format!("select pg_catalog.setval({}, {value})", literal(&sequence.quoted())),
            )
        } else {
            "give it the type and the bounds that it has on the provider".into()
        };
        findings.add(
            Kind::SequenceBehind,
            (End::Subscriber, sequence),
            format!(
                "sequence {sequence} of the subscriber {} {}, the provider's is at {value}: the subscriber would draw values \
                 that are taken",
                if are_kept { "goes no further than" } else { "is at" },
                at.map_or_else(|| "its start".to_owned(), |at| at.to_string())
            ),
            remedy,
        );
    }
    Ok(())
}

/// The sequences of these tables, paired.
pub(super) async fn match_up(provider: &Client, subscriber: &Client, pairs: &[Pair<'_>]) -> Result<Sequences> {
    let theirs = owned(provider, End::Provider, pairs.iter().map(|(theirs, _)| *theirs)).await?;
    if theirs.is_empty() {
        return Ok(Sequences::default());
    }
    let mut ours = owned(subscriber, End::Subscriber, pairs.iter().map(|(_, ours)| *ours)).await?;
    let tables: HashMap<u32, &Pair<'_>> = pairs.iter().map(|pair| (pair.0.oid, pair)).collect();
    let mut seen = HashSet::new();
    let mut kept: Vec<Kept> = theirs
        .into_iter()
        .filter_map(|((table, column), theirs)| {
            let (there, here) = *tables.get(&table)?;
            let ours = ours.remove(&(here.oid, column))?;
            seen.insert(ours.oid).then(|| Kept {
                table: there.name.clone(),
                theirs,
                ours,
                at: None,
            })
        })
        .collect();
    kept.sort_by(|a, b| a.ours.name.cmp(&b.ours.name));
    Ok(Sequences(kept))
}

/// How a sequence that a column draws from is made.
#[derive(Debug)]
pub(super) struct Definition {
    name: Name,
    beside: bool,
    /// It is to belong to the column, as it does on the provider.
    pub(super) is_owned: bool,
    pub(super) type_name: String,
    pub(super) options: String,
}

impl Definition {
    /// Its name, if its table has that one.
    pub(super) fn name_beside(&self, table: &Name) -> Name {
        if self.beside {
            Name::new(table.schema.as_str(), self.name.table.as_str())
        } else {
            self.name.clone()
        }
    }
}

/// Those of the provider's tables that can be made with them, by table and column.
pub(super) async fn definitions<'a>(
    provider: &Client,
    tables: impl Iterator<Item = &'a Table>,
) -> Result<HashMap<(u32, String), Definition>> {
    let owned = owned(provider, End::Provider, tables).await?;
    let definition = |sequence: Sequence| Definition {
        name: sequence.name,
        beside: sequence.beside,
        is_owned: sequence.is_owned,
        type_name: sequence.type_name,
        options: sequence.options,
    };
    Ok(owned
        .into_iter()
        .filter(|(_, sequence)| sequence.is_plain)
        .map(|(column, sequence)| (column, definition(sequence)))
        .collect())
}

/// Those of columns that the tables have here: one that is left out is not replayed, and its sequence is the subscriber's own.
async fn owned<'a>(client: &Client, end: End, tables: impl Iterator<Item = &'a Table>) -> Result<Owned> {
    let tables: HashMap<u32, &Table> = tables.map(|table| (table.oid, table)).collect();
    let oids: Vec<u32> = tables.keys().copied().collect();
    let rows = client
        .query(OF_TABLES, &[&oids])
        .await
        .doing(|| format!("read the sequences of the {end}"))?;
    let mut owned = Owned::new();
    for row in rows {
        let (oid, column): (u32, String) = (row.get("table"), row.get("column"));
        if tables.get(&oid).is_none_or(|table| table.column(&column).is_none()) {
            continue;
        }
        let usable: bool = row.get("schema_usage");
        let sequence = Sequence {
            oid: row.get("oid"),
            name: Name::new(row.get::<_, String>("schema"), row.get::<_, String>("name")),
            may_read: row.get("may_read"),
            may_set: usable && row.get("may_read") && row.get("may_set"),
            increment: row.get("increment"),
            least: row.get("least"),
            most: row.get("most"),
            cycles: row.get("cycles"),
            type_name: row.get("type"),
            options: row.get("options"),
            beside: row.get("beside"),
            is_owned: row.get("is_owned"),
            is_plain: row.get("is_plain"),
        };
        owned.insert((oid, column), sequence);
    }
    Ok(owned)
}

impl Sequences {
    /// Where the provider's stand. The future is made before it is awaited, so that the question can travel with others.
    pub(super) async fn read(&self, provider: &Client) -> Result<Values> {
        if self.0.is_empty() {
            return Ok(Values::new());
        }
        let oids: Vec<u32> = self.0.iter().map(|kept| kept.theirs.oid).collect();
        last_values(provider, End::Provider, &oids).await
    }

    /// Reads where the subscriber's stand, once, before the first [`Self::advance`].
    pub(super) async fn begin(&mut self, subscriber: &Client) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let oids: Vec<u32> = self.0.iter().map(|kept| kept.ours.oid).collect();
        let values = last_values(subscriber, End::Subscriber, &oids).await?;
        for kept in &mut self.0 {
            kept.at = values.get(&kept.ours.oid).copied();
        }
        Ok(())
    }

    /// Moves those that the provider's are about to overtake.
    pub(super) async fn advance(&mut self, subscriber: &Client, values: &Values) -> Result<()> {
        let mut moved = Vec::new();
        for (i, kept) in self.0.iter().enumerate() {
            if let Some(&value) = values.get(&kept.theirs.oid)
                && let Some(to) = kept.theirs.place(&kept.ours, value, kept.at)
            {
                moved.push((i, to));
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        let (oids, places): (Vec<u32>, Vec<i64>) = moved.iter().map(|&(i, to)| (self.0[i].ours.oid, to)).unzip();
        subscriber
            .execute(PLACE, &[&oids, &places])
            .await
            .doing(|| "move the sequences of the subscriber".to_owned())?;
        for (i, to) in moved {
            self.0[i].at = Some(to);
        }
        Ok(())
    }

    /// Sets the subscriber's to what the provider's are, backwards where need be. Only where nobody writes on either end
    /// is that what it says.
    pub(super) async fn set_exactly(&self, provider: &Client, subscriber: &Client) -> Result<()> {
        for kept in &self.0 {
            let row = provider
                .query_opt(
                    &format!("select last_value, is_called from {}", kept.theirs.name.quoted()),
                    &[],
                )
                .await
                .doing(|| format!("read sequence {} of the provider", kept.theirs.name))?;
            let Some(row) = row else { continue };
            let (value, called): (i64, bool) = (row.get(0), row.get(1));
            subscriber
                .execute(
                    "select pg_catalog.setval($1::oid::pg_catalog.regclass, $2, $3)",
                    &[&kept.ours.oid, &value, &called],
                )
                .await
                .doing(|| format!("set sequence {} of the subscriber to {value}", kept.ours.name))?;
        }
        if !self.0.is_empty() {
            tracing::info!(sequences = self.0.len(), "sequences are exactly the provider's");
        }
        Ok(())
    }
}

async fn last_values(client: &Client, end: End, oids: &[u32]) -> Result<Values> {
    let rows = client
        .query_typed(LAST_VALUES, &[(&oids, Type::OID_ARRAY)])
        .await
        .doing(|| format!("read the sequences of the {end}"))?;
    Ok(rows
        .iter()
        .filter_map(|row| Some((row.get(0), row.get::<_, Option<i64>>(1)?)))
        .collect())
}

impl Sequence {
    /// Whether it gives out `a` before it gives out `b`.
    fn is_before(&self, a: i64, b: i64) -> bool {
        if self.increment > 0 { a < b } else { a > b }
    }

    /// Where `ours` is to be set, now that this one is at `value` and `ours` at `at`; None if it can stay.
    fn place(&self, ours: &Sequence, value: i64, at: Option<i64>) -> Option<i64> {
        // One that goes round has no "ahead".
        let ahead = |steps: i64| {
            let margin = if self.cycles {
                0
            } else {
                self.increment.saturating_mul(steps)
            };
            value.saturating_add(margin).clamp(ours.least, ours.most)
        };
        let enough = at.is_some_and(|at| {
            if self.cycles {
                at == ahead(0)
            } else {
                !self.is_before(at, ahead(MARGIN / 2))
            }
        });
        (!enough).then(|| ahead(MARGIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(increment: i64, least: i64, most: i64, cycles: bool) -> Sequence {
        Sequence {
            oid: 1,
            name: Name::new("public", "s"),
            may_read: true,
            may_set: true,
            increment,
            least,
            most,
            cycles,
            type_name: "bigint".to_owned(),
            options: String::new(),
            beside: true,
            is_owned: true,
            is_plain: true,
        }
    }

    #[test]
    fn a_sequence_stays_ahead_and_within_its_bounds() {
        let up = sequence(1, 1, i64::MAX, false);
        assert_eq!(up.place(&up, 7, None), Some(1007));
        assert_eq!(up.place(&up, 507, Some(1007)), None);
        assert_eq!(up.place(&up, 508, Some(1007)), Some(1508));
        assert_eq!(up.place(&up, 1, Some(5000)), None, "it never goes back");
        assert_eq!(up.place(&up, i64::MAX - 1, Some(5000)), Some(i64::MAX));
        let tens = sequence(10, 1, i64::MAX, false);
        assert_eq!(tens.place(&up, 100, Some(5099)), Some(10_100));
        let down = sequence(-1, i64::MIN, -1, false);
        assert_eq!(down.place(&down, -7, None), Some(-1007));
        assert_eq!(down.place(&down, -508, Some(-1007)), Some(-1508));
        assert_eq!(down.place(&down, -1, Some(-5000)), None);
        let small = sequence(1, 1, 100, false);
        assert_eq!(small.place(&small, 50, None), Some(100));
        assert_eq!(small.place(&small, 60, Some(100)), None);
        let round = sequence(1, 1, 100, true);
        assert_eq!(round.place(&round, 2, Some(100)), Some(2));
        assert_eq!(round.place(&round, 2, Some(2)), None);
    }
}
