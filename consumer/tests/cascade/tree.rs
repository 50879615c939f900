//! A cascade for a test: databases by name, commands about them, and what must hold of them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use crate::cluster::{Cluster, Db, Output, PATIENCE, Replay, Running, eventually};

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start("cascade", &["-o", "max_worker_processes=40"]));
static COUNT: AtomicU32 = AtomicU32::new(0);

/// All batches after a tick, as a PgQ client reads them: each tick, and after it its events.
const READ: &str = r"
    create function read_queue(from_tick bigint) returns setof text language plpgsql as $$
    declare
        b record;
    begin
        perform pgq.register_consumer_at('q', 'reader', from_tick);
        loop
            select * into b from pgq.next_batch_info('q', 'reader');
            exit when b.batch_id is null;
            return query select format('tick %s %s %s', b.cur_tick_id, b.cur_tick_time, b.cur_tick_event_seq);
            return query select format('%s %s %s %s %s %s %s %s.', ev_id, ev_time, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
                           from pgq.get_batch_events(b.batch_id);
            perform pgq.finish_batch(b.batch_id);
        end loop;
        perform pgq.unregister_consumer('q', 'reader');
    end $$";

pub(crate) struct Tree {
    prefix: String,
    /// Where the root is, if it is to be killed.
    apart: Option<Cluster>,
    /// Other nodes that are to be killed.
    elsewhere: Vec<(&'static str, Arc<Cluster>)>,
}

impl Tree {
    /// A root called `root`, with tables: one with a key, and a journal without, which shows what is applied twice.
    pub(crate) async fn new() -> Self {
        Self::with(None).await
    }

    /// The same with the root in a cluster of its own.
    pub(crate) async fn apart() -> Self {
        Self::apart_with(&[]).await
    }

    /// The same with more arguments of `regress/cluster start`.
    pub(crate) async fn apart_with(options: &[&str]) -> Self {
        Self::with(Some(Cluster::start("root", options))).await
    }

    async fn with(apart: Option<Cluster>) -> Self {
        let tree = Self {
            prefix: format!("c{}", COUNT.fetch_add(1, Ordering::Relaxed)),
            apart,
            elsewhere: Vec::new(),
        };
        let root = tree.database("root", true).await;
        root.run(
            "create table t (id int primary key, n int); create table journal (uid int, what text);
             insert into t select i, 0 from generate_series(1, 500) i; insert into journal select i, 'before' from generate_series(1, 500) i",
        )
        .await;
        tree.node(0, "create-root root", &["--db", &tree.conninfo("root")])
            .await;
        tree
    }

    /// The nodes of these names will be in clusters of their own.
    pub(crate) fn elsewhere(mut self, names: &[&'static str]) -> Self {
        self.elsewhere = names
            .iter()
            .map(|name| (*name, Arc::new(Cluster::start(name, &[]))))
            .collect();
        self
    }

    /// They will be in one that is only theirs.
    pub(crate) fn together(mut self, names: &[&'static str]) -> Self {
        let cluster = Arc::new(Cluster::start("nodes", &["-o", "max_worker_processes=40"]));
        self.elsewhere = names.iter().map(|name| (*name, Arc::clone(&cluster))).collect();
        self
    }

    pub(crate) fn cluster(&self, name: &str) -> &Cluster {
        if let Some((_, elsewhere)) = self.elsewhere.iter().find(|(node, _)| *node == name) {
            return elsewhere;
        }
        match &self.apart {
            Some(apart) if name == "root" => apart,
            _ => &CLUSTER,
        }
    }

    /// The cluster that the root is in, if it is to be killed.
    pub(crate) fn apart_cluster(&self) -> &Cluster {
        self.apart.as_ref().expect("a root in a cluster of its own")
    }

    /// What a node's database is called.
    pub(crate) fn database_name(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }

    /// The root's server dies.
    pub(crate) fn kill_root(&self) {
        self.apart.as_ref().expect("a root in a cluster of its own").kill();
    }

    /// And comes back.
    pub(crate) fn start_root(&self) {
        self.apart
            .as_ref()
            .expect("a root in a cluster of its own")
            .start_again();
    }

    pub(crate) async fn database(&self, name: &str, extension: bool) -> Db {
        let database = format!("{}_{name}", self.prefix);
        let cluster = self.cluster(name);
        let admin = cluster.connect("postgres").await;
        admin.run(&format!("create database {database}")).await;
        let db = cluster.connect(&database).await;
        if extension {
            cluster.create_extension(&db).await;
            db.run(READ).await;
        }
        db
    }

    pub(crate) async fn connect(&self, name: &str) -> Db {
        self.cluster(name).connect(&format!("{}_{name}", self.prefix)).await
    }

    pub(crate) fn conninfo(&self, name: &str) -> String {
        self.cluster(name).conninfo(&format!("{}_{name}", self.prefix))
    }

    pub(crate) fn with_password(&self, name: &str) -> String {
        CLUSTER.with_password(&self.conninfo(name))
    }

    /// Makes a role that may do nothing yet, and returns how it connects.
    pub(crate) async fn role(&self, db: &Db, role: &str, name: &str) -> String {
        db.run(&format!("create role {role} login password 'secret'")).await;
        CLUSTER.conninfo_as(&format!("{}_{name}", self.prefix), role, "secret")
    }

    /// A dump of a node, loaded into a new database of the same cluster.
    pub(crate) async fn copy(&self, from: &str, to: &str) {
        let file = CLUSTER.file(&format!("{}_{to}.dump", self.prefix));
        let (from, to) = (format!("{}_{from}", self.prefix), format!("{}_{to}", self.prefix));
        CLUSTER.shell(&format!(
            "\"$PGBIN/pg_dump\" -Fc -f {file} {from} && \"$PGBIN/createdb\" {to} && \"$PGBIN/pg_restore\" -e -d {to} {file}"
        ));
    }

    /// A node is not there any more.
    pub(crate) async fn remove(&self, name: &str) {
        CLUSTER.drop_database(&self.database_name(name)).await;
    }

    /// `consumer node COMMAND --queue q ...`, which must end with that code.
    pub(crate) async fn node(&self, code: i32, command: &str, more: &[&str]) -> Output {
        let output = self.node_command(command, more).output().await;
        assert_eq!(output.code(), Some(code), "{command}: {}", output.stderr);
        output
    }

    pub(crate) fn node_command(&self, command: &str, more: &[&str]) -> Replay {
        let words: Vec<&str> = command.split(' ').collect();
        Replay::command(&["node"])
            .args(&words)
            .args(&["--queue", "q"])
            .args(more)
    }

    /// `consumer table VERB ...` of a node.
    pub(crate) fn table(&self, name: &str, arguments: &[&str]) -> Replay {
        Replay::command(&["table"])
            .args(arguments)
            .args(&["--subscriber", &self.conninfo(name), "--queue", "q"])
    }

    /// `consumer node COMMAND` about a cascade that is there, by way of its root.
    pub(crate) async fn manage(&self, code: i32, command: &str) -> Output {
        self.node(code, command, &["--db", &self.conninfo("root")]).await
    }

    /// Makes a database a branch or a leaf.
    pub(crate) async fn add(&self, kind: &str, name: &str, provider: &str) -> Db {
        let db = self.database(name, kind == "branch").await;
        self.node(
            0,
            &format!("create-{kind} {name}"),
            &["--db", &self.conninfo(name), "--provider", &self.conninfo(provider)],
        )
        .await;
        db
    }

    /// Makes nodes that read from the root, and have what that has.
    pub(crate) async fn below_root<const N: usize>(&self, nodes: [(&str, &str); N]) -> [Db; N] {
        let mut made = Vec::new();
        for (kind, name) in nodes {
            made.push(self.add(kind, name, "root").await);
        }
        self.catch_up_all(&nodes.map(|(_, name)| name)).await;
        made.try_into().ok().expect("as many")
    }

    /// One after the other.
    pub(crate) async fn catch_up_all(&self, names: &[&str]) {
        for name in names {
            self.catch_up(name).await;
        }
    }

    /// The replays of nodes run.
    pub(crate) fn replays(&self, names: &[&str]) -> Vec<Running> {
        names.iter().map(|name| self.replay(name).spawn()).collect()
    }

    /// The replay of a node.
    pub(crate) fn replay(&self, name: &str) -> Replay {
        Replay::command(&[
            "replay",
            "--subscriber",
            &self.conninfo(name),
            "--queue",
            "q",
            "--table",
            "*",
            "--create",
            "--watermark-interval",
            "1",
            "--retry-max",
            "1",
        ])
    }

    /// Replays what its provider has, and ends.
    pub(crate) async fn catch_up(&self, name: &str) -> Output {
        let output = self.replay(name).arg("--until-caught-up").output().await;
        assert_eq!(output.code(), Some(0), "{name}: {}", output.stderr);
        output
    }

    /// Waits for a node whose replay runs.
    pub(crate) async fn wait(&self, name: &str) {
        self.manage(0, &format!("wait {name} --timeout {}", PATIENCE.as_secs()))
            .await;
    }

    /// Waits until all tables of a node whose replay runs are ok. That takes a tick from after their copies, and from after the end of
    /// whatever was open on the server then, be it another test's.
    pub(crate) async fn until_ok(&self, name: &str) {
        let node = self.connect(name).await;
        eventually(&format!("the tables of {name} are ok"), async || {
            self.wait(name).await;
            node.text(NOT_OK).await == "0"
        })
        .await;
    }

    /// One node's queue is another's, from the first tick of the first on.
    pub(crate) async fn assert_same_queue(&self, of: &Db, root: &Db) {
        // Either may have rotated what was before.
        let mut first = 0;
        for node in [of, root] {
            let oldest =
                "select min(tick_id) from pgq.tick join pgq.queue on queue_id = tick_queue where queue_name = 'q'";
            first = first.max(node.text(oldest).await.parse::<i64>().unwrap());
        }
        let read = format!("select read_queue({first})");
        // In this order, so that the root has what the other one has.
        let ours = of.text(&read).await;
        let theirs = root.text(&read).await;
        assert!(ours.contains("tick ") && ours.contains("public.journal"), "{ours}");
        let same = theirs
            .lines()
            .zip(ours.lines())
            .take_while(|(theirs, ours)| theirs == ours)
            .count();
        assert_eq!(
            same,
            ours.lines().count(),
            "line {same} of {} differs: {:?}, {:?} at the root",
            ours.lines().count(),
            ours.lines().nth(same),
            theirs.lines().nth(same)
        );
    }

    /// Two nodes have the same rows.
    pub(crate) async fn assert_same_rows(&self, left: &Db, right: &Db) {
        for table in ["t", "journal"] {
            let query = format!("select x::text from {table} x order by x::text collate \"C\"");
            let (left, right) = (left.text(&query).await, right.text(&query).await);
            assert!(
                left == right,
                "{table}: {} rows, {}",
                left.lines().count(),
                right.lines().count()
            );
        }
    }

    pub(crate) async fn drop(self, databases: &[&str]) {
        for name in databases {
            self.remove(name).await;
        }
    }
}

/// What the replay of a node has locked while it runs.
pub(crate) const WORKERS_LOCK: &str =
    "select (classid::int8 << 32) | objid::int8 from pg_locks where locktype = 'advisory' and granted
        and database = (select oid from pg_database where datname = current_database())";

/// How many tables of a node are not ok.
pub(crate) const NOT_OK: &str = "select count(*) from pgcascade_replay.table_state where state <> 'ok'";

/// Ends replays, which must have gone well.
pub(crate) async fn stop(replays: impl IntoIterator<Item = Running>) {
    for replay in replays {
        replay.stop().await;
    }
}

/// No replay of the nodes runs, and their servers have noticed that.
pub(crate) async fn until_not_replayed(nodes: &[&Db]) {
    for node in nodes {
        let sessions = "select count(*) from pg_stat_activity
                         where datname = current_database() and application_name like 'pgcascade replay %'";
        until(node, sessions, "0").await;
    }
}

/// A few transactions.
pub(crate) async fn write(root: &Db, from: i32) {
    root.run(&format!(
        "begin; update t set n = n + 1 where id % 7 = 0; insert into journal select i, 'after' from generate_series({from}, {}) i; commit;
         insert into t values ({}, 0); delete from t where id = {}; insert into journal values (-{from}, 'alone')",
        from + 40,
        10_000 + from,
        from % 500,
    ))
    .await;
}

/// A node that ticks has a tick that shows all that is committed.
pub(crate) async fn tick(node: &Db) {
    node.run("select pgq.force_tick('q')").await;
    node.run("select pgq.ticker('q')").await;
}

/// Waits until a query gives that.
pub(crate) async fn until(db: &Db, query: &str, wanted: &str) {
    eventually(&format!("{query} gives {wanted}"), async || {
        db.text(query).await == wanted
    })
    .await;
}

/// Every event table is emptied if nobody needs it.
pub(crate) async fn rotate(node: &Db) {
    node.run("update pgq.queue set queue_rotation_period = '0'").await;
    for _ in 0..8 {
        // Each rotation needs that the last tick is younger than the one before.
        if node.text("select open from pgcascade.node_state").await == "t" {
            let last = node.text("select pgq.force_tick('q')").await;
            until(node, &format!("select max(tick_id) > {last} from pgq.tick"), "t").await;
        }
        node.run("select pgq.maint_rotate_tables_step1('q')").await;
        node.run("select pgq.maint_rotate_tables_step2()").await;
    }
}
