//! From one version of the extension to the next (docs/releasing.md): released scripts stay as they are, and what ALTER
//! EXTENSION UPDATE makes of an older version is what CREATE EXTENSION makes, with the data that was there.
//!
//! Each version in sql/install is upgraded. As long as there is none, and to see that the comparison notices what it is
//! for, there is also an older version made up here: today's, with one thing different.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the other test programs use the rest of the module")]

mod cluster;

use std::path::{Path, PathBuf};
use std::process::Command;

use cluster::{Cluster, Db};

const LISTING: &str = include_str!("upgrade/listing.sql");

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Scripts put beside those of the server under test; removed at the end.
struct Scripts {
    folder: PathBuf,
    written: Vec<PathBuf>,
}

impl Scripts {
    fn of(cluster: &Cluster) -> Self {
        cluster.shell(&format!(
            "\"$PGBIN/pg_config\" --sharedir >{}",
            cluster.file("sharedir")
        ));
        let sharedir = std::fs::read_to_string(cluster.file("sharedir")).unwrap();
        Self {
            folder: Path::new(sharedir.trim()).join("extension"),
            written: Vec::new(),
        }
    }

    /// Today's installation script.
    fn current(&self) -> String {
        std::fs::read_to_string(self.folder.join(format!("pgcascade--{}.sql", version()))).unwrap()
    }

    fn write(&mut self, name: &str, text: &str) {
        let file = self.folder.join(name);
        std::fs::write(&file, text).unwrap();
        self.written.push(file);
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        for file in &self.written {
            let _ = std::fs::remove_file(file);
        }
    }
}

async fn database(cluster: &Cluster, name: &str) -> Db {
    let all = cluster.connect("postgres").await;
    all.run(&format!("create database {name}")).await;
    cluster.connect(name).await
}

async fn listing(db: &Db) -> Vec<String> {
    db.text(LISTING).await.lines().map(str::to_owned).collect()
}

/// Lines that only one of the two has.
fn difference(fresh: &[String], upgraded: &[String]) -> Vec<String> {
    let only = |sign: &str, these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .map(|line| format!("{sign} {}", line.chars().take(300).collect::<String>()))
            .collect()
    };
    [only("-", fresh, upgraded), only("+", upgraded, fresh)].concat()
}

/// Upgrades a database in use: a queue with events before, between and after, a captured table, an open batch, and sessions
/// that have used the functions already.
async fn upgrade_in_use(cluster: &Cluster, old: &str, name: &str) -> Vec<String> {
    let db = database(cluster, name).await;
    let writer = cluster.connect(name).await;
    db.run(&format!("create extension pgcascade version '{old}'")).await;
    db.run(
        "select pgq.create_queue('q');
         select pgq.register_consumer('q', 'c');
         create table t (id int primary key, v text);
         create trigger capture after insert on t for each row execute function pgq.logutriga('q')",
    )
    .await;
    writer.run("insert into t values (1, 'before'), (2, 'before')").await;
    db.run("select pgq.force_tick('q')").await;
    db.run("select pgq.ticker()").await;
    let batch = db.text("select pgq.next_batch('q', 'c')").await;
    writer.run("insert into t values (3, 'no tick yet')").await;

    db.run("alter extension pgcascade update").await;
    assert_eq!(db.text("select pgq.version()").await, version());

    writer.run("insert into t values (4, 'after')").await;
    assert_eq!(
        db.text("select pgq.next_batch('q', 'c')").await,
        batch,
        "the batch is open"
    );
    let mut came = Vec::new();
    loop {
        let batch = db.text("select pgq.next_batch('q', 'c')").await;
        if batch == "<null>" {
            if came.len() >= 4 {
                break;
            }
            db.run("select pgq.force_tick('q')").await;
            db.run("select pgq.ticker()").await;
            continue;
        }
        let events = db
            .text(&format!("select ev_data from pgq.get_batch_events({batch})"))
            .await;
        came.extend(events.lines().map(str::to_owned));
        assert_eq!(db.text(&format!("select pgq.finish_batch({batch})")).await, "1");
    }
    assert_eq!(
        came,
        ["id=1&v=before", "id=2&v=before", "id=3&v=no+tick+yet", "id=4&v=after"]
    );
    listing(&db).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_released_version_upgrades_to_what_is_installed_fresh() {
    let cluster = Cluster::start("upgrade", &["-o", "pgcascade.ticker=off"]);
    let mut scripts = Scripts::of(&cluster);
    let fresh = database(&cluster, "fresh").await;
    cluster.create_extension(&fresh).await;
    let fresh = listing(&fresh).await;
    assert!(fresh.len() > 800, "{} facts", fresh.len());

    let made_up = format!("0.0.0.{}", std::process::id());
    let current = scripts.current();
    scripts.write(&format!("pgcascade--{made_up}.sql"), &current);
    scripts.write(
        &format!("pgcascade--{made_up}--{}.sql", version()),
        "-- nothing to do\n",
    );
    let upgraded = upgrade_in_use(&cluster, &made_up, "made_up").await;
    assert_eq!(difference(&fresh, &upgraded), Vec::<String>::new());

    let released = std::fs::read_dir(top().join("sql/install")).into_iter().flatten();
    for (n, script) in released.map(Result::unwrap).enumerate() {
        let name = script.file_name().into_string().unwrap();
        let old = name
            .trim_start_matches("pgcascade--")
            .trim_end_matches(".sql")
            .to_owned();
        if old == version() {
            continue;
        }
        scripts.write(&name, &std::fs::read_to_string(script.path()).unwrap());
        let upgraded = upgrade_in_use(&cluster, &old, &format!("released_{n}")).await;
        assert_eq!(difference(&fresh, &upgraded), Vec::<String>::new(), "from {old}");
    }
}

/// What an upgrade script may forget, each of which the comparison must show.
const FORGOTTEN: [(&str, &str); 14] = [
    (
        "a function's body",
        "create or replace function pgq.version() returns text language sql as $$ select '0' $$",
    ),
    ("a new function", "drop function pgcascade.mend_restored()"),
    (
        "a removed function",
        "create function pgq.gone() returns int language sql as 'select 1'",
    ),
    ("a grant", "revoke execute on function pgq.version() from public"),
    ("a grant on a table", "grant delete on pgq.tick to pgq_reader"),
    ("a comment", "comment on function pgq.version() is 'other'"),
    (
        "a new column",
        "alter table pgcascade.restored_queue add column gone integer",
    ),
    (
        "a default",
        "alter table pgq.queue alter column queue_ticker_max_count set default 501",
    ),
    (
        "a constraint",
        "alter table pgq.queue drop constraint queue_names_check",
    ),
    ("an index", "drop index pgq.rq_retry_idx"),
    (
        "a trigger's state",
        "alter table pgq.queue enable trigger pgcascade_control_changed",
    ),
    ("a search_path", "alter function pgq.ticker() reset search_path"),
    (
        "what is dumped",
        "select pg_catalog.pg_extension_config_dump('pgq.tick', 'where true')",
    ),
    ("a storage option", "alter table pgq.tick set (fillfactor = 50)"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upgrade_script_forgets_is_seen() {
    let cluster = Cluster::start("upgrade-forgets", &["-o", "pgcascade.ticker=off"]);
    let mut scripts = Scripts::of(&cluster);
    let fresh = database(&cluster, "fresh").await;
    cluster.create_extension(&fresh).await;
    let fresh = listing(&fresh).await;
    let current = scripts.current();
    for (n, (what, statement)) in FORGOTTEN.iter().enumerate() {
        let old = format!("0.0.{}.{}", n + 1, std::process::id());
        scripts.write(&format!("pgcascade--{old}.sql"), &format!("{current}\n{statement};\n"));
        scripts.write(&format!("pgcascade--{old}--{}.sql", version()), "-- forgotten\n");
        let db = database(&cluster, &format!("forgets_{n}")).await;
        db.run(&format!(
            "create extension pgcascade version '{old}'; alter extension pgcascade update"
        ))
        .await;
        assert!(!difference(&fresh, &listing(&db).await).is_empty(), "{what}");
    }
}

fn release(verb: &str, top: &Path) -> Result<(), String> {
    let output = Command::new(self::top().join(".ci/release"))
        .arg(verb)
        .arg(top)
        .output()
        .expect(".ci/release can be run");
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr)
            .trim()
            .replace(".ci/release: ", ""))
    }
}

