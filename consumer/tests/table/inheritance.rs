//! Tables that others inherit from: their rows are those of no other table, whatever is done with them.

use crate::cluster::{eventually, pair};
use crate::done;

const FILL: &str = "insert into base select i, 'base' from generate_series(1, 60) i on conflict do nothing;
    insert into heir select i, 'heir' from generate_series(1, 60) i on conflict do nothing";

/// The keys are the same in all of them. One is replayed, too; the other is the subscriber's own affair, made when replay has looked.
#[tokio::test]
async fn who_inherits_has_rows_of_its_own() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    for db in [p, s] {
        db.run("create table base (id int primary key, v text); create table heir (primary key (id)) inherits (base)")
            .await;
    }
    p.run(FILL).await;
    let tables = ["--table", "base", "--table", "heir"];
    pair.catch_up(&tables).await;
    let running = pair.replay().spawn();
    running.until_it_says("streaming").await;
    s.run("create table own (primary key (id)) inherits (base); insert into own select i, 'own' from generate_series(1, 60) i")
        .await;
    let rows = |table: &str| format!("select string_agg(id || v, ' ' order by id) from only {table}");
    let own = s.text(&rows("own")).await;
    let same = async |what: &str| {
        for table in ["base", "heir"] {
            let rows = rows(table);
            eventually(&format!("{table} is the same after {what}"), async || {
                p.text(&rows).await == s.text(&rows).await
            })
            .await;
        }
        assert_eq!(s.text(&rows("own")).await, own, "{what}");
    };
    for change in [
        "update only base set v = 'many' where id < 40",
        "update only base set v = 'one' where id = 50",
        "delete from only base where id < 30; delete from heir where id > 30",
        "delete from only base where id = 51",
        "truncate only base",
        FILL,
        "truncate base",
        FILL,
        "begin; update base set v = v || '!'; truncate only base; insert into base values (7, 'again'); commit",
    ] {
        p.run(change).await;
        same(change).await;
    }
    s.run("update only base set v = 'damaged'; insert into base values (1000, 'extra')")
        .await;
    done(&pair, &["resync", "base"]);
    same("resync").await;
    done(&pair, &["compare"]);
    s.run("update only base set v = 'damaged'; insert into base values (1000, 'extra')")
        .await;
    done(&pair, &["repair", "--table", "base", "--apply"]);
    same("repair").await;
    done(&pair, &["remove", "base"]);
    done(&pair, &["add", "base", "--replace"]);
    same("table add --replace").await;
    done(&pair, &["remove", "base"]);
    let output = running.stop().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    pair.catch_up(&["--table", "base", "--truncate"]).await;
    same("--truncate").await;
    // Rows of others are none that stand against a copy.
    done(&pair, &["remove", "base"]);
    s.run("delete from only base").await;
    pair.catch_up(&["--table", "base"]).await;
    same("a copy beside others").await;
    pair.drop().await;
}
