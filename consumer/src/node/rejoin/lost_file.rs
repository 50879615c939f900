//! The file of lost events: one JSON object per line, and a last line that says how many there are and what the hash of all before it is.
//!
//! It is whole or not there: written under another name in the same folder, made durable, read back, and only then renamed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;

use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio_postgres::Row;

use super::Return;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::node::tree::Reached;

/// The texts as UTF-8; of a database that does not know what its own are, as they are.
const EVENTS: &str = "select e.tick, e.ev_id, e.ev_time::text, e.ev_txid, e.epoch,
        pg_catalog.convert_to(e.ev_type, x.encoding), pg_catalog.convert_to(e.ev_data, x.encoding),
        pg_catalog.convert_to(e.ev_extra1, x.encoding), pg_catalog.convert_to(e.ev_extra2, x.encoding),
        pg_catalog.convert_to(e.ev_extra3, x.encoding), pg_catalog.convert_to(e.ev_extra4, x.encoding)
   from pgcascade.lost_event e,
        (select case pg_catalog.getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end) x (encoding)
  where e.op_id = $1::text::uuid and e.queue_name = $2 order by e.number";

const TEXTS: [&str; 6] = ["ev_type", "ev_data", "ev_extra1", "ev_extra2", "ev_extra3", "ev_extra4"];

/// Writes it, unless it is there with the same contents. Returns the hash of its events.
pub(super) async fn write(old: &Reached, found: &Return, path: &Path) -> Result<String> {
    let shown = path.display();
    let part = part_of(path)?;
    let written = format!("write the lost events to {}", part.display());
    let what = || written.clone();
    let mut out = BufWriter::new(File::create(&part).doing(what)?);
    let mut hash = Sha256::new();
    let mut events: i64 = 0;
    let rows = old
        .client()
        .query_raw(EVENTS, [&found.op, &old.node.queue])
        .await
        .doing(|| format!("read the lost events of {}", old.node.title()))?;
    let mut rows = pin!(rows);
    while let Some(row) = rows
        .try_next()
        .await
        .doing(|| format!("read the lost events of {}", old.node.title()))?
    {
        let line = line(&row);
        hash.update(line.as_bytes());
        out.write_all(line.as_bytes()).doing(what)?;
        events += 1;
    }
    let sha256 = hex(hash.finalize().as_slice());
    out.write_all(footer(old, found, events, &sha256).as_bytes())
        .doing(what)?;
    let file = out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .doing(what)?;
    file.sync_all().doing(what)?;
    drop(file);
    failpoint("rejoin_written");
    check(&part, events, &sha256)?;
    if events != found.lost {
        return Err(Error::failure(format!(
            "{events} lost events of {} were written, and there are {}",
            old.node.title(),
            found.lost
        ))
        .hint("Nothing was removed. Somebody changed pgcascade.lost_event: type the command again, which saves them anew."));
    }
    if path.exists() {
        if fs::read(path).doing(|| format!("read {shown}"))?
            != fs::read(&part).doing(|| format!("read {}", part.display()))?
        {
            fs::remove_file(&part).doing(what)?;
            return Err(Error::failure(format!(
                "{shown} exists, and holds something else than these {events} lost events"
            ))
            .hint("Nothing was removed. Name another file in --lost-events."));
        }
        fs::remove_file(&part).doing(what)?;
    } else {
        fs::rename(&part, path).doing(|| format!("rename {} to {shown}", part.display()))?;
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let durable = || format!("make the folder of {shown} durable");
    File::open(folder).doing(durable)?.sync_all().doing(durable)?;
    failpoint("rejoin_renamed");
    check(path, events, &sha256)?;
    tracing::info!(file = %shown, events, sha256, "lost events written");
    Ok(sha256)
}

/// Beside it: the folder is the same, so the file can be renamed, and what was left by a kill is overwritten.
fn part_of(path: &Path) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::usage(format!("--lost-events {} names no file", path.display())))?;
    let mut name = name.to_owned();
    name.push(".part");
    Ok(path.with_file_name(name))
}

fn line(row: &Row) -> String {
    let mut object = Map::new();
    object.insert("epoch".to_owned(), row.get::<_, i64>(4).into());
    object.insert("tick".to_owned(), row.get::<_, Option<i64>>(0).into());
    object.insert("ev_id".to_owned(), row.get::<_, i64>(1).into());
    object.insert("ev_time".to_owned(), row.get::<_, String>(2).into());
    object.insert("ev_txid".to_owned(), row.get::<_, i64>(3).into());
    for (i, name) in TEXTS.into_iter().enumerate() {
        object.insert(name.to_owned(), text(row.get(5 + i)));
    }
    format!("{}\n", Value::from(object))
}

/// What is not UTF-8 cannot be a text in JSON.
fn text(bytes: Option<&[u8]>) -> Value {
    match bytes.map(std::str::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(_)) => serde_json::json!({ "hex": hex(bytes.unwrap_or_default()) }),
    }
}

fn footer(old: &Reached, found: &Return, events: i64, sha256: &str) -> String {
    let footer = serde_json::json!({
        "lost_events": events,
        "sha256": sha256,
        "queue": old.node.queue,
        "node": old.node.name,
        "takeover": found.op,
        "fork_tick": found.fork,
    });
    format!("{footer}\n")
}

/// What is on the disk is what was written.
fn check(path: &Path, events: i64, sha256: &str) -> Result<()> {
    let what = || format!("read {} back", path.display());
    let mut reader = BufReader::new(File::open(path).doing(what)?);
    let mut hash = Sha256::new();
    let mut lines: i64 = 0;
    let mut line = Vec::new();
    let mut last = Vec::new();
    while reader.read_until(b'\n', &mut line).doing(what)? > 0 {
        if !last.is_empty() {
            hash.update(&last);
            lines += 1;
        }
        std::mem::swap(&mut last, &mut line);
        line.clear();
    }
    let footer: Option<Value> = serde_json::from_slice(&last).ok();
    let says = |name: &str| footer.as_ref().and_then(|footer| footer.get(name));
    let holds = lines == events
        && hex(hash.finalize().as_slice()) == sha256
        && says("lost_events").and_then(Value::as_i64) == Some(events)
        && says("sha256").and_then(Value::as_str) == Some(sha256);
    if holds {
        return Ok(());
    }
    Err(
        Error::failure(format!("{} does not hold what was written to it", path.display()))
            .hint("Nothing was removed. See to its disk, or name a file on another one."),
    )
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