#[test]
fn released_scripts_are_as_they_were_released() {
    release("check", &top()).unwrap();
}

#[test]
fn a_released_version_cannot_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path();
    let at = |name: &str| top.join(name);
    let set_version = |version: &str| std::fs::write(at("Cargo.toml"), format!("version = \"{version}\"\n")).unwrap();
    let refused = |verb: &str, why: &str| {
        let said = release(verb, top).expect_err(why);
        assert!(said.contains(why), "{said}");
    };
    std::fs::create_dir_all(at("sql/upgrade")).unwrap();
    std::fs::write(at("sql/ORDER"), "# a comment\na.sql\nb.sql\n").unwrap();
    std::fs::write(at("sql/a.sql"), "select 1;\n").unwrap();
    std::fs::write(at("sql/b.sql"), "select 2;\n").unwrap();
    set_version("0.9.0");
    release("check", top).unwrap();
    release("freeze", top).unwrap();
    assert_eq!(
        std::fs::read_to_string(at("sql/install/pgcascade--0.9.0.sql")).unwrap(),
        "select 1;\nselect 2;\n"
    );
    release("check", top).unwrap();
    refused("freeze", "0.9.0 is released already");

    // Any change needs a higher version and a way to it.
    std::fs::write(at("sql/b.sql"), "select 3;\n").unwrap();
    refused("check", "sql/ differs from the released 0.9.0: raise the version");
    set_version("0.8.9");
    refused("check", "version 0.8.9 in Cargo.toml is below the released 0.9.0");
    set_version("0.10.0");
    refused("check", "sql/upgrade/pgcascade--0.9.0--0.10.0.sql is missing");
    std::fs::write(at("sql/upgrade/pgcascade--0.9.0--0.10.0.sql"), "select 3;\n").unwrap();
    release("check", top).unwrap();
    release("freeze", top).unwrap();
    release("check", top).unwrap();

    // Nor may what is released be touched, or be added by hand.
    for name in [
        "sql/install/pgcascade--0.9.0.sql",
        "sql/upgrade/pgcascade--0.9.0--0.10.0.sql",
    ] {
        let released = std::fs::read_to_string(at(name)).unwrap();
        std::fs::write(at(name), "select 4;\n").unwrap();
        refused("check", "released scripts were changed");
        std::fs::remove_file(at(name)).unwrap();
        refused("check", "released scripts were changed");
        std::fs::write(at(name), released).unwrap();
        release("check", top).unwrap();
    }
    std::fs::write(at("sql/install/pgcascade--0.9.5.sql"), "").unwrap();
    refused("check", "sql/install/pgcascade--0.9.5.sql is not in sql/frozen.sha256");
}
