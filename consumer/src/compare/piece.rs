//! The steps from a table down to its differing rows. Each is one pair of snapshots, short, and depends on no other.
//!
//! A part is compared by count and sum. Where they differ, it is cut into smaller parts (ranges of the key, or, where the
//! ends do not sort keys alike, buckets by the key's hash), down to where the rows can be compared one by one. Whatever
//! differs then is a suspect, and is looked up by its key, together with the events that are on their way: [`look`] is the
//! one place where anything is said of a row.

use std::collections::{BTreeMap, HashMap};

use super::Scope;
use super::ends::{Ends, Flying, Moment, sum};
use super::fix::fix;
use super::report::{Difference, Kind, Mended};
use super::shape::{Part, Shape};
use crate::error::{Doing, Result};

/// A part of so many rows is compared row by row.
const ROWS_AT_ONCE: u64 = 1_000;

/// Suspects that are looked up together.
const SUSPECTS_AT_ONCE: usize = 200;

/// Suspects without a key, which can only be found by reading the whole table.
const KEYLESS_AT_ONCE: usize = 2_000;

/// Rows of several buckets that are compared together, as each time takes a scan of the table.
const BUCKET_ROWS_AT_ONCE: u64 = 50_000;

/// Most buckets.
const BUCKETS: u64 = 1 << 18;

/// One step.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Sum(Part),
    Buckets(u64),
    Rows(Part),
    Look(Vec<Vec<String>>, Part),
    Mend(Vec<Vec<String>>),
}

/// What a step came to.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The tick that the subscriber was at.
    pub(super) tick: i64,
    /// Rows of parts that are equal, or whose rows were compared one by one.
    pub(super) rows: u64,
    /// Rows that were read one by one.
    pub(super) read: u64,
    /// What remains to be done.
    pub(super) steps: Vec<Step>,
    pub(super) differences: Vec<Difference>,
    /// Suspects with events on their way, and where they were found.
    pub(super) flying: Vec<(Vec<String>, Part)>,
    /// What was done to the subscriber, or is to be.
    pub(super) mended: Mended,
    /// Statements that are to be written down.
    pub(super) script: Vec<String>,
}

/// Does one step. Leaves the sessions inside their transactions.
pub(super) async fn take(ends: &Ends, scope: &Scope, shape: &Shape, step: &Step, again: bool) -> Result<Found> {
    if let Step::Mend(suspects) = step {
        return fix(ends, scope, shape, suspects, again).await;
    }
    let moment = ends.begin(scope, shape, matches!(step, Step::Look(..))).await?;
    let mut found = match step {
        Step::Sum(part) => sums(ends, shape, part).await?,
        Step::Buckets(rows) => buckets(ends, shape, *rows).await?,
        Step::Rows(part) => rows(ends, shape, part).await?,
        Step::Mend(_) => Found::default(),
        Step::Look(suspects, part) => look(ends, scope, shape, &moment, suspects, part).await?,
    };
    found.tick = moment.tick;
    Ok(found)
}

async fn sums(ends: &Ends, shape: &Shape, part: &Part) -> Result<Found> {
    let (theirs, ours) = ends
        .ask(shape, &shape.provider.sum(part), &shape.subscriber.sum(part))
        .await?;
    let (theirs, ours) = (sum(&theirs)?, sum(&ours)?);
    if theirs == ours {
        return Ok(Found {
            rows: theirs.0,
            ..Found::default()
        });
    }
    let most = theirs.0.max(ours.0);
    if most <= ROWS_AT_ONCE {
        return rows(ends, shape, part).await;
    }
    if !shape.ordered {
        return Ok(Found {
            steps: vec![Step::Buckets(most)],
            ..Found::default()
        });
    }
    // By the larger side: the other one may have nothing between two of its keys.
    let step = usize::try_from(ROWS_AT_ONCE / 2).unwrap_or(500);
    let (client, side) = if theirs.0 >= ours.0 {
        (&ends.provider, &shape.provider)
    } else {
        (&ends.subscriber, &shape.subscriber)
    };
    let what = || format!("find out how to cut table {}", side.name);
    let mut borders = Vec::new();
    for row in client.query(&side.borders(part, step), &[]).await.doing(what)? {
        borders.push(row.try_get::<_, Vec<String>>(0).doing(what)?);
    }
    Ok(Found {
        steps: ranges(part, borders).into_iter().map(Step::Sum).collect(),
        ..Found::default()
    })
}

