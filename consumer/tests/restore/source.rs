//! A database with queues in a random state, and what each of its consumers has not finished, noted on the side.

use std::collections::BTreeMap;

use super::cluster::{Cluster, Db};

/// Numbers that look random and are the same for the same seed (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).expect("below a usize")
    }
}

/// Texts of events with their retry count, and how often each is to come.
pub(crate) type Events = BTreeMap<(String, String), i64>;

/// A consumer; the ordinary kind has one session, the cooperative one has two subconsumers.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) queue: &'static str,
    pub(crate) name: &'static str,
    pub(crate) subconsumers: &'static [&'static str],
    /// What it has not finished.
    pub(crate) pending: Events,
}

pub(crate) const QUEUES: [&str; 3] = ["q.one", "it's \"two\"", "tree"];

pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Reader {
    pub(crate) fn new(queue: &'static str, name: &'static str, subconsumers: &'static [&'static str]) -> Self {
        Self {
            queue,
            name,
            subconsumers,
            pending: Events::new(),
        }
    }

    pub(crate) fn sessions(&self) -> usize {
        self.subconsumers.len().max(1)
    }

    /// Opens the next batch, or the one that is open. None: there is none.
    pub(crate) async fn next(&self, db: &Db, session: usize) -> Option<String> {
        let (queue, name) = (quoted(self.queue), quoted(self.name));
        let batch = match self.subconsumers.get(session) {
            None => db.text(&format!("select pgq.next_batch({queue}, {name})")).await,
            Some(sub) => {
                db.text(&format!("select pgq_coop.next_batch({queue}, {name}, {})", quoted(sub)))
                    .await
            }
        };
        (batch != "<null>").then_some(batch)
    }

    pub(crate) async fn finish(&self, db: &Db, batch: &str) {
        let schema = if self.subconsumers.is_empty() {
            "pgq"
        } else {
            "pgq_coop"
        };
        assert_eq!(db.text(&format!("select {schema}.finish_batch({batch})")).await, "1");
    }
}

/// Events of a batch as id, text, retry count.
pub(crate) async fn events(db: &Db, batch: &str) -> Vec<(String, (String, String))> {
    db.text(&format!(
        "select ev_id, coalesce(ev_retry, 0), ev_data from pgq.get_batch_events({batch})"
    ))
    .await
    .lines()
    .map(|line| {
        let mut parts = line.splitn(3, '|').map(str::to_owned);
        let (id, retry, data) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        (id, (data, retry))
    })
    .collect()
}

pub(crate) async fn tick(db: &Db, queue: &str) {
    let queue = quoted(queue);
    db.run(&format!("select pgq.force_tick({queue})")).await;
    db.run(&format!("select pgq.ticker({queue})")).await;
}

/// The source: what is in it is written here, with what each consumer has finished.
pub(crate) struct Source {
    pub(crate) database: String,
    pub(crate) db: Db,
    /// A session whose transactions stay open for a while.
    pub(crate) late: Db,
    pub(crate) late_events: Option<Vec<(&'static str, String)>>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) written: u64,
}

impl Source {
    pub(crate) async fn new(cluster: &Cluster, database: &str) -> Self {
        cluster
            .connect("postgres")
            .await
            .run(&format!("create database {database}"))
            .await;
        let db = cluster.connect(database).await;
        cluster.create_extension(&db).await;
        for queue in QUEUES {
            db.run(&format!("select pgq.create_queue({})", quoted(queue))).await;
        }
        let readers = vec![
            Reader::new("q.one", "first", &[]),
            Reader::new("q.one", "second", &[]),
            Reader::new("q.one", "coop", &["s1", "s2"]),
            Reader::new("it's \"two\"", "odd 'name'", &[]),
            Reader::new("tree", "first", &[]),
        ];
        for reader in &readers {
            let (queue, name) = (quoted(reader.queue), quoted(reader.name));
            if reader.subconsumers.is_empty() {
                db.run(&format!("select pgq.register_consumer({queue}, {name})")).await;
            }
            for sub in reader.subconsumers {
                db.run(&format!(
                    "select pgq_coop.register_subconsumer({queue}, {name}, '{sub}')"
                ))
                .await;
            }
        }
        db.run(
            "create table captured (id int primary key, v text);
             create trigger capture after insert on captured for each row execute function pgq.logutriga('q.one');
             select pgcascade.pack_events('q.one', true);
             select pgq_node.register_location('tree', 'n1', 'dbname=n1', false);
             select pgq_node.create_node('tree', 'root', 'n1', 'n1_worker', null, null, null);
             update pgq.queue set queue_rotation_period = '0', queue_ticker_idle_period = '1 hour'",
        )
        .await;
        Self {
            database: database.to_owned(),
            late: cluster.connect(database).await,
            db,
            late_events: None,
            readers,
            written: 0,
        }
    }

