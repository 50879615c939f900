//! Real throw-away clusters for the tests, by way of `regress/cluster`, and the real binary run against them.
//!
//! [`pair`] gives a test two fresh databases, one on each of two clusters that all tests of the process share; a test
//! that stops or kills servers makes [`Cluster`]s of its own. Whatever becomes of the test process, its clusters are
//! killed and removed: a shell waits for the end of a pipe that only this process holds open. Nothing here sleeps for a
//! fixed time: [`eventually`] waits for a condition, with a deadline.

use std::fmt::Write as _;
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

mod program;

#[allow(unused_imports, reason = "not every test program holds a run")]
pub(crate) use program::{Output, Replay, Running};

/// The longest that anything here is waited for: far longer than any of it takes, also where ten times as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// A running PostgreSQL of its own.
pub(crate) struct Cluster {
    dir: PathBuf,
    port: u16,
    password: String,
    _guard: Child,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../regress/cluster")
}

fn script_run(arguments: &[&str], dir: &Path) {
    let output = Command::new(script())
        .arg(arguments[0])
        .arg(dir)
        .args(&arguments[1..])
        .stdin(Stdio::null())
        .output()
        .expect("regress/cluster can be run");
    assert!(
        output.status.success(),
        "regress/cluster {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A new folder, and the process that kills what runs in it and removes it when this process ends.
fn guarded(name: &str) -> (PathBuf, Child) {
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{n}", std::process::id()));
    let guard = Command::new("sh")
        // What ends the test's process group (Ctrl-C, timeout) must leave this one alive.
        .process_group(0)
        .arg("-c")
        .arg("read -r _; \"$1\" kill \"$2\"; rm -rf \"$2\"")
        .args(["sh".as_ref(), script().as_os_str(), dir.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh can be run");
    (dir, guard)
}

impl Cluster {
    /// Starts one. `options` are more arguments of `regress/cluster start`.
    pub(crate) fn start(name: &str, options: &[&str]) -> Self {
        let (dir, guard) = guarded(name);
        let mut arguments = vec!["start"];
        arguments.extend_from_slice(options);
        // fsync off: what these tests kill is PostgreSQL, never the machine.
        arguments.extend_from_slice(&["-o", "fsync=off"]);
        script_run(&arguments, &dir);
        Self::started(dir, guard)
    }

    /// A streaming standby of this one.
    pub(crate) fn standby(&self, name: &str) -> Self {
        let (dir, guard) = guarded(name);
        let primary = self.dir.to_str().expect("a path that is text");
        script_run(&["standby", primary], &dir);
        Self::started(dir, guard)
    }

    fn started(dir: PathBuf, guard: Child) -> Self {
        let pgpass = std::fs::read_to_string(dir.join("pgpass")).expect("pgpass is there");
        let first = pgpass.lines().next().expect("a line");
        let fields: Vec<&str> = first.split(':').collect();
        Self {
            port: fields[1].parse().expect("a port"),
            password: fields[4].to_owned(),
            dir,
            _guard: guard,
        }
    }

    /// `create extension pgcascade`. One at a time: two at once would both make the roles.
    pub(crate) async fn create_extension(&self, db: &Db) {
        static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _one = ONE.lock().await;
        db.run("create extension pgcascade").await;
    }

    /// The server does not wait for long for the sessions that it ends.
    pub(crate) async fn drop_database(&self, database: &str) {
        let admin = self.connect("postgres").await;
        eventually(&format!("database {database} is dropped"), async || {
            match admin.try_text(&format!("drop database {database} with (force)")).await {
                Ok(_) => true,
                Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => false,
                Err(error) => panic!("drop database {database}: {error:?}"),
            }
        })
        .await;
    }

    /// For the consumer, which finds the password in the file.
    pub(crate) fn conninfo(&self, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={database} passfile={}",
            self.port,
            self.dir.join("pgpass").display()
        )
    }

    /// The same for another role with a password, which need not be right.
    pub(crate) fn conninfo_as(&self, database: &str, role: &str, password: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={role} password={password} dbname={database}",
            self.port
        )
    }

    /// The connection string with the password in it, for a port that the password file does not know.
    pub(crate) fn with_password(&self, conninfo: &str) -> String {
        format!("{conninfo} password={}", self.password)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A session as superuser.
    pub(crate) async fn connect(&self, database: &str) -> Db {
        self.try_connect(database)
            .await
            .unwrap_or_else(|error| panic!("connect to {database}: {error:?}"))
    }

    pub(crate) async fn try_connect(&self, database: &str) -> Result<Db, tokio_postgres::Error> {
        let mut settings = tokio_postgres::Config::new();
        settings
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .password(&self.password)
            .dbname(database);
        self.session(&settings).await
    }

    pub(crate) async fn session(&self, settings: &tokio_postgres::Config) -> Result<Db, tokio_postgres::Error> {
        let (client, connection) = settings.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(Db {
            client,
            log: self.dir.join("log"),
        })
    }

    /// What psql prints, messages included, when it runs a statement.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> String {
        let output = Command::new("sh")
            .args([
                "-c",
                ". \"$1/env\" && exec \"$PGBIN/psql\" -X -d \"$2\" -c \"$3\" 2>&1",
                "sh",
            ])
            .args([self.dir.as_os_str(), database.as_ref(), sql.as_ref()])
            .stdin(Stdio::null())
            .output()
            .expect("psql can be run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A file or folder of that name beside the cluster's own; goes with it.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Runs a script of sh with the cluster's settings (`regress/cluster`, DIR/env), which must go well.
    pub(crate) fn shell(&self, script: &str) {
        let output = Command::new("sh")
            .args(["-c", ". \"$0/env\" || exit; eval \"$1\""])
            .args([self.dir.as_os_str(), script.as_ref()])
            .stdin(Stdio::null())
            .output()
            .expect("sh can be run");
        assert!(
            output.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// A program of the server run as the user it runs as, to its end.
    pub(crate) fn run(&self, program: &[&str]) {
        let mut arguments = vec!["run"];
        arguments.extend_from_slice(program);
        script_run(&arguments, &self.dir);
    }

    pub(crate) fn stop(&self) {
        script_run(&["stop"], &self.dir);
    }

    /// What the server logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// `immediate` leaves crash recovery to the next start.
    pub(crate) fn restart(&self, mode: &str) {
        script_run(&["stop", mode], &self.dir);
        script_run(&["start"], &self.dir);
    }

    /// SIGKILL to all of it, then a start.
    pub(crate) fn crash(&self) {
        script_run(&["kill"], &self.dir);
        script_run(&["start"], &self.dir);
    }

    /// SIGKILL to all of it.
    pub(crate) fn kill(&self) {
        script_run(&["kill"], &self.dir);
    }

    /// Stops it, and keeps what it has now for [`Self::go_back`].
    pub(crate) fn keep(&self) {
        self.stop();
        self.shell("cp -a \"$PGDATA\" \"$PGDATA.kept\"");
    }

    /// Kills it, and starts it again with what it had then.
    pub(crate) fn go_back(&self) {
        self.kill();
        self.shell("rm -rf \"$PGDATA\" && cp -a \"$PGDATA.kept\" \"$PGDATA\"");
        self.start_again();
    }

    pub(crate) fn start_again(&self) {
        script_run(&["start"], &self.dir);
    }
}

/// A session.
pub(crate) struct Db {
    pub(crate) client: Client,
    /// Its server's.
    log: PathBuf,
}

impl Db {
    /// Runs statements. Those that change rights on settings, which all databases share, one at a time: the server refuses who meets another.
    pub(crate) async fn run(&self, sql: &str) {
        static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let shared = sql.contains(" on parameter ") || sql.contains("drop owned ");
        let _one = if shared { Some(ONE.lock().await) } else { None };
        self.client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| self.failed(sql, &error));
    }

    /// What the other sessions in the database, and the server's own processes there, are doing and waiting for.
    async fn sessions(&self) -> String {
        self.text(
            "select string_agg(concat_ws(' ', pid, backend_type, application_name, state, wait_event_type, wait_event,
                                         clock_timestamp() - xact_start, clock_timestamp() - query_start, left(query, 200)), '; ')
               from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await
    }

    /// Fails; a session that was closed does not know why, but its server may.
    fn failed(&self, sql: &str, error: &tokio_postgres::Error) -> ! {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let telling = log.lines().filter(|line| {
            [
                "PANIC",
                "FATAL",
                "terminated by",
                "shutting down",
                "starting PostgreSQL",
            ]
            .iter()
            .any(|word| line.contains(word))
        });
        let mut last: Vec<&str> = telling.rev().take(if error.is_closed() { 6 } else { 0 }).collect();
        last.reverse();
        panic!("{error:?}: {sql} {}", last.join(" | "))
    }

    /// Rows as psql's unaligned mode prints them: `|` between values, a line per row.
    pub(crate) async fn text(&self, sql: &str) -> String {
        self.try_text(sql)
            .await
            .unwrap_or_else(|error| self.failed(sql, &error))
    }

    pub(crate) async fn try_text(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        let mut out = String::new();
        for message in self.client.simple_query(sql).await? {
            if let SimpleQueryMessage::Row(row) = message {
                for i in 0..row.len() {
                    let _ = write!(
                        out,
                        "{}{}",
                        if i > 0 { "|" } else { "" },
                        row.get(i).unwrap_or("<null>")
                    );
                }
                out.push('\n');
            }
        }
        Ok(out.trim_end().to_owned())
    }
}

static PROVIDER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start("provider", &["-o", "max_worker_processes=40"]));
static SUBSCRIBER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start("subscriber", &["--no-preload"]));

/// Two databases, and what to run the consumer with.
pub(crate) struct Pair {
    pub(crate) provider_cluster: Arc<Side>,
    pub(crate) subscriber_cluster: Arc<Side>,
    pub(crate) database: String,
    pub(crate) provider: Db,
    pub(crate) subscriber: Db,
}

/// One of the shared clusters, or a test's own.
pub(crate) enum Side {
    Shared(&'static Cluster),
    Own(Cluster),
}

impl std::ops::Deref for Side {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        match self {
            Side::Shared(cluster) => cluster,
            Side::Own(cluster) => cluster,
        }
    }
}

/// Two fresh databases with nothing in them but the extension on the provider.
pub(crate) async fn pair() -> Pair {
    pair_on(Arc::new(Side::Shared(&PROVIDER)), Arc::new(Side::Shared(&SUBSCRIBER))).await
}

/// The same on clusters that may be stopped.
pub(crate) async fn own_pair() -> Pair {
    let provider = Cluster::start("own-provider", &[]);
    let subscriber = Cluster::start("own-subscriber", &["--no-preload"]);
    pair_on(Arc::new(Side::Own(provider)), Arc::new(Side::Own(subscriber))).await
}

async fn pair_on(provider_cluster: Arc<Side>, subscriber_cluster: Arc<Side>) -> Pair {
    let database = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    for side in [&provider_cluster, &subscriber_cluster] {
        side.connect("postgres")
            .await
            .run(&format!("create database {database}"))
            .await;
    }
    let provider = provider_cluster.connect(&database).await;
    let subscriber = subscriber_cluster.connect(&database).await;
    provider_cluster.create_extension(&provider).await;
    Pair {
        provider_cluster,
        subscriber_cluster,
        database,
        provider,
        subscriber,
    }
}

impl Pair {
    /// `consumer replay` with both ends, queue `q` and consumer `c`; add what else is wanted.
    pub(crate) fn replay(&self) -> Replay {
        Replay::new(
            &self.provider_cluster.conninfo(&self.database),
            &self.subscriber_cluster.conninfo(&self.database),
        )
    }

    /// Replays what is there and asserts that it went well.
    pub(crate) async fn catch_up(&self, arguments: &[&str]) -> Output {
        let running = self.replay().args(arguments).arg("--until-caught-up").spawn();
        let mut ended = pin!(running.wait());
        let Ok(output) = tokio::time::timeout(2 * PATIENCE, &mut ended).await else {
            let (provider, subscriber) = (self.provider.sessions().await, self.subscriber.sessions().await);
            panic!("the replay does not end; the provider is at: {provider}; the subscriber at: {subscriber}");
        };
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        output
    }

    /// Has queue q a tick that shows all that is committed: the next batch has it, too.
    pub(crate) async fn tick(&self) {
        self.provider
            .run("select pgq.force_tick('q'); select pgq.ticker('q')")
            .await;
    }

    /// Waits until that many tables have their copies and the events from meanwhile. When they are ok depends on other
    /// tests' transactions, too.
    pub(crate) async fn until_past_copies(&self, tables: usize) {
        let past = "select (select count(*) from pgcascade_replay.table_state where state in ('catching-up', 'ok'))
                           - (select count(*) from pgcascade_replay.held_event)";
        eventually("the tables are past their copies", async || {
            self.subscriber.text(past).await == tables.to_string()
        })
        .await;
    }

    /// Waits until no server does anything more for a replay that has ended.
    pub(crate) async fn until_sessions_are_gone(&self) {
        for end in [&self.provider, &self.subscriber] {
            eventually("no session of replay is left", async || {
                end.text("select count(*) from pg_stat_activity where datname = current_database() and application_name like 'pgcascade %'")
                    .await
                    == "0"
            })
            .await;
        }
    }

    /// Fails with the two lists of rows that differ.
    pub(crate) async fn assert_equal(&self, table: &str) {
        let query = format!("select t::text from {table} t order by t::text collate \"C\"");
        let (theirs, ours) = (self.provider.text(&query).await, self.subscriber.text(&query).await);
        if theirs != ours {
            let theirs: Vec<&str> = theirs.lines().collect();
            let ours: Vec<&str> = ours.lines().collect();
            let lost: Vec<_> = theirs.iter().filter(|row| !ours.contains(row)).take(10).collect();
            let extra: Vec<_> = ours.iter().filter(|row| !theirs.contains(row)).take(10).collect();
            panic!(
                "{table}: {} rows on the provider, {} on the subscriber; missing {lost:?}, extra {extra:?}",
                theirs.len(),
                ours.len()
            );
        }
    }

    /// Closes the sessions and drops the databases, so that their background workers end.
    pub(crate) async fn drop(self) {
        let Self {
            provider_cluster,
            subscriber_cluster,
            database,
            provider,
            subscriber,
        } = self;
        drop((provider, subscriber));
        for side in [provider_cluster, subscriber_cluster] {
            side.drop_database(&database).await;
        }
    }
}

/// From now on the ticker makes no tick of the database's only queue, nor is it about to. Whoever has its lock sees that it is paused.
pub(crate) async fn pause_ticks(provider: &Db) {
    provider.run("update pgq.queue set queue_ticker_paused = true").await;
    provider
        .run("select pgcascade.lock_ticker(queue_id) from pgq.queue")
        .await;
}

/// Waits until the condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
