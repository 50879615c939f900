//! Whether both ends as a whole are fit: versions, encodings, ticks, and whose the consumer is.

use std::fmt::Display;

use tokio_postgres::{Client, Row};

use super::super::findings::{Findings, Kind, Remedy};
use super::super::position::Who;
use super::super::session::ProviderFacts;
use super::super::table::{literal, quoted};
use crate::connect::End;
use crate::error::{Doing, Result};

/// The oldest server that anybody tries this on.
const OLDEST_SERVER: i32 = 140_000;

/// How much later than its longest pause a ticker may be: far more than one that runs ever is.
const TICKER_PATIENCE: f64 = 30.0;

/// Looks at versions and encodings.
pub(super) async fn ends(provider: &Client, subscriber: &Client, findings: &mut Findings) -> Result<()> {
    let from = end(provider, End::Provider, findings).await?;
    let to = end(subscriber, End::Subscriber, findings).await?;
    encodings(subscriber, &from, &to, findings).await
}

/// Returns its encoding.
async fn end(client: &Client, end: End, findings: &mut Findings) -> Result<String> {
    let row = client
        .query_one(include_str!("end.sql"), &[])
        .await
        .doing(|| format!("look at the {end}"))?;
    let database = format!("database {}", quoted(row.get("database")));
    if row.get::<_, i32>("server") < OLDEST_SERVER {
        findings.add(
            Kind::ServerVersion,
            (end, &database),
            format!(
                "the {end} is PostgreSQL {}; nothing before 14 was ever tried",
                row.get::<_, &str>("version")
            ),
            "upgrade it",
        );
    }
    let installed: Option<&str> = row.get("installed_version");
    let available: Option<&str> = row.get("default_version");
    if end == End::Provider
        && let (Some(installed), Some(available)) = (installed, available)
        && installed != available
    {
        findings.add(
            Kind::ExtensionUpdate,
            (end, &database),
            format!("{database} of the provider has pgcascade {installed}, and {available} is installed on the server"),
            Remedy::run(end, "alter extension pgcascade update").words("as a superuser"),
        );
    }
    Ok(row.get("encoding"))
}

/// What streams is converted from the provider's encoding, what is copied through UTF8.
async fn encodings(subscriber: &Client, from: &str, to: &str, findings: &mut Findings) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let object = format!("encoding {to}");
    let object: (End, &dyn Display) = (End::Subscriber, &object);
    if from == "SQL_ASCII" || to == "SQL_ASCII" {
        if from != "UTF8" {
            findings.add(
                Kind::Encoding,
                object,
                format!(
                    "nobody can convert from the provider's encoding {from} to the subscriber's {to}: \
                     other characters than ASCII's are refused, or stored wrongly"
                ),
                "give both databases the same encoding",
            );
        }
        return Ok(());
    }
    let row = subscriber
        .query_one(
            "select count(*) from pg_catalog.unnest($1::text[]) f(name)
              where f.name <> $2 and not exists (
                    select from pg_catalog.pg_conversion c
                     where c.condefault and pg_catalog.pg_encoding_to_char(c.conforencoding) = f.name
                       and pg_catalog.pg_encoding_to_char(c.contoencoding) = $2)",
            &[&vec![from, "UTF8"], &to],
        )
        .await
        .doing(|| "look for conversions of encodings on the subscriber".to_owned())?;
    if row.get::<_, i64>(0) > 0 {
        findings.add(
            Kind::EncodingUnreadable,
            object,
            format!("the subscriber's server cannot convert from the provider's encoding {from} to {to}"),
            "make the subscriber's database with encoding UTF8",
        );
    } else if to != "UTF8" {
        findings.add(
            Kind::Encoding,
            object,
            format!(
                "the subscriber's encoding {to} lacks characters of the provider's {from}, and one of them stops replay"
            ),
            "make the subscriber's database with encoding UTF8",
        );
    }
    Ok(())
}

