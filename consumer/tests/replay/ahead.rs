//! Where the consumer is behind, the next batch is read while one is applied.

use crate::cluster::{Pair, Replay, Running, eventually, pair};

const ARGUMENTS: [&str; 5] = ["--table", "t", "--batch-events", "20", "--until-caught-up"];

/// A read ahead that the provider has begun to answer, or has answered.
const READS: &str = "select count(*) from pg_stat_activity where datname = current_database()
                        and application_name like 'pgcascade ahead %' and query like 'copy (select ev_id, ev_txid%'";

/// Two databases with a table that needs no copy.
async fn table() -> Pair {
    let pair = pair().await;
    pair.provider.run("create table t (id int primary key, n int)").await;
    add(&pair, "t").await;
    pair
}

async fn add(pair: &Pair, table: &str) {
    let (provider, subscriber) = ends(pair);
    let added = Replay::command(&["table", "add", table, "--create", "--no-copy"])
        .args(&["--provider", &provider, "--subscriber", &subscriber])
        .args(&["--queue", "q", "--consumer", "c"])
        .output()
        .await;
    assert_eq!(added.code(), Some(0), "{}", added.stderr);
}

fn ends(pair: &Pair) -> (String, String) {
    (
        pair.provider_cluster.conninfo(&pair.database),
        pair.subscriber_cluster.conninfo(&pair.database),
    )
}

/// Many batches of them, each of two ticks: rows that the next one changes.
async fn write(pair: &Pair) {
    for batch in 0..10 {
        for _ in 0..2 {
            pair.provider
                .run(&format!(
                    "insert into t select i, {batch} from generate_series(1, 10) i on conflict (id) do update set n = t.n + 1"
                ))
                .await;
            pair.provider.run("select pgq.ticker('q')").await;
        }
    }
}

/// A replay that is about to commit its second batch, and has begun to read the third. It goes on when the file is there.
async fn before_its_second_commit(pair: &Pair, replay: Replay) -> (Running, String) {
    let [first, second] = ["first", "second"].map(|name| {
        let name = format!("{name}-{}", pair.database);
        pair.subscriber_cluster.file(&name)
    });
    let running = replay
        .args(&ARGUMENTS)
        .arg("-v")
        .failpoints(&format!("after_commit=pause:{first};before_commit=pause:2:{second}"))
        .spawn();
    running.until_it_says("the session that reads ahead is there").await;
    running.until_it_says("after_commit waits").await;
    std::fs::write(&first, "").unwrap();
    running.until_it_says("before_commit waits").await;
    eventually("the next batch is read", async || {
        pair.provider.text(READS).await == "1"
    })
    .await;
    (running, second)
}

async fn goes_on(pair: Pair, running: Running, go_on: &str) -> String {
    std::fs::write(go_on, "").unwrap();
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    pair.assert_equal("t").await;
    pair.drop().await;
    output.stderr
}

#[tokio::test]
async fn the_next_batch_is_read_while_one_is_applied() {
    let pair = table().await;
    write(&pair).await;
    let (running, go_on) = before_its_second_commit(&pair, pair.replay()).await;
    let said = goes_on(pair, running, &go_on).await;
    assert!(!said.contains("batches are not read ahead"), "{said}");
    assert!(!said.contains("what was read ahead is another batch"), "{said}");
}

/// The ticks are others when the batch's turn comes.
#[tokio::test]
async fn what_was_read_ahead_is_another_batch() {
    let pair = table().await;
    write(&pair).await;
    let (running, go_on) = before_its_second_commit(&pair, pair.replay()).await;
    pair.provider
        .run(
            "with behind as (select t.tick_id, t.tick_event_seq - p.tick_event_seq as events
                               from pgq.subscription s
                               join pgq.tick p on p.tick_queue = s.sub_queue and p.tick_id = s.sub_next_tick
                               join pgq.tick t on t.tick_queue = s.sub_queue and t.tick_id > s.sub_next_tick)
             delete from pgq.tick where tick_id = (select tick_id from behind where events >= 20 order by tick_id limit 1)",
        )
        .await;
    let said = goes_on(pair, running, &go_on).await;
    assert!(said.contains("what was read ahead is another batch"), "{said}");
}

