//! Applications: each writes to the node that is root, one transaction after the other, and remembers what was committed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::cluster::{Db, eventually};

/// The numbers that were given out, over all writers of the process.
static NEXT: AtomicI32 = AtomicI32::new(1_000_000);

/// What one has done.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) committed: BTreeSet<i32>,
    /// The longest time without a write that was taken.
    pub(crate) gap: Duration,
    pub(crate) refused: usize,
}

/// Some that write at the same time.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Done>>,
}

impl Writers {
    /// One per pair of sessions; each tries the two nodes in turn, beginning again where it was taken last.
    pub(crate) fn start(sessions: Vec<[Db; 2]>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicUsize::new(0));
        let tasks = sessions
            .into_iter()
            .enumerate()
            .map(|(i, nodes)| tokio::spawn(write(nodes, i, Arc::clone(&stop), Arc::clone(&written))))
            .collect();
        Self { stop, written, tasks }
    }

    /// Waits until they have written some more.
    pub(crate) async fn go_on(&self) {
        let wanted = self.written.load(Ordering::Relaxed) + 10;
        eventually("ten more writes", async || {
            self.written.load(Ordering::Relaxed) >= wanted
        })
        .await;
    }

    pub(crate) async fn stop(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Done::default();
        for task in self.tasks {
            let done = task.await.unwrap();
            all.committed.extend(done.committed);
            all.gap = all.gap.max(done.gap);
            all.refused += done.refused;
        }
        all
    }
}

async fn write(nodes: [Db; 2], which: usize, stop: Arc<AtomicBool>, written: Arc<AtomicUsize>) -> Done {
    let mut done = Done::default();
    let mut at = 0;
    let mut last = Instant::now();
    // One of them in transactions that keep their snapshot.
    let level = if which.is_multiple_of(2) {
        "read committed"
    } else {
        "repeatable read"
    };
    while !stop.load(Ordering::Relaxed) {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let sql = format!(
            "begin isolation level {level}; select count(*) from pgq.queue; insert into journal values ({number}, 'writer {which}');
             update t set n = n + 1 where id = {}; commit",
            1 + number % 500
        );
        match nodes[at].client.batch_execute(&sql).await {
            Ok(()) => {
                done.committed.insert(number);
                written.fetch_add(1, Ordering::Relaxed);
                done.gap = done.gap.max(last.elapsed());
                last = Instant::now();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => {
                let refused = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
                let message = refused.message().to_owned();
                assert!(
                    message.contains("disallowed") || message.contains("serialize"),
                    "{message}"
                );
                nodes[at].run("rollback").await;
                if message.contains("disallowed") {
                    at = 1 - at;
                    done.refused += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }
    done
}
