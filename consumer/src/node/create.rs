//! `consumer node create-root`, `create-branch`, `create-leaf`.
//!
//! A new node is made from the outside in: the root and the provider learn where it is, the provider keeps what it will
//! need, and only then the database itself becomes a node, in one transaction with its position. A branch begins at the
//! watermark, the oldest tick that any node needs, so it can feed any of them; a leaf begins at its provider's last tick. What was
//! in the tables before, replay copies.

use tokio_postgres::{Client, Row};

use super::epoch;
use super::gravestone;
use super::tree::{self, Reached};
use crate::cascade::{self, Combined, Node, Role, ask};
use crate::cli::{CreateArgs, CreateLeafArgs, CreateRootArgs, NewNodeArgs};
use crate::config::{conninfo, name};
use crate::connect::{End, Session, connect};
use crate::conninfo::refuse_password;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::{Who, state};

/// The database that is to be a node, looked at.
pub(super) struct Candidate {
    pub(super) session: Session,
    pub(super) name: String,
    pub(super) queue: String,
    pub(super) location: String,
    /// Where administrators reach it, if that is another way.
    pub(super) admin_location: Option<String>,
    pub(super) worker: String,
    pub(super) encoding: String,
    extension: bool,
    pub(super) identity: String,
}

impl Candidate {
    fn client(&self) -> &Client {
        &self.session.client
    }

    fn title(&self) -> String {
        format!("node \"{}\" of queue \"{}\"", self.name, self.queue)
    }

    fn who(&self) -> Who {
        Who {
            consumer: self.worker.clone(),
            queue: self.queue.clone(),
        }
    }
}

const FACTS: &str = "select s.system_identifier::text || ':' || d.oid::text, pg_catalog.getdatabaseencoding()::text,
                            exists (select from pg_catalog.pg_extension where extname = 'pgcascade'), pg_catalog.pg_is_in_recovery()
                       from pg_catalog.pg_control_system() s, pg_catalog.pg_database d
                      where d.datname = pg_catalog.current_database()";

pub(super) async fn facts(client: &Client) -> Result<Row> {
    client
        .query_one(FACTS, &[])
        .await
        .doing(|| "identify the database".to_owned())
}

pub(super) async fn look(args: NewNodeArgs) -> Result<Candidate> {
    let name = name("NAME", Some(&args.name))?;
    let database = conninfo("db", Some(&args.db))?;
    let (flag, location) = match args.location {
        Some(location) => ("--location", location),
        None => ("--db", args.db),
    };
    refuse_password(flag, &location)?;
    if let Some(admin) = &args.admin_location {
        refuse_password("--admin-location", admin)?;
    }
    let session = connect(&database, End::Node, "consumer node").await?;
    let row = facts(&session.client).await?;
    let identity: String = row.get(0);
    if row.get(3) {
        return Err(Error::failure(format!(
            "the database ({database}) is a standby, which cannot be a node"
        ))
        .hint("Name its primary in --db."));
    }
    for (flag, text) in [
        ("location", Some(&location)),
        ("admin-location", args.admin_location.as_ref()),
    ] {
        let Some(text) = text else { continue };
        let place = conninfo(flag, Some(text))?;
        let elsewhere = connect(&place, End::Node, "consumer node").await?;
        let there: String = facts(&elsewhere.client).await?.get(0);
        if there != identity {
            return Err(Error::usage(format!(
                "--{flag} ({place}) leads to another database than --db ({database})"
            )));
        }
    }
    Ok(Candidate {
        worker: args.worker.unwrap_or_else(|| format!("{name}_worker")),
        session,
        name,
        queue: args.queue,
        location,
        admin_location: args.admin_location,
        encoding: row.get(1),
        extension: row.get(2),
        identity,
    })
}

