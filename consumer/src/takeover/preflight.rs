//! What is looked at before a takeover: nothing is changed here, and everything that stands against it is named at once.

mod adopted;
mod gate;
mod leaves;
pub(super) mod onward;
pub(super) mod standby;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;

use super::journal::{Begin, Op};
use super::merged;
use super::planned::{self, Captured, Limits};
use super::sequences::{self, Sequence};
use super::step::{Kind, Step};
use crate::cascade::Role;
use crate::cli::TakeoverArgs;
use crate::connect::exists;
use crate::error::{Doing, Error, Result};
use crate::node::change::{BEGINS_ANEW, is_replayed};
use crate::node::tree::{self, HIGHEST, Reached};
use crate::replay::table::literal;

/// How long the old root is given to show that it is not dead.
const PROBE: Duration = Duration::from_secs(10);

/// How long a ticker may take to start: its launcher looks once in a while, after CREATE EXTENSION as after a changed setting.
const TICKER_STARTS: Duration = Duration::from_secs(10);

/// How often it is looked for meanwhile.
const POLL: Duration = Duration::from_millis(100);

const NOBODY_CONFIRMS: &str = "no other branch is left that could confirm the new root";
const SAY_HOW: &str = "make sure that the old root is off and stays off, and say how: --fenced-by TEXT";

/// What was found.
pub(super) struct Found {
    kind: Kind,
    /// How many other nodes have to confirm.
    confirms: i32,
    new: String,
    old: String,
    queue: String,
    /// One more than any epoch that is known or promised.
    epoch: i64,
    /// How far the new root is behind, in ticks.
    behind: i64,
    /// The other nodes, and what becomes of each.
    others: Vec<String>,
    /// What stands against it, and what to do about it.
    against: Vec<(String, String)>,
}

/// What one node says of itself.
struct Facts {
    version: String,
    epoch: i64,
    promised_op: Option<String>,
    /// The node has that takeover's journal.
    of_itself: bool,
    delayed: i64,
    merged: bool,
    top: i64,
    /// Whether a ticker of ours runs in the database.
    ticker: bool,
}

