//! The position: the last tick whose events are applied, on the subscriber.
//!
//! It is written in the transaction that applies the events, and nowhere else; that is what "exactly once" rests on.
//! The order at the first start is: intent (a row without a tick) on the subscriber, registration on the provider, tick
//! on the subscriber. So a crash in between leaves either an intent, which the next start completes, or nothing. A
//! position whose tick the provider no longer has is an error; nothing here ever moves a position to "now".

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;

/// The key of the row.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) consumer: String,
    pub(crate) queue: String,
}

/// The row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// `system identifier:database oid:queue_id`, or [`CASCADE`]
    pub(crate) provider_identity: String,
    /// None: an intent.
    pub(crate) tick: Option<i64>,
}

/// In place of a provider's identity in the position of a node.
pub(crate) const CASCADE: &str = "cascade";

/// Where the provider thinks the consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) last_tick: i64,
    /// The end of the open batch.
    pub(super) next_tick: Option<i64>,
}

impl Who {
    /// The same number on both ends, for the session locks that keep a second replay out.
    pub(crate) fn lock_key(&self) -> i64 {
        // FNV-1a: any hash that stays the same from version to version will do.
        let bytes = b"pgcascade replay"
            .iter()
            .chain(self.queue.as_bytes())
            .chain(&[0])
            .chain(self.consumer.as_bytes());
        bytes
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
            .cast_signed()
    }

    /// The same for changes of the set of tables, on the subscriber alone.
    pub(super) fn tables_lock_key(&self) -> i64 {
        self.lock_key() ^ 1
    }

    /// The position, if there is one.
    pub(crate) async fn load(&self, subscriber: &Client) -> Result<Option<Position>> {
        let row = subscriber
            .query_opt(
                "select provider_identity, tick from pgcascade_replay.position where consumer = $1 and queue = $2",
                &[&self.consumer, &self.queue],
            )
            .await
            .doing(|| format!("read the position of consumer \"{}\" on the subscriber", self.consumer))?;
        Ok(row.map(|row| Position {
            provider_identity: row.get(0),
            tick: row.get(1),
        }))
    }

    /// What the provider knows of the consumer; None: it is not registered there.
    pub(super) async fn subscription(&self, provider: &Client) -> Result<Option<Subscription>> {
        let row = provider
            .query_opt(include_str!("sql/subscription.sql"), &[&self.queue, &self.consumer])
            .await
            .doing(|| format!("look up consumer \"{}\" on the provider", self.consumer))?;
        Ok(row.map(|row| Subscription {
            last_tick: row.get(0),
            next_tick: row.get(1),
        }))
    }

    /// The position, and what the provider knows of the consumer, as at one moment: both are moved by a replay that runs
    /// beside this, the position first. Where it moved between two looks, the provider, which knew the consumer in between, is
    /// taken to have it at the later one.
    pub(super) async fn both(
        &self,
        provider: &Client,
        subscriber: &Client,
    ) -> Result<(Option<Position>, Option<Subscription>)> {
        let before = self.load(subscriber).await?;
        failpoint("after_position");
        let known = self.subscription(provider).await?;
        let position = self.load(subscriber).await?;
        Ok(as_of_one_moment(before, known, position))
    }

