//! The tree as text for a person.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Cascade, Shown};

/// The whole tree: every node under its provider; those whose place is not known, at the end.
/// (Writing into a String cannot fail, so the outcome of each `write!` is dropped.)
pub(super) fn text(cascade: &Cascade) -> String {
    let mut out = format!("queue {}\n", cascade.queue);
    if let Some(error) = &cascade.error {
        let _ = writeln!(out, "ERROR {error}");
    }
    let mut shown = vec![false; cascade.nodes.len()];
    let is_root = |node: &Shown| node.role.as_deref() == Some("root");
    for (i, node) in cascade.nodes.iter().enumerate() {
        if is_root(node) {
            branch(&mut out, cascade, i, "", "", &mut shown);
        }
    }
    // Below a node that could not be asked, or nowhere.
    for (i, node) in cascade.nodes.iter().enumerate() {
        let parent = node.provider.as_deref();
        if !shown[i] && !cascade.nodes.iter().any(|other| Some(other.node.as_str()) == parent) {
            branch(&mut out, cascade, i, "", "", &mut shown);
        }
    }
    for i in 0..cascade.nodes.len() {
        if !shown[i] {
            branch(&mut out, cascade, i, "", "", &mut shown);
        }
    }
    out
}

fn branch(out: &mut String, cascade: &Cascade, at: usize, first: &str, rest: &str, shown: &mut [bool]) {
    if std::mem::replace(&mut shown[at], true) {
        return;
    }
    let node = &cascade.nodes[at];
    let below: Vec<usize> = (0..cascade.nodes.len())
        .filter(|&i| !shown[i] && cascade.nodes[i].provider.as_deref() == Some(node.node.as_str()))
        .collect();
    line(out, node, first);
    let bar = if below.is_empty() { "    " } else { "|   " };
    for (label, text) in remarks(node) {
        let _ = writeln!(out, "{rest}{bar}{label}{text}");
    }
    for (nth, &i) in below.iter().enumerate() {
        let last = nth + 1 == below.len();
        let (branch_first, branch_rest) = if last { ("`-- ", "    ") } else { ("|-- ", "|   ") };
        branch(
            out,
            cascade,
            i,
            &format!("{rest}{branch_first}"),
            &format!("{rest}{branch_rest}"),
            shown,
        );
    }
}

fn line(out: &mut String, node: &Shown, first: &str) {
    let _ = write!(out, "{first}{}", node.node);
    if let Some(role) = &node.role {
        let _ = write!(out, " ({role})");
    }
    if let Some(epoch) = node.epoch.epoch {
        let _ = write!(out, "  epoch {epoch}");
    }
    if let Some(tick) = node.tick {
        let _ = write!(out, "  tick {tick}");
    }
    if let Some(lag) = &node.lag
        && node.role.as_deref() != Some("root")
    {
        let _ = write!(out, "  lag {} ticks", lag.ticks);
        if let Some(events) = lag.events {
            let _ = write!(out, ", {events} events");
        }
        if let Some(seconds) = lag.seconds {
            let _ = write!(out, ", {seconds} s");
        }
    }
    let states: Vec<String> = node
        .tables
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if !states.is_empty() {
        let _ = write!(out, "  tables: {}", states.join(", "));
    }
    if let Some(gate) = &node.gate {
        let _ = write!(out, "  gate {}", gate.candidates);
        if let Some(tick) = gate.released_tick {
            let _ = write!(out, " at tick {tick}");
        }
    }
    if node.epoch.open == Some(false) {
        out.push_str("  CLOSED");
    }
    if node.epoch.frozen {
        out.push_str("  FROZEN");
    }
    if node.paused {
        out.push_str("  PAUSED");
    }
    if node.reachable && !node.uptodate {
        out.push_str("  NOT UP TO DATE");
    }
    if node.dead {
        out.push_str("  DEAD");
    }
    if !node.reachable {
        out.push_str("  NOT REACHED");
    }
    out.push('\n');
}

fn remarks(node: &Shown) -> Vec<(&'static str, Cow<'_, str>)> {
    let mut remarks: Vec<(&'static str, Cow<'_, str>)> = Vec::new();
    match &node.admin_location {
        Some(location) => remarks.push(("for administrators at ", location.into())),
        None if !node.reachable => remarks.push(("at ", (&node.location).into())),
        None => {}
    }
    if let Some(error) = &node.error {
        remarks.push(("ERROR ", error.into()));
    }
    if let Some(promise) = node.epoch.promise().filter(|_| !node.epoch.frozen) {
        remarks.push(("promised ", promise.into()));
    }
    for standby in node.gate.iter().flat_map(|gate| &gate.standbys) {
        let gone = if standby.streams { "" } else { "  NOT STREAMING" };
        remarks.push((
            "standby ",
            format!("{}  has tick {}{gone}", standby.name, standby.tick).into(),
        ));
    }
    remarks.extend(node.warnings.iter().map(|warning| ("WARNING ", warning.into())));
    remarks
}