/// Be it that the batch was there already, or that the stream begins again.
#[tokio::test]
async fn the_session_that_reads_ahead_is_ended() {
    let pair = table().await;
    write(&pair).await;
    let (running, go_on) = before_its_second_commit(&pair, pair.replay()).await;
    let end = "select pg_terminate_backend(pid, 60000) from pg_stat_activity
                where datname = current_database() and application_name like 'pgcascade ahead %'";
    assert_eq!(pair.provider.text(end).await, "t");
    goes_on(pair, running, &go_on).await;
}

/// The server would take another connection, and not of this role.
#[tokio::test]
async fn without_a_second_connection() {
    let pair = table().await;
    let role = format!("reader_{}", pair.database);
    pair.provider
        .run(&format!(
            "create role {role} login password 'secret' in role pgq_reader; grant select on t to {role};
             select pgcascade.set_consumer_owner('q', 'c', '{role}'); alter role {role} connection limit 1"
        ))
        .await;
    write(&pair).await;
    let provider = pair.provider_cluster.conninfo_as(&pair.database, &role, "secret");
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = Replay::new(&provider, &ends(&pair).1)
        .args(&ARGUMENTS)
        .failpoints(&format!("after_commit=pause:{go_on}"))
        .spawn();
    running.until_it_says("batches are not read ahead: ").await;
    std::fs::write(&go_on, "").unwrap();
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// It ends with the stream, and leaves nothing open.
#[tokio::test]
async fn a_stop_while_it_reads_ahead() {
    let pair = table().await;
    write(&pair).await;
    let (running, go_on) = before_its_second_commit(&pair, pair.replay()).await;
    running.signal("TERM");
    running.until_it_says("stopping after the work at hand").await;
    std::fs::write(&go_on, "").unwrap();
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    eventually("the session has ended", async || pair.provider.text(READS).await == "0").await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// What comes behind the file is not decoded before it is executed, here as there.
#[tokio::test]
async fn a_file_is_executed_in_the_next_batch() {
    let pair = table().await;
    write(&pair).await;
    let file = pair.provider_cluster.file(&format!("wider-{}.sql", pair.database));
    std::fs::write(&file, "alter table t add column late text default 'late'").unwrap();
    let executed = Replay::command(&["execute", "--queue", "q", "--provider", &ends(&pair).0, &file]);
    let executed = executed.output().await;
    assert_eq!(executed.code(), Some(0), "{}", executed.stderr);
    pair.provider.run("update t set late = 'changed' where id < 3").await;
    write(&pair).await;
    let replay = pair.replay().args(&["--execute-as", "postgres"]);
    let (running, go_on) = before_its_second_commit(&pair, replay).await;
    goes_on(pair, running, &go_on).await;
}

/// Wherever it dies, nothing is lost and nothing comes twice.
#[tokio::test]
async fn killed_while_it_reads_ahead() {
    let pair = table().await;
    pair.provider.run("create table journal (what text)").await;
    add(&pair, "journal").await;
    pair.provider
        .run(
            "create function note() returns trigger language plpgsql as $$ begin insert into journal values (new::text); return null; end $$;
             create trigger note after insert or update on t for each row execute function note()",
        )
        .await;
    write(&pair).await;
    for point in ["after_read", "after_chunk", "before_commit", "after_commit"] {
        for reached in 2..4 {
            let killed = pair
                .replay()
                .args(&ARGUMENTS)
                .failpoints(&format!("{point}=kill:{reached}"))
                .output()
                .await;
            assert_eq!(killed.code(), None, "{point} was not reached: {}", killed.stderr);
        }
    }
    pair.catch_up(&ARGUMENTS[..4]).await;
    for table in ["t", "journal"] {
        pair.assert_equal(table).await;
    }
    pair.drop().await;
}