/// Looks at the new root, the old one, and the others.
pub(super) async fn look(new: &Reached, live: Option<Op>, args: &TakeoverArgs) -> Result<Found> {
    let queue = &new.node.queue;
    let old = tree::root(new).await?.ok_or_else(|| {
        Error::failure(format!("{} is the root already", new.node.title()))
            .hint("consumer status shows the cascade; a takeover that was interrupted goes on with --resume.")
    })?;
    let mut found = Found::new(Kind::Planned, new, &old.node.name, live);
    if let Some(from) = args.from.as_ref().filter(|from| **from != old.node.name) {
        found.add(
            format!("the root is \"{}\", not \"{from}\"", old.node.name),
            "leave --from out, or correct it",
        );
    }
    let (mut ours, theirs) = (facts(new).await?, facts(&old).await?);
    let deadline = Instant::now() + TICKER_STARTS;
    while theirs.ticker && !ours.ticker && Instant::now() < deadline {
        sleep(POLL).await;
        ours = facts(new).await?;
    }
    found.behind = theirs.top - ours.top;
    found.compare(&ours, &theirs);
    found.tables(new, &old, &args.ignore_table).await?;
    found.adopted(new).await?;
    found.against.extend(merged::against(new, Some(&old)).await?);
    found.epoch = ours.epoch.max(theirs.epoch) + 1;
    for known in tree::known(new).await? {
        if known.name == new.node.name || known.name == old.node.name || known.dead {
            continue;
        }
        let look = async {
            let other = tree::reach_known(&known, queue).await?;
            let (role, provider) = (other.node.role.word(), &other.node.provider);
            found.others.push(if *provider == old.node.name {
                format!("{role} \"{}\" will read from \"{}\"", known.name, found.new)
            } else {
                format!("{role} \"{}\" goes on reading from \"{provider}\"", known.name)
            });
            if other.node.role == Role::Leaf {
                found.promised_leaf(&other).await?;
            } else {
                found.promised(&facts(&other).await?, &known.name);
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = look.await {
            found.add(
                format!(
                    "node \"{}\" cannot be reached, so it could not be told: {error}",
                    known.name
                ),
                "start it; or, if it will not come back: consumer node drop --dead",
            );
        }
    }
    // A replay that is about to start is waited for, as right after a takeover in the other direction.
    let waits = !args.plan && found.against.is_empty();
    let patience = if waits {
        Duration::from_secs(args.timeout)
    } else {
        BEGINS_ANEW
    };
    found.replays(new, &old, patience).await?;
    Ok(found)
}

/// The tables once more, and the delayed events, while the takeover can still be given up: they come, and copies begin, after it was
/// begun.
pub(super) async fn look_again(new: &Reached, old: &Reached, limits: &Limits) -> Result<()> {
    let mut found = Found::new(Kind::Planned, new, &old.node.name, None);
    found.tables(new, old, &limits.ignored).await?;
    found.delayed(&facts(old).await?);
    found.into_result().map(drop)
}

/// Who brings the new root the closing tick, once more: while that is waited for, nobody can write.
pub(super) async fn look_for_replays(new: &Reached, old: &Reached, patience: Duration) -> Result<()> {
    let mut found = Found::new(Kind::Planned, new, &old.node.name, None);
    found.replays(new, old, patience).await?;
    found.into_result().map(drop)
}

/// The same where the old root is gone: what the others have is all there is, so all of them are asked.
pub(super) async fn look_without(new: &Reached, old: &str, live: Option<Op>, args: &TakeoverArgs) -> Result<Found> {
    let queue = &new.node.queue;
    if new.node.role == Role::Root {
        return Err(Error::failure(format!("{} is the root already", new.node.title()))
            .hint("consumer status shows the cascade; a takeover that was interrupted goes on with --resume."));
    }
    let mut found = Found::new(Kind::Dead, new, old, live);
    found.gone(new, old, args).await?;
    let ours = facts(new).await?;
    let mut furthest = ours.top;
    let (mut branches, mut leaves) = (0, Vec::new());
    let mut standbys = gate::followed(new).await?;
    found.epoch = ours.epoch + 1;
    found.merged(&ours, &new.node.name);
    found.stand_alone(new, &args.ignore_table).await?;
    found.adopted(new).await?;
    found.against.extend(merged::against(new, None).await?);
    for known in tree::known(new).await? {
        if known.name == new.node.name || known.name == old || args.lost.contains(&known.name) {
            continue;
        }
        match tree::reach_known(&known, queue).await {
            Err(_) if known.dead => {}
            Ok(other) if known.dead && other.node.role != Role::Leaf => found.add(
                format!(
                    "node \"{}\" was declared dead and answers: it may have what no other has",
                    known.name
                ),
                &format!(
                    "give it up with --lost; or let it take part: select pgq_node.register_location({}, {}, null, false) on the new root",
                    literal(queue),
                    literal(&known.name)
                ),
            ),
            Ok(other) if other.node.role == Role::Leaf => leaves.push((known, other)),
            Ok(other) if other.node.role == Role::Root => found.add(
                format!("\"{}\" is the root", known.name),
                "leave --dead out, or name that one",
            ),
            Ok(other) => {
                let theirs = facts(&other).await?;
                found.epoch = found.epoch.max(theirs.epoch + 1);
                furthest = furthest.max(theirs.top);
                branches += 1;
                found.beside(new, &other, &args.ignore_table).await?;
                standbys.extend(gate::followed(&other).await?);
                found
                    .others
                    .push(format!("branch \"{}\" is at tick {}", known.name, theirs.top));
            }
            Err(error) => found.add(
                format!(
                    "node \"{}\" cannot be reached, and may have what no other has: {error}",
                    known.name
                ),
                "start it; or give it up with --lost",
            ),
        }
    }
    let top = found.leaves(new, furthest, leaves).await?;
    found.behind = top - ours.top;
    found.standbys(standbys, top, args);
    if branches == 0 {
        found.confirms = 0;
        if args.fenced_by.is_none() {
            found.add(NOBODY_CONFIRMS.to_owned(), SAY_HOW);
        }
    }
    Ok(found)
}

async fn facts(at: &Reached) -> Result<Facts> {
    let row = at
        .client()
        .query_one(
            "select e.extversion, greatest(s.epoch, s.promised_epoch), s.promised_op::text,
                    (select count(*) from pgcascade.delayed_event d join pgq.queue q on q.queue_id = d.queue_id where q.queue_name = $1),
                    exists (select from pgq_node.node_info m where m.combined_queue = $1),
                    coalesce((select max(t.tick_id) from pgq.tick t join pgq.queue q on q.queue_id = t.tick_queue where q.queue_name = $1), 0),
                    exists (select from pg_catalog.pg_locks l join pg_catalog.pg_database b on b.oid = l.database
                             where b.datname = pg_catalog.current_database() and l.locktype = 'object' and l.granted
                               and l.classid = 'pg_catalog.pg_extension'::pg_catalog.regclass and l.objid = 0),
                    exists (select from pgcascade.takeover t where t.op_id = s.promised_op)
               from pgcascade.node_state s, pg_catalog.pg_extension e
              where s.queue_name = $1 and e.extname = 'pgcascade'",
            &[&at.node.queue],
        )
        .await
        .doing(|| format!("look at {}", at.node.title()))?;
    Ok(Facts {
        version: row.get(0),
        epoch: row.get(1),
        promised_op: row.get(2),
        delayed: row.get(3),
        merged: row.get(4),
        top: row.get(5),
        ticker: row.get(6),
        of_itself: row.get(7),
    })
}

/// How far each table's replay is, by its name on the subscriber.
async fn states(at: &Reached) -> Result<HashMap<(String, String), String>> {
    if !exists(&at.client(), "pgcascade_replay.table_state").await? {
        return Ok(HashMap::new());
    }
    let rows = at
        .client()
        .query(
            "select subscriber_schema, subscriber_table, state from pgcascade_replay.table_state where consumer = $1 and queue = $2",
            &[&at.node.worker, &at.node.queue],
        )
        .await
        .doing(|| format!("read the states of the tables of {}", at.node.title()))?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

/// Whether a table is left behind on purpose.
fn is_ignored(ignored: &[String], (schema, table): &(String, String)) -> bool {
    ignored.contains(&format!("{schema}.{table}"))
}

impl Found {
    fn new(kind: Kind, new: &Reached, old: &str, live: Option<Op>) -> Self {
        let mut found = Self {
            kind,
            confirms: 1,
            new: new.node.name.clone(),
            old: old.to_owned(),
            queue: new.node.queue.clone(),
            epoch: 1,
            behind: 0,
            others: Vec::new(),
            against: Vec::new(),
        };
        if let Some(op) = live {
            let why = op.error.map(|error| format!(": {error}")).unwrap_or_default();
            found.add(
                format!(
                    "takeover {} from \"{}\" is under way: {} since {}{why}",
                    op.id,
                    op.old,
                    op.step.map_or("aborted", Step::word),
                    op.since
                ),
                "finish it with --resume, or give it up with --abort",
            );
        }
        found
    }

    fn add(&mut self, what: String, remedy: &str) {
        self.against.push((what, remedy.to_owned()));
    }

    fn compare(&mut self, ours: &Facts, theirs: &Facts) {
        if ours.version != theirs.version {
            self.add(
                format!(
                    "the extension is version {} on \"{}\" and {} on \"{}\"",
                    ours.version, self.new, theirs.version, self.old
                ),
                "alter extension pgcascade update",
            );
        }
        for (facts, name) in [(ours, self.new.clone()), (theirs, self.old.clone())] {
            self.promised(facts, &name);
            self.merged(facts, &name);
        }
        if theirs.ticker && !ours.ticker {
            self.add(
                format!("no ticker runs in the database of \"{}\", so that nothing that is written there would be replayed", self.new),
                "add pgcascade to shared_preload_libraries of its server and restart it; pgcascade.ticker may be off there",
            );
        }
        self.delayed(theirs);
    }

    fn delayed(&mut self, theirs: &Facts) {
        if theirs.delayed > 0 {
            self.add(
                format!(
                    "{} delayed events wait on \"{}\", and stay there",
                    theirs.delayed, self.old
                ),
                "wait until they are due, or cancel them with pgcascade.cancel_event_at()",
            );
        }
    }

    /// The nodes that are given up must not answer.
    async fn gone(&mut self, new: &Reached, old: &str, args: &TakeoverArgs) -> Result<()> {
        for gone in args.lost.iter().map(String::as_str).chain([old]) {
            let known = tree::find(new, gone).await?;
            let remedy = "if it is the root, leave --dead out; else stop it";
            match timeout(PROBE, tree::reach_known(&known, &new.node.queue)).await {
                Ok(Ok(_)) => self.add(format!("node \"{gone}\" answers, and is not dead"), remedy),
                // One that refuses us may take what others write; one without the database does not.
                Ok(Err(error))
                    if error
                        .sqlstate()
                        .is_some_and(|state| *state != SqlState::INVALID_CATALOG_NAME) =>
                {
                    self.add(format!("the server of node \"{gone}\" answers: {error}"), remedy);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A node that is promised to another takeover would not follow this one.
    fn promised(&mut self, facts: &Facts, name: &str) {
        let Some(op) = &facts.promised_op else { return };
        let remedy = if facts.of_itself {
            format!("finish or abort that one first: consumer takeover {name} with --resume or --abort")
        } else {
            "finish or abort that one first: it is in pgcascade.takeover of the node that was to become root".to_owned()
        };
        self.add(format!("node \"{name}\" is promised to takeover {op}"), &remedy);
    }

    fn merged(&mut self, facts: &Facts, name: &str) {
        if facts.merged {
            self.add(
                format!("other queues are merged into this one on node \"{name}\""),
                "the takeover of a combined queue is not there yet; use pgq_node.demote_root() and promote_branch()",
            );
        }
    }

    /// Whether what the new root replays is whole, as there is nothing to compare it with.
    async fn stand_alone(&mut self, new: &Reached, ignored: &[String]) -> Result<()> {
        let captured = planned::captured(new).await?;
        for (name, state) in states(new).await? {
            let part_of = captured.get(&name).and_then(|captured| captured.part_of.as_ref());
            if is_ignored(ignored, part_of.unwrap_or(&name)) {
                continue;
            }
            let table = format!("{}.{}", name.0, name.1);
            if state != "ok" {
                self.add(
                    format!("table {table} is {state} on \"{}\"", self.new),
                    "choose a branch that has all of it; or leave it behind with --ignore-table",
                );
            } else if !captured.contains_key(&name) {
                self.add(
                    format!("table {table} has no triggers on \"{}\"", self.new),
                    "restart the node's replay, which makes them",
                );
            }
        }
        Ok(())
    }

    /// What another branch captures was captured on the root, too, so the new one has to have it, and to capture it.
    async fn beside(&mut self, new: &Reached, other: &Reached, ignored: &[String]) -> Result<()> {
        let (ours, theirs) = (states(new).await?, states(other).await?);
        let here = planned::captured(new).await?;
        for (name, Captured { events, part_of }) in planned::captured(other).await? {
            if is_ignored(ignored, part_of.as_ref().unwrap_or(&name)) {
                continue;
            }
            let table = format!("table {}.{}", name.0, name.1);
            let (new, other) = (&self.new, &other.node.name);
            let what = if theirs.contains_key(&name) && !ours.contains_key(&name) {
                format!("{table} is replayed to \"{other}\", and not to \"{new}\"")
            } else if events & !here.get(&name).map_or(0, |captured| captured.events) != 0 {
                format!("{table} is captured on \"{other}\", and not, or less, on \"{new}\"")
            } else {
                continue;
            };
            self.add(
                what,
                "choose that branch; or leave the table behind with --ignore-table",
            );
        }
        Ok(())
    }

    /// Whether the new root, and who is between it and the old one, get what the old one still gives.
    async fn replays(&mut self, new: &Reached, old: &Reached, patience: Duration) -> Result<()> {
        let mut above = None::<Reached>;
        for _ in 0..HIGHEST {
            let here = above.as_ref().unwrap_or(new);
            let now = here.node.reload(&here.client()).await?;
            if now.paused {
                self.add(
                    format!("{} is paused", now.title()),
                    &format!("let it go on: consumer node resume {}", now.name),
                );
            } else if !is_replayed(here, patience).await? {
                self.add(
                    format!(
                        "no replay of {} runs, which has to apply what \"{}\" still gives",
                        now.title(),
                        self.old
                    ),
                    &format!(
                        "start it: consumer replay, its --subscriber the database of \"{}\"",
                        now.name
                    ),
                );
            }
            if now.provider == old.node.name || now.role == Role::Root {
                break;
            }
            above = Some(tree::reach_known(&tree::find(here, &now.provider).await?, &now.queue).await?);
        }
        Ok(())
    }

    async fn tables(&mut self, new: &Reached, old: &Reached, ignored: &[String]) -> Result<()> {
        let captured = planned::captured(new).await?;
        let states = states(new).await?;
        let mut needed = planned::captured(old).await?;
        needed.retain(|name, captured| !is_ignored(ignored, captured.part_of.as_ref().unwrap_or(name)));
        for (name, Captured { events, part_of }) in &needed {
            let table = format!("{}.{}", name.0, name.1);
            let here = captured.get(name).map_or(0, |captured| captured.events);
            let lacks = events & !here != 0;
            if let Some((schema, whole)) = part_of {
                if lacks {
                    self.add(
                        format!(
                            "partition {table} of table {schema}.{whole} is missing on \"{}\", or not captured as on \"{}\"",
                            self.new, self.old
                        ),
                        "wait until the node's replay has made it, or restart that",
                    );
                }
                continue;
            }
            match states.get(name).map(String::as_str) {
                None => self.add(
                    format!("table {table} is not replayed to \"{}\"", self.new),
                    "have the node replay it: consumer table add; or leave it behind with --ignore-table",
                ),
                Some("ok") => {}
                Some(state) => self.add(
                    format!("table {table} is {state} on \"{}\"", self.new),
                    if state == "broken" {
                        "have it copied again: consumer table resync; or leave it behind with --ignore-table"
                    } else {
                        "wait until it is ok: consumer status"
                    },
                ),
            }
            if states.contains_key(name) && lacks {
                self.add(
                    format!(
                        "triggers of table {table} on \"{}\" do not capture what those on \"{}\" do",
                        self.new, self.old
                    ),
                    "restart the node's replay, which makes those that it needs; make others by hand",
                );
            }
        }
        let (here, there) = tokio::try_join!(sequences::all(new), sequences::all(old))?;
        for Sequence {
            table, column, name, ..
        } in there.iter().filter(|sequence| needed.contains_key(&sequence.table))
        {
            let what = format!("column {column} of table {}.{}", table.0, table.1);
            match here.iter().find(|here| (&here.table, &here.column) == (table, column)) {
                None => self.add(
                    format!("{what} draws from sequence {name} on \"{}\", and from none on \"{}\"", self.old, self.new),
                    "give it one there: alter table add generated as identity, alter sequence owned by, or alter column set default",
                ),
                Some(ours) if !ours.may_set => self.add(
                    format!(
                        "{what} draws from sequence {} on \"{}\", and this role may not set that",
                        ours.name, self.new
                    ),
                    &format!("grant select, update on sequence {}", ours.name.quoted()),
                ),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// For a person.
    pub(super) fn plan(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "queue {}: root \"{}\" -> \"{}\", epoch {}; \"{}\" is {} ticks behind",
            self.queue, self.old, self.new, self.epoch, self.new, self.behind
        );
        for (number, step) in self.kind.steps().iter().enumerate() {
            let _ = writeln!(out, "  {} {:<9}  {}", number + 1, step.word(), step.means());
        }
        for other in &self.others {
            let _ = writeln!(out, "  {other}");
        }
        for (what, remedy) in &self.against {
            let _ = writeln!(out, "  AGAINST IT: {what}\n    REMEDY: {remedy}");
        }
        out
    }

    /// What is to be begun; or all that stands against it.
    pub(super) fn into_result(self) -> Result<Begin> {
        if self.against.is_empty() {
            return Ok(Begin {
                kind: self.kind,
                old: self.old,
                epoch: self.epoch,
                confirms: self.confirms,
            });
        }
        let mut lines = String::new();
        for (what, remedy) in &self.against {
            let _ = write!(lines, "{}{what} ({remedy})", if lines.is_empty() { "" } else { "; " });
        }
        Err(Error::failure(format!(
            "node \"{}\" cannot become the root of queue \"{}\" now: {lines}",
            self.new, self.queue
        ))
        .hint("Nothing was changed. --plan shows the same as a list."))
    }
}