fn needs_extension(candidate: &Candidate, role: Role) -> Result<()> {
    if candidate.extension {
        return Ok(());
    }
    Err(Error::failure(format!(
        "the database of {} does not have the extension pgcascade, which a {} needs",
        candidate.title(),
        role.word()
    ))
    .hint("create extension pgcascade"))
}

/// Whether the database is that node already. An error if it is another one.
async fn is_there(candidate: &Candidate, role: Role) -> Result<bool> {
    let Some(node) = cascade::load(candidate.client(), &candidate.queue).await? else {
        return Ok(false);
    };
    if node.name == candidate.name && node.role == role {
        tracing::info!(node = node.name, queue = node.queue, "this {} exists", role.word());
        return Ok(true);
    }
    Err(Error::failure(format!(
        "the database is a node of queue \"{}\" already: {} \"{}\"",
        candidate.queue,
        node.role.word(),
        node.name
    ))
    .hint("Drop that node first, with consumer node drop, or name another database."))
}

/// `create-root`
pub(super) async fn root(args: CreateRootArgs) -> Result<()> {
    let candidate = look(args.node).await?;
    needs_extension(&candidate, Role::Root)?;
    if is_there(&candidate, Role::Root).await? {
        return Ok(());
    }
    let (client, queue, name) = (candidate.client(), &candidate.queue, &candidate.name);
    let title = candidate.title();
    begin(client).await?;
    client
        .execute(include_str!("../replay/sql/make_queue.sql"), &[queue])
        .await
        .doing(|| format!("make queue \"{queue}\""))?;
    let call = "pgq_node.register_location($1, $2, $3, false)";
    ask(client, &title, call, &[queue, name, &candidate.location]).await?;
    cascade::tell_admin_location(client, queue, name, candidate.admin_location.as_deref()).await?;
    let call = "pgq_node.create_node($1, 'root', $2, $3, null, null, null)";
    ask(client, &title, call, &[queue, name, &candidate.worker]).await?;
    commit(client).await?;
    tracing::info!(node = name, queue, "root made");
    Ok(())
}

/// `create-branch`
pub(super) async fn branch(args: CreateArgs) -> Result<()> {
    below(args, Role::Branch, None).await
}

/// `create-leaf`
pub(super) async fn leaf(args: CreateLeafArgs) -> Result<()> {
    below(args.node, Role::Leaf, args.merge).await
}

/// What a leaf's database is in the cascade of the queue that its events are merged into.
async fn combined(candidate: &Candidate, queue: String) -> Result<Combined> {
    if queue == candidate.queue {
        return Err(Error::usage("a queue cannot be merged into itself").hint("Correct --merge."));
    }
    let node = if candidate.extension {
        cascade::load(candidate.client(), &queue).await?
    } else {
        None
    };
    match node {
        Some(Node {
            role: role @ (Role::Root | Role::Branch),
            ..
        }) => Ok(Combined {
            queue,
            role,
            position_known: role == Role::Root,
        }),
        _ => Err(Error::failure(format!(
            "the database of {} is neither root nor branch of queue \"{queue}\"",
            candidate.title()
        ))
        .hint("Make it one first, with consumer node create-root or create-branch.")),
    }
}

