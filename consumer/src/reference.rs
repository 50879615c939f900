//! The reference in docs/configuration.md, made from the code. The test below compares the part of that file between
//! the two marks with what the code says; `PGCASCADE_UPDATE_DOCS=1 cargo test -p pgcascade-consumer reference` rewrites
//! it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::any::TypeId;
use std::fmt::Write;
use std::path::Path;

use clap::{Arg, ArgAction, CommandFactory};

use crate::cli::Cli;
use crate::conninfo;

const BEGIN: &str = "<!-- generated from the code: begin -->";
const END: &str = "<!-- generated from the code: end -->";

#[test]
fn the_reference_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).unwrap();
    let (found, tail) = rest.split_once(END).unwrap();
    let wanted = format!("\n{}\n", reference());
    if std::env::var_os("PGCASCADE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{wanted}{END}{tail}")).unwrap();
    } else if found != wanted {
        panic!(
            "docs/configuration.md is not what the code says; rewrite it with:\n  \
             PGCASCADE_UPDATE_DOCS=1 cargo test -p pgcascade-consumer reference"
        );
    }
}

fn reference() -> String {
    let command = Cli::command();
    let mut out = String::new();
    heading(&mut out, "## Every command");
    flags(&mut out, command.get_arguments(), false);
    let mut names = ["replay", "check", "compare", "repair", "status"]
        .map(str::to_owned)
        .to_vec();
    for family in ["table", "node"] {
        let verbs = command.find_subcommand(family).unwrap().get_subcommands();
        // What is a command of its own is described as that.
        let verbs = verbs.filter(|verb| command.find_subcommand(verb.get_name()).is_none());
        names.extend(verbs.map(|verb| format!("{family} {}", verb.get_name())));
    }
    names.extend(["takeover", "execute", "tail"].map(str::to_owned));
    for name in names {
        let command = name
            .split(' ')
            .fold(&command, |command, name| command.find_subcommand(name).unwrap());
        heading(&mut out, &format!("\n## consumer {name}"));
        let about = command.get_long_about().or(command.get_about()).unwrap().to_string();
        let _ = writeln!(out, "{about}\n");
        if name == "check" {
            let own = |argument: &&Arg| argument.get_id() == "json";
            flags(&mut out, command.get_arguments().filter(own), false);
            out.push_str("\nAll others are replay's; those that say how replay works change nothing here.\n");
            continue;
        }
        flags(&mut out, command.get_arguments(), name == "replay");
    }
    heading(&mut out, "\n## Connection strings");
    out.push_str("| keyword | environment variable | meaning |\n|---|---|---|\n");
    for (keyword, variable, meaning) in conninfo::reference() {
        let variable = if variable.is_empty() {
            String::new()
        } else {
            format!("`{variable}`")
        };
        let _ = writeln!(out, "| `{keyword}` | {variable} | {meaning} |");
    }
    out
}

fn heading(out: &mut String, text: &str) {
    let _ = writeln!(out, "{text}\n");
}

fn flags<'a>(out: &mut String, arguments: impl Iterator<Item = &'a Arg>, keys: bool) {
    let (head, rule) = if keys {
        ("| flag | key in the file | meaning |", "|---|---|---|")
    } else {
        ("| flag | meaning |", "|---|---|")
    };
    let _ = writeln!(out, "{head}\n{rule}");
    for argument in arguments
        .filter(|argument| !argument.is_hide_set() && argument.get_id() != "help" && argument.get_id() != "version")
    {
        let value = argument
            .get_value_names()
            .and_then(|names| names.first())
            .map(ToString::to_string);
        let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
        let is_switch = value.as_deref() == Some("BOOL");
        let flag = match (argument.get_long(), value) {
            (Some(long), Some(value)) if takes_value && !is_switch => format!("`--{long} {value}`"),
            (Some(long), _) => format!("`--{long}`"),
            (None, _) => format!("`{}`", argument.get_id().as_str().to_uppercase()),
        };
        let short = argument
            .get_short()
            .map(|short| format!(", `-{short}`"))
            .unwrap_or_default();
        let meaning = argument
            .get_long_help()
            .or(argument.get_help())
            .unwrap()
            .to_string()
            .replace('\n', " ")
            .replace('|', "\\|");
        if keys {
            let key = match (argument.get_long(), argument.get_action()) {
                (Some("config") | None, _) => String::new(),
                (Some(long), ArgAction::Append) => format!("`{long} = [\"...\"]`"),
                (Some(long), _) if is_switch => format!("`{long} = true`"),
                (Some(long), _) if argument.get_value_parser().type_id() == TypeId::of::<u64>() => {
                    format!("`{long} = NUMBER`")
                }
                (Some(long), _) => format!("`{long} = \"...\"`"),
            };
            let _ = writeln!(out, "| {flag}{short} | {key} | {meaning} |");
        } else {
            let _ = writeln!(out, "| {flag}{short} | {meaning} |");
        }
    }
}
