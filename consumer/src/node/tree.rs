//! Finding the nodes of a cascade from any one of them.

use once_cell::sync::OnceCell;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::cascade::{self, ADMIN_LOCATIONS, Node, Role};
use crate::cli::CascadeArgs;
use crate::config::conninfo;
use crate::connect::silence::{Asking, Patience};
use crate::connect::{End, Session, connect_within, exists};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};

/// More than any tree is high: a circle ends here.
pub(crate) const HIGHEST: usize = 64;

/// Of the command that this process runs, with all nodes, if it must end whatever becomes of them.
pub(crate) static PATIENCE: OnceCell<Patience> = OnceCell::new();

/// A node that is connected to.
pub(crate) struct Reached {
    pub(crate) session: Session,
    pub(crate) node: Node,
}

impl Reached {
    /// For one question, see [`Session::ask`].
    pub(crate) fn client(&self) -> Asking<'_> {
        self.session.ask()
    }
}

/// A node as another one knows it.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) name: String,
    /// Where it is for programs.
    pub(crate) location: String,
    /// Where it is for administrators, if that is another way.
    pub(crate) admin_location: Option<String>,
    pub(crate) dead: bool,
}

impl Known {
    /// The way for who types commands.
    pub(crate) fn place(&self) -> Result<ConnInfo> {
        let text = self.admin_location.as_ref().unwrap_or(&self.location);
        ConnInfo::parse(text).map_err(|error| error.within(format_args!("the location of node \"{}\"", self.name)))
    }

    /// Another node learns it, too; in its transaction, if there is one.
    pub(crate) async fn tell(&self, client: &Client, node: &Node) -> Result<()> {
        cascade::set_location(client, node, &self.name, &self.location, self.dead).await?;
        cascade::set_admin_location(client, node, &self.name, self.admin_location.as_deref()).await
    }
}

/// The node that `--db` names.
pub(crate) async fn entry(args: &CascadeArgs) -> Result<Reached> {
    let database = conninfo("db", Some(&args.db))?;
    reach(&database, &args.queue).await
}

/// Connects to a database that must be a node.
pub(crate) async fn reach(database: &ConnInfo, queue: &str) -> Result<Reached> {
    let session = connect_within(database, End::Node, "consumer node", PATIENCE.get().copied()).await?;
    let node = cascade::load(&session.ask(), queue).await?.ok_or_else(|| {
        Error::failure(format!("the database ({database}) is no node of queue \"{queue}\""))
            .hint("consumer node create-root, create-branch or create-leaf makes it one.")
    })?;
    Ok(Reached { session, node })
}

/// Connects to a node at the location that another one knows.
pub(crate) async fn reach_known(known: &Known, queue: &str) -> Result<Reached> {
    let reached = reach(&known.place()?, queue)
        .await
        .map_err(|error| error.within(format_args!("node \"{}\"", known.name)))?;
    if !cascade::is_called(&reached.client(), &reached.node, &known.name).await? {
        return Err(Error::failure(format!(
            "the location of node \"{}\" leads to {}",
            known.name,
            reached.node.title()
        ))
        .hint("Say where it is: consumer node change-location."));
    }
    Ok(reached)
}

/// All nodes that this one knows, itself among them.
pub(crate) async fn known(from: &Reached) -> Result<Vec<Known>> {
    let query = if from.node.role == Role::Leaf {
        // Versions before 13 have no such column.
        "select node, location, dead, pg_catalog.to_jsonb(l) ->> 'admin_location' from pgcascade_replay.node_location l
          where queue = $1 order by node"
    } else if !exists(&from.client(), ADMIN_LOCATIONS).await? {
        "select node_name, node_location, dead, null from pgq_node.node_location where queue_name = $1 order by node_name"
    } else {
        "select node_name, node_location, dead, a.location
           from pgq_node.node_location left join pgcascade.node_admin_location a using (queue_name, node_name)
          where queue_name = $1 order by node_name"
    };
    let rows = from
        .client()
        .query(query, &[&from.node.queue])
        .await
        .doing(|| format!("read where the nodes of queue \"{}\" are", from.node.queue))?;
    Ok(rows
        .iter()
        .map(|row| Known {
            name: row.get(0),
            location: row.get(1),
            dead: row.get(2),
            admin_location: row.get(3),
        })
        .collect())
}

/// The node of that name, as `from` knows it.
pub(crate) async fn find(from: &Reached, name: &str) -> Result<Known> {
    known(from)
        .await?
        .into_iter()
        .find(|known| known.name == name)
        .ok_or_else(|| {
            Error::usage(format!("queue \"{}\" has no node \"{name}\"", from.node.queue))
                .hint("consumer status shows the nodes.")
        })
}

/// Connects to the node of that name; None: it is `from` itself.
pub(crate) async fn other(from: &Reached, name: &str) -> Result<Option<Reached>> {
    if from.node.name == name {
        return Ok(None);
    }
    reach_known(&find(from, name).await?, &from.node.queue).await.map(Some)
}

/// The root above `from`; None: it is `from` itself.
pub(crate) async fn root(from: &Reached) -> Result<Option<Reached>> {
    let mut at: Option<Reached> = None;
    for _ in 0..HIGHEST {
        let here = at.as_ref().unwrap_or(from);
        if here.node.role == Role::Root {
            return Ok(at);
        }
        let above = find(here, &here.node.provider).await?;
        at = Some(reach_known(&above, &from.node.queue).await?);
    }
    Err(Error::failure(format!(
        "the providers above {} form a circle",
        from.node.title()
    )))
}

/// All nodes learn where this one is, by an event of the root's, if the root does not know it, or thinks that it is dead.
pub(super) async fn tell_all(at: &Reached, root: &Reached) -> Result<()> {
    let there = known(root).await?;
    if there.iter().any(|known| known.name == at.node.name && !known.dead) {
        return Ok(());
    }
    let own = find(at, &at.node.name).await?;
    let call = "pgq_node.register_location($1, $2, $3, false)";
    let values: &[&(dyn ToSql + Sync)] = &[&at.node.queue, &own.name, &own.location];
    cascade::ask(&root.client(), &at.node.title(), call, values).await?;
    cascade::tell_admin_location(&root.client(), &at.node.queue, &own.name, own.admin_location.as_deref()).await
}

/// Refuses while a node has a part in a takeover.
pub(crate) async fn check_no_takeover(at: &Reached) -> Result<()> {
    if at.node.role != Role::Leaf && exists(&at.client(), "pgcascade.takeover").await? {
        at.client()
            .execute("select pgcascade.check_no_takeover($1)", &[&at.node.queue])
            .await
            .doing(|| format!("see whether a takeover is under way on {}", at.node.title()))?;
    }
    Ok(())
}