async fn below(args: CreateArgs, role: Role, merge: Option<String>) -> Result<()> {
    let provider = conninfo("provider", Some(&args.provider))?;
    let candidate = look(args.node).await?;
    if role == Role::Branch {
        needs_extension(&candidate, role)?;
    }
    if is_there(&candidate, role).await? {
        return Ok(());
    }
    let merge = match merge {
        Some(queue) => Some(combined(&candidate, queue).await?),
        None => None,
    };
    let provider = tree::reach(&provider, &candidate.queue).await?;
    let keeps_events = role == Role::Branch || merge.is_some();
    check_provider(&candidate, &provider, keeps_events).await?;
    let root = tree::root(&provider).await?;
    let root = root.as_ref().unwrap_or(&provider);
    let (queue, name, title) = (&candidate.queue, &candidate.name, candidate.title());
    let known = tree::known(root).await?.into_iter().find(|known| known.name == *name);
    if let Some(known) = &known
        && known.location != candidate.location
    {
        return Err(Error::failure(format!(
            "queue \"{queue}\" has a node \"{name}\" already, at {}",
            known.location
        ))
        .hint("Choose another name; or, if that node is gone: consumer node drop"));
    }
    if known.is_some_and(|known| known.dead) {
        // It was the root and comes back empty-handed.
        gravestone::remove_everywhere(root, name).await?;
    }

    let above = (root.node.name != provider.node.name).then_some(&provider);
    for node in [Some(root), above].into_iter().flatten() {
        let call = "pgq_node.register_location($1, $2, $3, false)";
        ask(&node.client(), &title, call, &[queue, name, &candidate.location]).await?;
        cascade::tell_admin_location(&node.client(), queue, name, candidate.admin_location.as_deref()).await?;
        failpoint("node_known");
    }
    // What a branch of the combined queue has of it, only that will tell: nothing that it may lack is to be forgotten until then.
    let behind = merge.as_ref().is_some_and(|combined| combined.role == Role::Branch);
    let row = provider
        .client()
        .query_one(
            include_str!("start.sql"),
            &[queue, &candidate.worker, &(role == Role::Leaf && !behind)],
        )
        .await
        .doing(|| format!("find the tick at which {title} begins"))?;
    // Null: the watermark, which the call below reads under a lock.
    let start: Option<i64> = row.get(0);
    let call = "pgq_node.register_subscriber($1, $2, $3, $4)";
    ask(
        &provider.client(),
        &title,
        call,
        &[queue, name, &candidate.worker, &start],
    )
    .await?;
    failpoint("node_subscribed");
    let start = provider
        .client()
        .query_one(include_str!("started.sql"), &[queue, &candidate.worker])
        .await
        .doing(|| format!("read the tick at which {title} begins"))?;
    let start = Start {
        tick: start.get(0),
        time: start.get(1),
        event_seq: start.get(2),
        settings: start.get(3),
    };

    state::install(candidate.client(), End::Node).await?;
    begin(candidate.client()).await?;
    match role {
        Role::Leaf => make_leaf(&candidate, &provider, &start, merge.as_ref()).await?,
        _ => make_branch(&candidate, &provider, &start).await?,
    }
    candidate.who().set(candidate.client(), start.tick).await?;
    commit(candidate.client()).await?;
    tracing::info!(
        node = name,
        queue,
        provider = provider.node.name,
        tick = start.tick,
        "{} made",
        role.word()
    );
    Ok(())
}

async fn check_provider(candidate: &Candidate, provider: &Reached, keeps_events: bool) -> Result<()> {
    if provider.node.role == Role::Leaf {
        return Err(Error::usage(format!(
            "the provider, {}, is a leaf, which has no queue to read from",
            provider.node.title()
        )));
    }
    let row = facts(&provider.client()).await?;
    if keeps_events && !row.get::<_, bool>(2) {
        return Err(Error::usage(format!(
            "{}, the provider, is a node of PgQ's own, which cannot feed a branch, or a leaf with --merge",
            provider.node.title()
        ))
        .hint("A leaf can read from it: consumer node create-leaf. For a branch, make the provider one of pgcascade's (docs/dump.md)."));
    }
    let (identity, encoding): (String, String) = (row.get(0), row.get(1));
    if identity == candidate.identity {
        return Err(Error::usage("--db and --provider are the same database"));
    }
    if keeps_events && encoding != candidate.encoding {
        return Err(Error::failure(format!(
            "the database of {} has the encoding {}, and its provider has {encoding}",
            candidate.title(),
            candidate.encoding
        ))
        .hint("A branch keeps the events as they are, so its database must have the same encoding, and so does a leaf with --merge; another leaf need not."));
    }
    Ok(())
}