    /// Begins a batch's transaction and locks the row in it; returns its tick and the revision of the set of tables.
    pub(super) async fn begin(&self, subscriber: &Client) -> Result<Option<(i64, i64)>> {
        // Constraints that may be deferred are checked at the end: inside a transaction of the provider's they may have
        // been violated, too.
        let sql = format!(
            "begin isolation level read committed, read write; set constraints all deferred;
             select tick, revision from pgcascade_replay.position where {} for update",
            self.condition()
        );
        let messages = subscriber
            .simple_query(&sql)
            .await
            .doing(|| "begin a transaction on the subscriber".to_owned())?;
        Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((row.get(0)?.parse().ok()?, row.get(1)?.parse().ok()?)),
            _ => None,
        }))
    }

    /// Moves the row, which is locked, and commits.
    ///
    /// Both in one message: two requests, of which the first is prepared before it is executed, would be sent as
    /// PREPARE, COMMIT, EXECUTE if they were awaited together, and the data would be committed without its position.
    /// `beside` is what else is written with it: statements, each with its semicolon.
    pub(super) async fn commit(&self, subscriber: &Client, tick: i64, beside: &str) -> Result<()> {
        let sql = format!(
            "update pgcascade_replay.position set tick = {tick}, updated = pg_catalog.clock_timestamp() where {}; {beside}commit",
            self.condition()
        );
        subscriber
            .batch_execute(&sql)
            .await
            .doing(|| format!("move the position on the subscriber to tick {tick} and commit"))
    }

    /// Writes the position of a node, which is a tick of its cascade, whoever the provider is.
    pub(crate) async fn set(&self, subscriber: &Client, tick: i64) -> Result<()> {
        subscriber
            .execute(
                "insert into pgcascade_replay.position (consumer, queue, provider_identity, tick) values ($1, $2, $3, $4)
                 on conflict (consumer, queue) do update set provider_identity = excluded.provider_identity, tick = excluded.tick,
                                                             updated = pg_catalog.now()",
                &[&self.consumer, &self.queue, &CASCADE, &tick],
            )
            .await
            .doing(|| "write the position on the subscriber".to_owned())?;
        Ok(())
    }

    /// Locks the row, if there is one, against batches and changes of the set of tables, in the caller's transaction.
    pub(crate) async fn lock_row(&self, subscriber: &Client) -> Result<()> {
        subscriber
            .execute(
                "select from pgcascade_replay.position where consumer = $1 and queue = $2 for update",
                &[&self.consumer, &self.queue],
            )
            .await
            .doing(|| format!("lock the position of consumer \"{}\"", self.consumer))?;
        Ok(())
    }

    fn condition(&self) -> String {
        let (consumer, queue) = (
            super::table::literal(&self.consumer),
            super::table::literal(&self.queue),
        );
        format!("consumer = {consumer} and queue = {queue}")
    }

    /// Says, before the provider is told anything, that this consumer belongs to this subscriber. Leaves a tick alone.
    pub(super) async fn write_intent(&self, subscriber: &Client, provider_identity: &str) -> Result<()> {
        subscriber
            .execute(
                "insert into pgcascade_replay.position (consumer, queue, provider_identity) values ($1, $2, $3)
                 on conflict (consumer, queue) do update set provider_identity = excluded.provider_identity, updated = pg_catalog.now()
                  where position.tick is null",
                &[&self.consumer, &self.queue, &provider_identity],
            )
            .await
            .doing(|| "write the position on the subscriber".to_owned())?;
        Ok(())
    }

    /// Turns the intent into a position.
    pub(super) async fn write_first_tick(&self, subscriber: &Client, tick: i64) -> Result<()> {
        let changed = subscriber
            .execute(
                "update pgcascade_replay.position set tick = $3, updated = pg_catalog.now()
                  where consumer = $1 and queue = $2 and tick is null",
                &[&self.consumer, &self.queue, &tick],
            )
            .await
            .doing(|| "write the position on the subscriber".to_owned())?;
        if changed == 1 {
            Ok(())
        } else {
            Err(self.lost("its row on the subscriber was changed meanwhile"))
        }
    }

    /// Whether the provider can go on from where the subscriber is.
    pub(super) fn check(
        &self,
        position: &Position,
        provider_identity: &str,
        subscription: Option<Subscription>,
    ) -> Result<()> {
        let Some(tick) = position.tick else {
            return match subscription {
                // The intent named another database, so the registration here is not ours.
                Some(_) if position.provider_identity != provider_identity => Err(self.taken()),
                _ => Ok(()),
            };
        };
        if position.provider_identity == CASCADE {
            return Err(Error::usage(format!(
                "the subscriber is a node of queue \"{}\", whose replay is called \"{}\"",
                self.queue, self.consumer
            ))
            .hint("Leave out --provider and --consumer: the node knows both."));
        }
        if position.provider_identity != provider_identity {
            return Err(self.lost(&format!(
                "it was reached on another database or queue (identity {}, this provider is {provider_identity})",
                position.provider_identity
            )));
        }
        match subscription {
            None => Err(self.lost(&format!("the subscriber is at tick {tick}, but the consumer is not registered on the provider any more"))),
            Some(Subscription { last_tick, next_tick }) if last_tick == tick || next_tick == Some(tick) => Ok(()),
            Some(Subscription { last_tick, next_tick: None }) => {
                Err(self.lost(&format!("the subscriber is at tick {tick}, the provider has the consumer at tick {last_tick}")))
            }
            Some(Subscription { last_tick, next_tick: Some(next) }) => Err(self.lost(&format!(
                "the subscriber is at tick {tick}, the provider has the consumer in the batch from tick {last_tick} to {next}"
            ))),
        }
    }

    /// The provider knows the consumer, this subscriber does not.
    pub(super) fn taken(&self) -> Error {
        let Self { consumer, queue } = self;
        Error::failure(format!(
            "consumer \"{consumer}\" of queue \"{queue}\" is registered on the provider, but this subscriber has no position of it"
        ))
        .hint(format!(
            "It belongs to another subscriber: choose another --consumer name; or, if that one is gone: \
             select pgq.unregister_consumer({}, {}) on the provider",
            super::table::literal(queue),
            super::table::literal(consumer)
        ))
    }

    /// Replay cannot go on, and must not go on from anywhere else.
    pub(crate) fn lost(&self, why: &str) -> Error {
        let Self { consumer, queue } = self;
        Error::failure(format!("lost position of consumer \"{consumer}\" in queue \"{queue}\": {why}")).hint(format!(
            "Nothing was applied. To start over with a new copy: select pgq.unregister_consumer({queue}, {consumer}) on the provider, \
             delete from pgcascade_replay.position where consumer = {consumer} and queue = {queue} on the subscriber, \
             then replay with --truncate",
            queue = super::table::literal(queue),
            consumer = super::table::literal(consumer)
        ))
    }
}

