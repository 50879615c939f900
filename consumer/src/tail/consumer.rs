//! `--consumer`: a registration in the queue, which rotation waits for, and a position that is kept there.
//!
//! The position is the queue's own: a batch is opened, the ticks in it are printed one by one, and it is finished once
//! what was printed is flushed. A crash in between leaves it open, and its events are printed again by the next process:
//! at least once. Within one process, lost connections included, nothing is printed twice, as the [`Place`] decides
//! what is printed, and the batch only when the position moves.
//!
//! A session lock on the consumer's name, the same that replay takes, keeps a second reader of the same name out: both
//! would get the same batches.

use tokio_postgres::Client;

use super::Tail;
use super::ticks::Place;
use crate::cli::From;
use crate::connect::End;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::{LOCK_PATIENCE, LOCK_PATIENCE_AGAIN, Who, lock};

/// The registration.
pub(super) struct Registered {
    who: Who,
    /// Under which events that this consumer wanted to see again stand in the queue (`pgq.subscription.sub_id`).
    pub(super) owner: i32,
    /// None: it was registered just now, or begins where it is.
    position: Option<i64>,
    batch: Option<Batch>,
}

#[derive(Clone, Copy)]
struct Batch {
    id: i64,
    end: i64,
}

impl Registered {
    /// Takes the name. Nothing is registered yet if it is new. `again`: after a lost connection.
    pub(super) async fn open(tail: &Tail<'_>, name: &str, again: bool) -> Result<Self> {
        let who = Who {
            consumer: name.to_owned(),
            queue: tail.queue().to_owned(),
        };
        let client = &tail.session.client;
        let patience = if again { LOCK_PATIENCE_AGAIN } else { LOCK_PATIENCE };
        lock(client, End::Provider, &who, patience).await?;
        let mut this = Self {
            who,
            owner: 0,
            position: None,
            batch: None,
        };
        this.look_up(client).await?;
        if again && this.position.is_none() {
            return Err(Error::failure(format!("{this} was unregistered meanwhile"))
                .hint("Events may be lost for it by now; started again it is registered anew."));
        }
        Ok(this)
    }

    async fn look_up(&mut self, client: &Client) -> Result<()> {
        let row = client
            .query_opt(
                "select s.sub_id, s.sub_last_tick
                   from pgq.subscription s
                   join pgq.queue q on q.queue_id = s.sub_queue
                   join pgq.consumer c on c.co_id = s.sub_consumer
                  where q.queue_name = $1 and c.co_name = $2",
                &[&self.who.queue, &self.who.consumer],
            )
            .await
            .doing(|| format!("look up {self}"))?;
        if let Some(row) = row {
            self.owner = row.get(0);
            self.position = Some(row.get(1));
        }
        Ok(())
    }

    /// Where it begins: at its position or at --from, whichever is later; a new one at --from, or now.
    pub(super) async fn begin(&mut self, tail: &Tail<'_>, from: Option<From>) -> Result<Place> {
        if let Some(position) = self.position {
            let later = match from {
                Some(from @ (From::Tick(tick) | From::Event { tick, .. })) if tick > position => Some(from),
                _ => None,
            };
            let place = match later {
                Some(from) => tail.start(from).await?,
                None => Place::after(position),
            };
            tracing::debug!(consumer = self.who.consumer, tick = place.tick, "goes on");
            return Ok(place);
        }
        let client = &tail.session.client;
        let place = match from {
            Some(from) => Some(tail.start(from).await?),
            None => None,
        };
        client
            .execute(
                "select pgq.register_consumer_at($1, $2, $3)",
                &[&self.who.queue, &self.who.consumer, &place.map(|place| place.tick)],
            )
            .await
            .doing(|| format!("register {self}"))?;
        self.look_up(client).await?;
        match (place, self.position) {
            (Some(place), _) => Ok(place),
            (None, Some(position)) => Ok(Place::after(position)),
            (None, None) => Err(Error::failure(format!("{self} was unregistered meanwhile"))),
        }
    }

    /// Whether a batch is open that is printed to its end.
    pub(super) fn is_done(&self, place: Place) -> bool {
        self.batch.is_some_and(|batch| batch.end <= place.tick)
    }

    /// Opens the next batch unless one is open; whether there is one.
    pub(super) async fn has_batch(&mut self, tail: &Tail<'_>) -> Result<bool> {
        if self.batch.is_none() {
            let row = tail
                .session
                .client
                .query_one(
                    "select batch_id, cur_tick_id from pgq.next_batch_info($1, $2)",
                    &[&self.who.queue, &self.who.consumer],
                )
                .await
                .doing(|| format!("open the next batch of {self}"))?;
            let (id, end): (Option<i64>, Option<i64>) = (row.get(0), row.get(1));
            self.batch = id.zip(end).map(|(id, end)| Batch { id, end });
        }
        Ok(self.batch.is_some())
    }

    /// Moves the position to the end of the batch.
    pub(super) async fn finish(&mut self, tail: &Tail<'_>) -> Result<()> {
        let Some(batch) = self.batch.take() else { return Ok(()) };
        failpoint("after_flush");
        let finished: i32 = tail
            .session
            .client
            .query_one("select pgq.finish_batch($1)", &[&batch.id])
            .await
            .doing(|| format!("move the position of {self}"))?
            .get(0);
        if finished == 1 {
            return Ok(());
        }
        Err(
            Error::failure(format!("the batch of {self} was ended by somebody else")).hint(
                "Another program reads under the same name, or moved or removed the consumer: give this one a name of its own.",
            ),
        )
    }
}

impl std::fmt::Display for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "consumer \"{}\" of queue \"{}\"", self.who.consumer, self.who.queue)
    }
}