/// Where the new node begins.
struct Start {
    tick: i64,
    time: String,
    event_seq: i64,
    /// The provider's queue's settings, name and value in turn.
    settings: Vec<String>,
}

async fn make_branch(candidate: &Candidate, provider: &Reached, start: &Start) -> Result<()> {
    let (client, queue, title) = (candidate.client(), &candidate.queue, candidate.title());
    for known in tree::known(provider).await? {
        let call = "pgq_node.register_location($1, $2, $3, $4)";
        ask(
            client,
            &title,
            call,
            &[queue, &known.name, &known.location, &known.dead],
        )
        .await?;
        cascade::tell_admin_location(client, queue, &known.name, known.admin_location.as_deref()).await?;
    }
    let call = "pgq_node.create_node($1, 'branch', $2, $3, $4, $5, null)";
    ask(
        client,
        &title,
        call,
        &[
            queue,
            &candidate.name,
            &candidate.worker,
            &provider.node.name,
            &start.tick,
        ],
    )
    .await?;
    let what = || format!("set up the queue of {title}");
    if let Some(epochs) = cascade::newer_epochs(&provider.client(), queue, 0).await? {
        client
            .execute("select pgcascade.learn_epochs($1, $2::text::jsonb)", &[queue, &epochs])
            .await
            .doing(what)?;
    }
    // Its first tick is one of the root's, too.
    client
        .execute(
            "update pgq.tick t set tick_time = $3::text::timestamptz, tick_event_seq = $4
               from pgq.queue q where q.queue_name = $1 and t.tick_queue = q.queue_id and t.tick_id = $2",
            &[queue, &start.tick, &start.time, &start.event_seq],
        )
        .await
        .doing(what)?;
    // As they would have to be if it became the root.
    for setting in start.settings.chunks_exact(2) {
        client
            .execute(
                "select pgq.set_queue_config($1, $2, $3)",
                &[queue, &setting[0], &setting[1]],
            )
            .await
            .doing(what)?;
    }
    // PgQ's own feeds no branch, so the provider is one of ours.
    let packed = "select from pgcascade.packed_queue p join pgq.queue q on q.queue_id = p.queue_id where q.queue_name = $1 and p.packs";
    if provider
        .client()
        .query_opt(packed, &[queue])
        .await
        .doing(what)?
        .is_some()
    {
        client
            .execute("select pgcascade.pack_events($1, true)", &[queue])
            .await
            .doing(what)?;
    }
    Ok(())
}

async fn make_leaf(candidate: &Candidate, provider: &Reached, start: &Start, merge: Option<&Combined>) -> Result<()> {
    let (client, queue) = (candidate.client(), &candidate.queue);
    let what = || format!("make {}", candidate.title());
    let epoch = epoch::of(provider).await?;
    client
        .execute(
            "insert into pgcascade_replay.node (queue, node, worker, provider, tick_time, combined_queue, position_known, epoch)
             values ($1, $2, $3, $4, $5::text::timestamptz, $6, $7, $8)",
            &[
                queue,
                &candidate.name,
                &candidate.worker,
                &provider.node.name,
                &start.time,
                &merge.map(|combined| &combined.queue),
                &merge.is_none_or(|combined| combined.position_known),
                &epoch,
            ],
        )
        .await
        .doing(what)?;
    for known in tree::known(provider).await? {
        client
            .execute(
                "insert into pgcascade_replay.node_location (queue, node, location, dead, admin_location) values ($1, $2, $3, $4, $5)",
                &[queue, &known.name, &known.location, &known.dead, &known.admin_location],
            )
            .await
            .doing(what)?;
    }
    Ok(())
}

async fn begin(client: &Client) -> Result<()> {
    client
        .batch_execute("begin")
        .await
        .doing(|| "begin a transaction".to_owned())
}

async fn commit(client: &Client) -> Result<()> {
    client
        .batch_execute("commit")
        .await
        .doing(|| "commit the new node".to_owned())
}