/// The ranges between these borders, which lie inside the part.
pub(super) fn ranges(part: &Part, borders: Vec<Vec<String>>) -> Vec<Part> {
    let Part::Range(above, upto) = part else {
        return vec![part.clone()];
    };
    let mut parts = Vec::with_capacity(borders.len() + 1);
    let mut from = above.clone();
    for border in borders {
        let to = Some(border);
        if to != *upto {
            parts.push(Part::Range(from, to.clone()));
            from = to;
        }
    }
    parts.push(Part::Range(from, upto.clone()));
    parts
}

async fn buckets(ends: &Ends, shape: &Shape, most: u64) -> Result<Found> {
    let mask = i64::try_from((most / 100).next_power_of_two().min(BUCKETS)).unwrap_or(1) - 1;
    let (theirs, ours) = ends
        .ask(
            shape,
            &shape.provider.bucket_sums(mask),
            &shape.subscriber.bucket_sums(mask),
        )
        .await?;
    let mut buckets: BTreeMap<i64, [Option<(u64, String)>; 2]> = BTreeMap::new();
    for (side, rows) in [theirs, ours].into_iter().enumerate() {
        let what = || format!("read the checksums of table {}", shape.provider.name);
        for row in rows {
            let count = u64::try_from(row.try_get::<_, i64>(1).doing(what)?).unwrap_or(0);
            let bucket = buckets.entry(row.try_get(0).doing(what)?).or_default();
            bucket[side] = Some((count, row.try_get(2).doing(what)?));
        }
    }
    let mut found = Found::default();
    let (mut numbers, mut gathered) = (Vec::new(), 0);
    let mut gather = |numbers: &mut Vec<i64>| {
        if !numbers.is_empty() {
            found
                .steps
                .push(Step::Rows(Part::Buckets(mask, std::mem::take(numbers))));
        }
    };
    for (number, [theirs, ours]) in buckets {
        let count = |side: &Option<(u64, String)>| side.as_ref().map_or(0, |(count, _)| *count);
        if theirs == ours {
            found.rows += count(&theirs);
            continue;
        }
        numbers.push(number);
        gathered += count(&theirs).max(count(&ours));
        if gathered >= BUCKET_ROWS_AT_ONCE {
            gather(&mut numbers);
            gathered = 0;
        }
    }
    gather(&mut numbers);
    Ok(found)
}

/// Finds the suspects of a part.
async fn rows(ends: &Ends, shape: &Shape, part: &Part) -> Result<Found> {
    let (theirs, ours) = ends
        .ask(shape, &shape.provider.rows(part), &shape.subscriber.rows(part))
        .await?;
    let what = || format!("read table {}", shape.provider.name);
    let mut found = Found {
        read: (theirs.len() + ours.len()) as u64,
        ..Found::default()
    };
    let mut numbers: HashMap<Vec<String>, [Vec<i64>; 2]> = HashMap::new();
    for (side, rows) in [theirs, ours].into_iter().enumerate() {
        for row in rows {
            let identity = shape.identity(row.try_get(0).doing(what)?);
            let number: i64 = row.try_get(1).doing(what)?;
            if side == 0 {
                found.rows += if shape.key.is_empty() { number.unsigned_abs() } else { 1 };
            }
            numbers.entry(identity).or_default()[side].push(number);
        }
    }
    let mut suspects: Vec<Vec<String>> = numbers
        .into_iter()
        .filter_map(|(identity, [mut theirs, mut ours])| {
            theirs.sort_unstable();
            ours.sort_unstable();
            (theirs != ours).then_some(identity)
        })
        .collect();
    suspects.sort_unstable();
    found.steps = looks(shape, suspects, part);
    Ok(found)
}