/// Of a position, what the provider knew of the consumer after it, and a position after that.
fn as_of_one_moment(
    before: Option<Position>,
    known: Option<Subscription>,
    after: Option<Position>,
) -> (Option<Position>, Option<Subscription>) {
    if before == after {
        return (after, known);
    }
    let tick = after.as_ref().and_then(|position| position.tick);
    let at = |last_tick| Subscription {
        last_tick,
        next_tick: None,
    };
    let known = tick.map_or(known, |tick| known.map(|_| at(tick)));
    (after, known)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn who() -> Who {
        Who {
            consumer: "c".to_owned(),
            queue: "q".to_owned(),
        }
    }

    fn at(tick: Option<i64>) -> Position {
        Position {
            provider_identity: "1:2:3".to_owned(),
            tick,
        }
    }

    #[test]
    fn goes_on_only_from_the_same_place() {
        let ok = |tick, subscription| who().check(&at(tick), "1:2:3", subscription).is_ok();
        let open = |last_tick, next_tick| Some(Subscription { last_tick, next_tick });
        assert!(ok(Some(5), open(5, None)));
        assert!(ok(Some(5), open(5, Some(7))), "a batch is open, nothing of it applied");
        assert!(ok(Some(7), open(5, Some(7))), "applied, not finished");
        assert!(!ok(Some(6), open(5, Some(7))));
        assert!(!ok(Some(4), open(5, None)));
        assert!(!ok(Some(5), None));
        assert!(ok(None, None));
        assert!(
            ok(None, open(5, None)),
            "registered, then killed before the tick was written"
        );
    }

    #[test]
    fn a_position_that_moves_is_where_the_provider_has_it() {
        let known = Some(Subscription {
            last_tick: 7,
            next_tick: Some(9),
        });
        let moment = |before, known, after| {
            let (position, known) = as_of_one_moment(before, known, after);
            who().check(&position.unwrap(), "1:2:3", known).is_ok()
        };
        assert!(moment(Some(at(Some(5))), known, Some(at(Some(7)))));
        assert!(moment(Some(at(Some(5))), known, Some(at(Some(11)))));
        assert!(moment(None, known, Some(at(Some(7)))), "its first start");
        assert!(!moment(Some(at(Some(5))), known, Some(at(Some(5)))), "it does not move");
        assert!(!moment(Some(at(Some(5))), None, Some(at(Some(7)))), "not registered");
    }

    #[test]
    fn another_provider_is_refused() {
        let subscription = Some(Subscription {
            last_tick: 5,
            next_tick: None,
        });
        assert!(who().check(&at(Some(5)), "1:2:4", subscription).is_err());
        assert!(
            who().check(&at(None), "1:2:4", subscription).is_err(),
            "somebody else's registration"
        );
        assert!(who().check(&at(None), "1:2:4", None).is_ok());
    }

    #[test]
    fn keys_differ() {
        let other = Who {
            consumer: "q".to_owned(),
            queue: "c".to_owned(),
        };
        assert_ne!(who().lock_key(), other.lock_key());
        assert_eq!(who().lock_key(), who().lock_key());
    }
}