    pub(crate) fn text(&mut self) -> String {
        self.written += 1;
        format!("event {}", self.written)
    }

    pub(crate) fn committed(&mut self, queue: &str, text: &str) {
        committed(&mut self.readers, queue, text);
    }

    /// One random thing.
    pub(crate) async fn step(&mut self, random: &mut Random) {
        let queue = QUEUES[random.below(3)];
        let insert = |text: &str| format!("select pgq.insert_event({}, 't', {})", quoted(queue), quoted(text));
        match random.below(20) {
            0..=3 => {
                let text = self.text();
                self.db.run(&insert(&text)).await;
                self.committed(queue, &text);
            }
            4 => {
                let text = self.text();
                self.db.run(&format!("begin; {}; rollback", insert(&text))).await;
            }
            5 => {
                let (kept, undone, nested) = (self.text(), self.text(), self.text());
                self.db
                    .run(&format!(
                        "begin; {}; savepoint a; {}; rollback to a; savepoint b; {}; release b; commit",
                        insert(&kept),
                        insert(&undone),
                        insert(&nested)
                    ))
                    .await;
                self.committed(queue, &kept);
                self.committed(queue, &nested);
            }
            6 => {
                // Packed, if they are several.
                let first = self.written + 1;
                self.written += 1 + random.below(4) as u64;
                let rows = format!("generate_series({first}, {}) i", self.written);
                self.db
                    .run(&format!("insert into captured select i, 'x' from {rows}"))
                    .await;
                for id in first..=self.written {
                    self.committed("q.one", &format!("id={id}&v=x"));
                }
            }
            7..=9 => match self.late_events.take() {
                None => {
                    let text = self.text();
                    self.late.run(&format!("begin; {}", insert(&text))).await;
                    self.late_events = Some(vec![(queue, text)]);
                }
                Some(mut events) if random.below(2) == 0 => {
                    let text = self.text();
                    self.late.run(&insert(&text)).await;
                    events.push((queue, text));
                    self.late_events = Some(events);
                }
                Some(events) if random.below(3) > 0 => {
                    self.late.run("commit").await;
                    for (queue, text) in events {
                        self.committed(queue, &text);
                    }
                }
                Some(_) => self.late.run("rollback").await,
            },
            10..=13 => tick(&self.db, queue).await,
            14 => {
                self.db
                    .run(&format!("select pgq.maint_rotate_tables_step1({})", quoted(queue)))
                    .await;
                if random.below(4) > 0 {
                    self.db.run("select pgq.maint_rotate_tables_step2()").await;
                }
            }
            15 => self.db.run("select pgq.maint_retry_events()").await,
            _ => self.read(random).await,
        }
    }

    pub(crate) async fn read(&mut self, random: &mut Random) {
        let at = random.below(self.readers.len());
        let reader = &mut self.readers[at];
        let session = random.below(reader.sessions());
        let Some(batch) = reader.next(&self.db, session).await else {
            return;
        };
        if random.below(3) == 0 {
            return; // stays open
        }
        for (id, event) in events(&self.db, &batch).await {
            let left = reader.pending.get_mut(&event).expect("an event that is expected");
            *left -= 1;
            if random.below(6) == 0 {
                let (text, retry) = event;
                self.db.run(&format!("select pgq.event_retry({batch}, {id}, 0)")).await;
                let next = retry.parse::<i32>().unwrap() + 1;
                *reader.pending.entry((text, next.to_string())).or_default() += 1;
            }
        }
        reader.finish(&self.db, &batch).await;
    }
}

pub(crate) fn committed(readers: &mut [Reader], queue: &str, text: &str) {
    for reader in readers.iter_mut().filter(|reader| reader.queue == queue) {
        *reader.pending.entry((text.to_owned(), "0".to_owned())).or_default() += 1;
    }
}