/// The steps that look these suspects up.
pub(super) fn looks(shape: &Shape, suspects: Vec<Vec<String>>, part: &Part) -> Vec<Step> {
    let at_once = if shape.key.is_empty() {
        KEYLESS_AT_ONCE
    } else {
        SUSPECTS_AT_ONCE
    };
    suspects
        .chunks(at_once)
        .map(|suspects| Step::Look(suspects.to_vec(), part.clone()))
        .collect()
}

/// Looks suspects up on both ends, and says which of them are different, see the head of compare.rs.
pub(super) async fn look(
    ends: &Ends,
    scope: &Scope,
    shape: &Shape,
    moment: &Moment,
    suspects: &[Vec<String>],
    part: &Part,
) -> Result<Found> {
    let rows = Part::Rows(suspects.to_vec());
    let (theirs, ours) = ends
        .ask(shape, &shape.provider.details(&rows), &shape.subscriber.details(&rows))
        .await?;
    let what = || format!("read table {}", shape.provider.name);
    let mut found = Found {
        read: (theirs.len() + ours.len()) as u64,
        ..Found::default()
    };
    let mut seen: HashMap<Vec<String>, [Vec<Seen>; 2]> = HashMap::new();
    let mut shown = HashMap::new();
    for (side, rows) in [theirs, ours].into_iter().enumerate() {
        for row in rows {
            let identity = shape.identity(row.try_get(0).doing(what)?);
            if let Some(text) = row.try_get::<_, Option<String>>(3).doing(what)? {
                shown.insert(identity.clone(), text);
            }
            seen.entry(identity).or_default()[side].push(Seen {
                columns: row.try_get(1).doing(what)?,
                number: row.try_get(2).doing(what)?,
            });
        }
    }
    let mut different = Vec::new();
    for suspect in suspects {
        let [mut theirs, mut ours] = seen.remove(suspect).unwrap_or_default();
        theirs.sort_unstable();
        ours.sort_unstable();
        if theirs != ours {
            different.push((suspect, theirs, ours));
        }
    }
    if different.is_empty() {
        return Ok(found);
    }
    let wanted = different.iter().map(|(suspect, ..)| *suspect).collect();
    let flying = ends.flying(scope, shape, moment, &wanted).await?;
    for (suspect, theirs, ours) in different {
        let first = match &flying {
            Flying::These(firsts) => firsts.get(suspect).copied(),
            Flying::Any => {
                found.flying.push((suspect.clone(), part.clone()));
                continue;
            }
        };
        // An event that makes the row cannot be applied where there is one, any other not where there is none.
        if let Some(first) = first
            && (first.inserts == ours.is_empty() || !shape.first_tells || moment.settling)
        {
            found.flying.push((suspect.clone(), part.clone()));
            continue;
        }
        let mut difference = Difference {
            kind: Kind::Changed,
            identity: suspect.clone(),
            columns: Vec::new(),
            copies: 1,
            shown: shown.remove(suspect),
            part: part.clone(),
            subscriber_rows: ours.len() as u64,
            subscriber_number: match &ours[..] {
                [one] => Some(one.number),
                _ => None,
            },
        };
        if let Some(first) = first {
            difference.kind = if first.inserts { Kind::Extra } else { Kind::Missing };
        } else if shape.key.is_empty() {
            let copies = |side: &[Seen]| side.first().and_then(|row| row.columns.first()).copied().unwrap_or(0);
            let (theirs, ours) = (copies(&theirs), copies(&ours));
            difference.copies = theirs.abs_diff(ours);
            difference.subscriber_rows = ours.unsigned_abs();
            difference.kind = if theirs > ours { Kind::Missing } else { Kind::Extra };
        } else {
            match (&theirs[..], &ours[..]) {
                ([], _) => difference.kind = Kind::Extra,
                (_, []) => difference.kind = Kind::Missing,
                ([theirs], [ours]) => {
                    let columns = shape.columns.iter().zip(theirs.columns.iter().zip(&ours.columns));
                    difference.columns = columns
                        .filter(|(_, (theirs, ours))| theirs != ours)
                        .map(|(name, _)| name.clone())
                        .collect();
                }
                // Without a unique index on the subscriber.
                _ => {}
            }
        }
        found.differences.push(difference);
    }
    Ok(found)
}

/// A row that was looked up: the numbers of its columns, and its own.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    columns: Vec<i64>,
    number: i64,
}