/// Looks at the queue: ticks, and to whom the consumer belongs. `cascade`: whether it is read as that of a node.
pub(super) async fn queue(
    provider: &Client,
    who: &Who,
    facts: &ProviderFacts,
    cascade: bool,
    findings: &mut Findings,
) -> Result<()> {
    let row = provider
        .query_one(include_str!("queue.sql"), &[&who.queue, &who.consumer])
        .await
        .doing(|| format!("look at queue \"{}\" on the provider", who.queue))?;
    let object = format!("queue {}", who.queue);
    let consumer = format!("consumer {} of queue {}", who.consumer, who.queue);
    let object: (End, &dyn Display) = (End::Provider, &object);
    let set = |parameter: &str| {
        let statement = format!(
            "select pgq.set_queue_config({}, '{parameter}', 'false')",
            literal(&who.queue)
        );
        Remedy::run(End::Provider, statement)
    };
    if row.get::<_, Option<bool>>("paused") == Some(true) {
        findings.add(
            Kind::QueuePaused,
            object,
            format!(
                "ticks of queue \"{}\" are paused, so that nothing of it is replayed",
                who.queue
            ),
            set("ticker_paused"),
        );
    } else {
        let off = !facts.of_pgq() && ticker_is_off(provider).await?;
        ticks((&row, off), who, facts, cascade, set, object, findings);
    }
    // That of a branch is, and gets its events all the same.
    let fed = cascade && row.get::<_, Option<bool>>("external") == Some(true);
    if row.get::<_, Option<bool>>("closed") == Some(true) && !fed {
        findings.add(
            Kind::QueueClosed,
            object,
            format!(
                "queue \"{}\" is closed (disable_insert), and so are the tables that are captured into it",
                who.queue
            ),
            Remedy::run(
                End::Provider,
                format!(
                    "update pgq.queue set queue_disable_insert = false where queue_name = {}",
                    literal(&who.queue)
                ),
            ),
        );
    }
    let (sub_queue, sub_consumer): (Option<i32>, Option<i32>) = (row.get("sub_queue"), row.get("sub_consumer"));
    if sub_queue.is_some() && row.get("may_ask") {
        let asked = provider
            .query_one("select pgcascade.check_consumer($1, $2)", &[&sub_queue, &sub_consumer])
            .await
            .doing(|| "ask whose the consumer is".to_owned());
        match asked {
            Err(error) if error.sqlstate().is_some_and(|state| state.code() == "42501") => findings.add(
                Kind::ConsumerOwner,
                (End::Provider, &consumer),
                format!(
                    "consumer \"{}\" of queue \"{}\" belongs to another role, and role \"{}\" may not act for it",
                    who.consumer, who.queue, facts.role
                ),
                Remedy::run(
                    End::Provider,
                    format!(
                        "select pgcascade.set_consumer_owner({}, {}, {})",
                        literal(&who.queue),
                        literal(&who.consumer),
                        literal(&facts.role)
                    ),
                )
                .words("as a member of pgq_admin"),
            ),
            asked => drop(asked?),
        }
    }
    Ok(())
}

/// Our own ticker, by the setting.
async fn ticker_is_off(provider: &Client) -> Result<bool> {
    let row = provider
        .query_one("select pgcascade.setting('pgcascade.ticker')", &[])
        .await
        .doing(|| "read whether the provider's ticker is wanted".to_owned())?;
    Ok(row.get::<_, Option<&str>>(0) == Some("off"))
}

/// Whether anybody makes ticks. Where there is no queue yet, nothing but a ticker of ours can be seen.
fn ticks(
    (row, off): (&Row, bool),
    who: &Who,
    facts: &ProviderFacts,
    cascade: bool,
    set: impl Fn(&str) -> Remedy,
    object: (End, &dyn Display),
    findings: &mut Findings,
) {
    let external = row.get::<_, Option<bool>>("external") == Some(true);
    let ticker: bool = row.get("ticker");
    let preloaded: Option<bool> = row.get("preloaded");
    let remedy = || {
        if external && cascade {
            "see with consumer status which node above does not get on, and in pgcascade.node_state of the root whether a takeover \
             has closed it"
                .into()
        } else if external {
            set("external_ticker").words("start what ticks it, or")
        } else if off {
            let statement = format!("alter database {} set pgcascade.ticker = on", quoted(&facts.database));
            Remedy::run(End::Provider, statement).words("start what calls pgq.ticker(), or")
        } else if preloaded == Some(true) {
            "see the server's log for why pgcascade's ticker does not run (max_worker_processes?)".into()
        } else {
            "add pgcascade to shared_preload_libraries of the provider and restart it, or have pgq.ticker() called"
                .into()
        }
    };
    match row.get::<_, Option<f64>>("tick_age") {
        Some(age) if age > row.get::<_, f64>("idle_period") + TICKER_PATIENCE && (external || !ticker) => findings.add(
            Kind::Ticker,
            object,
            format!(
                "nobody makes ticks of queue \"{}\", so that nothing of it is replayed",
                who.queue
            ),
            remedy(),
        ),
        // A ticker that is wanted and can run, as far as can be seen, is about to.
        None if !ticker && (off || preloaded == Some(false)) => findings.add(
            Kind::TickerUnseen,
            object,
            format!(
                "no ticker runs in database \"{}\" of the provider, and there is no tick yet of anybody else's",
                facts.database
            ),
            remedy(),
        ),
        _ => {}
    }
}
