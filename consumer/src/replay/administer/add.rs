//! `consumer table add`.

use super::super::filter::{Columns, Filter};
use super::super::pattern::{self, Pattern};
use super::super::setup;
use super::super::survey::{self, Look};
use super::super::wish::{Rename, Wish};
use super::completed;
use crate::cli::table::AddArgs;
use crate::config::ReplayConfig;
use crate::error::{Error, Result};

/// Adds tables.
pub(super) async fn run(args: AddArgs) -> Result<()> {
    let patterns = if args.all {
        vec![Pattern::parse("*.*")?]
    } else {
        super::patterns(&args.patterns)?
    };
    let columns = match (args.only, args.except) {
        (Some(only), _) => Columns::Only(pattern::columns(&only)?),
        (None, Some(except)) => Columns::Except(pattern::columns(&except)?),
        (None, None) => Columns::All,
    };
    if args
        .condition
        .as_deref()
        .is_some_and(|text| text.trim().is_empty() || text.contains('\0'))
    {
        return Err(Error::usage("--where is not a condition"));
    }
    let wish = Wish {
        patterns,
        copy: !args.no_copy,
        replace_rows: args.replace,
        made: args.create || args.create_full,
        filter: Filter {
            columns,
            rows: args.condition,
        },
        rename: args.rename.as_deref().map(Rename::parse).transpose()?,
        all_new: true,
    };
    let (settings, node) = completed(args.whose.settings()?).await?;
    let config = ReplayConfig {
        node,
        ..settings.resolve()?
    };
    let ends = setup::open(&config, "table add").await?;
    let look = Look {
        create: args.create || args.create_full,
        full: args.create_full,
        foreign_keys: config.foreign_keys && !args.no_foreign_keys,
        truncate: false,
        merge: args.merge,
        new_only: true,
        policies: None,
        parking: None,
        sequences: config.sequences && !args.no_sequences,
        waits: false,
        ripe: &survey::NONE,
    };
    let base = ends.make(Some(&wish), look).await?;
    for warning in &base.warnings {
        tracing::warn!("{}; {}", warning.sentence, warning.remedy);
    }
    let added = base.entries;
    if added.is_empty() {
        tracing::info!("every table that matches is replayed already");
    }
    for entry in added {
        tracing::info!(table = %entry.provider, subscriber = %entry.subscriber, "table added");
    }
    Ok(())
}
