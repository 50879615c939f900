//! A consumer that believes nothing: it reads a queue batch by batch and checks what must hold of all batches together.

use std::collections::HashSet;

use crate::cluster::{Db, eventually};

/// What consumer `c` of queue `q` was given so far.
#[derive(Default)]
pub(crate) struct Delivered {
    /// `ev_data` of all events, in the order of delivery.
    pub(crate) events: Vec<String>,
    /// The transactions of batches that are finished: none of them comes again.
    transactions: HashSet<i64>,
    /// The tick where the last batch ended.
    position: Option<i64>,
    pub(crate) batches: usize,
}

impl Delivered {
    /// Reads and finishes all batches up to the last tick that there is now: others may tick faster than we read. Each begins where the one before ended, its events are in the order of their
    /// ids, and the events of a transaction are in one batch.
    pub(crate) async fn read(&mut self, db: &Db) {
        let last = db
            .text("select max(tick_id) from pgq.tick join pgq.queue on queue_id = tick_queue where queue_name = 'q'")
            .await
            .parse::<i64>()
            .unwrap();
        while self.position.is_none_or(|position| position < last) {
            let batch = db
                .text("select batch_id, prev_tick_id, cur_tick_id from pgq.next_batch_info('q', 'c')")
                .await;
            if batch.starts_with("<null>") {
                return;
            }
            let fields: Vec<i64> = batch.split('|').map(|field| field.parse().unwrap()).collect();
            let [id, from, to] = fields[..] else { panic!("{batch}") };
            assert!(
                self.position.is_none_or(|position| position == from),
                "a batch from {from}, not {:?}",
                self.position
            );
            assert!(to > from);
            let text = db
                .text(&format!(
                    "select ev_id, ev_txid, ev_data from pgq.get_batch_events({id}) where ev_retry is null"
                ))
                .await;
            let (mut before, mut seen) = (0, HashSet::new());
            for line in text.lines() {
                let mut fields = line.splitn(3, '|');
                let mut number = || fields.next().unwrap().parse::<i64>().unwrap();
                let (event, transaction) = (number(), number());
                assert!(event > before, "event {event} after {before} in batch {id}");
                before = event;
                assert!(
                    !self.transactions.contains(&transaction),
                    "transaction {transaction} is in two batches"
                );
                seen.insert(transaction);
                self.events.push(fields.next().unwrap().to_owned());
            }
            self.transactions.extend(seen);
            assert_eq!(db.text(&format!("select pgq.finish_batch({id})")).await, "1");
            self.position = Some(to);
            self.batches += 1;
        }
    }

    /// Reads until as many events as were committed have come, and then what is left; they must be the same, each once.
    pub(crate) async fn read_until(&mut self, db: &Db, committed: &[String]) {
        let delivered = tokio::sync::Mutex::new(&mut *self);
        eventually(&format!("{} events are delivered", committed.len()), || async {
            let mut delivered = delivered.lock().await;
            delivered.read(db).await;
            delivered.events.len() >= committed.len()
        })
        .await;
        self.assert_is(committed);
    }

    /// What was delivered is what was committed.
    pub(crate) fn assert_is(&self, committed: &[String]) {
        let sorted = |events: &[String]| {
            let mut events = events.to_vec();
            events.sort();
            events
        };
        let (ours, theirs) = (sorted(&self.events), sorted(committed));
        if ours != theirs {
            let (given, wanted): (HashSet<_>, HashSet<_>) = (ours.iter().collect(), theirs.iter().collect());
            let lost: Vec<_> = wanted.difference(&given).take(10).collect();
            let extra: Vec<_> = given.difference(&wanted).take(10).collect();
            panic!(
                "{} events committed, {} delivered ({} different); lost {lost:?}, never committed {extra:?}",
                theirs.len(),
                ours.len(),
                given.len()
            );
        }
    }
}
