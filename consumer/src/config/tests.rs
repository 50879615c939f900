//! What a file and flags come to, and what is said of a wrong file.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use clap::{CommandFactory, Parser};

use super::*;
use crate::cli::{Cli, Command};

const WHOLE: &str = r#"
provider = "host=db1 dbname=app user=u"
subscriber = "host=db2 dbname=app user=u"
queue = "q"
table = ["public.*", "audit.log"]
create = true
max-memory = 10000000
"#;

fn flags(line: &str) -> ReplaySettings {
    match Cli::try_parse_from(format!("consumer replay {line}").split_whitespace())
        .unwrap()
        .command
    {
        Command::Replay(args) => args.settings,
        _ => ReplaySettings::default(),
    }
}

fn refused(text: &str) -> String {
    let error = parse_file(text).err().unwrap();
    assert_eq!(error.exit_code(), 2, "{text}");
    format!("{error:#}")
}

#[test]
fn flags_override_the_file() {
    let settings = flags("--queue other --create=false --table t").over(parse_file(WHOLE).unwrap());
    let config = settings.resolve().unwrap();
    assert_eq!(config.queue, "other");
    assert_eq!(config.consumer, "replay_db2_app");
    assert_eq!(config.tables, ["t"]);
    assert!(!config.create && config.copy && !config.truncate && !config.until_caught_up);
    assert_eq!(config.max_memory.chunk(), 625_000);
    let config = flags("--no-copy --until-caught-up")
        .over(parse_file(WHOLE).unwrap())
        .resolve()
        .unwrap();
    assert_eq!(config.tables, ["public.*", "audit.log"]);
    assert!(config.create && !config.copy && config.until_caught_up);
    assert_eq!(config.poll_interval, Duration::from_secs(1));
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_line_and_key() {
    assert_eq!(
        refused("queue = \"q\"\nqueues = \"r\"\n")
            .lines()
            .next()
            .unwrap()
            .split(", expected")
            .next()
            .unwrap(),
        "line 2: queues: unknown field `queues`"
    );
    assert_eq!(
        refused("\n\ncreate = \"yes\"\n"),
        "line 3: create: invalid type: string, expected a boolean"
    );
    assert_eq!(
        refused("table = [\n  \"a\",\n  5,\n]\n"),
        "line 3: table: invalid type: integer, expected a string"
    );
    assert!(refused("table = \"a\"").starts_with("line 1: table: invalid type: string, expected a sequence"));
    assert!(
        refused("queue = \"q\"\nqueue = \"r\"\n").starts_with("line 2: queue: duplicate key"),
        "{}",
        refused("queue = \"q\"\nqueue = \"r\"\n")
    );
    assert!(refused("queue = q\n").starts_with("line 1: queue: "));
    assert!(refused("[replay]\nqueue = \"q\"\n").starts_with("line 1: "));
    assert!(refused("max-memory = -1").starts_with("line 1: max-memory: invalid value: integer"));
}

#[test]
fn a_wrong_file_does_not_show_its_values() {
    for text in [
        "create = \"password=hunter2\"",
        "table = \"password=hunter2\"",
        "provider = \"password=hunter2",
        "provider = 'password=hunter2'\nprovider = 'password=hunter2'",
        "provider = password=hunter2",
        "poll-interval = 'hunter2'",
    ] {
        assert!(!refused(text).contains("hunter2"), "{}", refused(text));
    }
}

#[test]
fn values_are_checked() {
    let wrong = |line: &str| {
        let error = flags(line).over(parse_file(WHOLE).unwrap()).resolve().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    assert_eq!(
        wrong("--max-memory 1"),
        "--max-memory is 1, but must be from 8388608 to 4294967296"
    );
    assert_eq!(
        wrong("--poll-interval 0"),
        "--poll-interval is 0, but must be from 1 to 3600"
    );
    assert_eq!(
        wrong("--no-copy --truncate"),
        "--no-copy and --truncate contradict each other"
    );
    assert!(wrong("--provider port=x").starts_with("--provider: port "));
    for (needed, value) in [("provider", "x"), ("subscriber", "x"), ("queue", "x")] {
        let others: String = ["provider", "subscriber", "queue"]
            .iter()
            .filter(|other| **other != needed)
            .map(|other| format!("--{other} host={value} "))
            .collect();
        assert_eq!(
            flags(&others).resolve().unwrap_err().to_string(),
            format!("--{needed} is missing")
        );
    }
}

#[test]
fn a_file_that_gives_a_password_away_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replay.toml");
    let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    fs::write(&file, "provider = \"host=h password=hunter2\"\n").unwrap();
    for open in [0o640, 0o604, 0o644] {
        mode(open);
        let error = read_file(&file).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(format!("{error:#}").contains("chmod 600") && !format!("{error:#}").contains("hunter2"));
    }
    mode(0o600);
    assert!(read_file(&file).is_ok());
    fs::write(&file, "provider = \"postgresql://u@h/d\"\n").unwrap();
    mode(0o644);
    assert!(read_file(&file).is_ok());
    let error = read_file(&folder.path().join("absent.toml")).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("absent.toml"));
}

#[test]
fn the_file_has_exactly_the_keys_that_are_flags() {
    // serde lists what it knows when it meets what it does not.
    let known = refused("no-such-key = 1");
    let replay = Cli::command().find_subcommand("replay").unwrap().clone();
    let flags: Vec<&str> = replay
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .filter(|flag| *flag != "config")
        .collect();
    assert_eq!(known.matches('`').count(), 2 * (flags.len() + 1), "{known}");
    for flag in flags {
        assert!(known.contains(&format!("`{flag}`")), "{flag}: {known}");
    }
}

#[test]
fn policies_are_of_all_tables_or_of_some() {
    let config = flags("--on-conflict skip --on-conflict a=b=overwrite --on-error park")
        .over(parse_file(WHOLE).unwrap())
        .resolve()
        .unwrap();
    assert_eq!(
        config.on_conflict,
        [(None, Policy::Skip), (Some("a=b".to_owned()), Policy::Overwrite)]
    );
    assert!(config.park);
    let config = parse_file(&format!("{WHOLE}on-conflict = [\"t=stop\"]\non-error = \"stop\"\n"))
        .unwrap()
        .resolve()
        .unwrap();
    assert_eq!(config.on_conflict, [(Some("t".to_owned()), Policy::Stop)]);
    assert!(!config.park);
    for wrong in [
        "on-conflict = [\"hunter2\"]",
        "on-conflict = [\"t=\"]",
        "on-error = \"hunter2\"",
    ] {
        let error = parse_file(&format!("{WHOLE}{wrong}\n")).unwrap().resolve().unwrap_err();
        assert!(
            error.exit_code() == 2 && !format!("{error:#}").contains("hunter2"),
            "{error:#}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn no_file_ends_the_process_or_shows_a_value(
        value in "[\"'\\[{]?hunter2[\"'\\]}=,\\n ]*",
        key in "provider|table|create|max-memory|x",
    ) {
        if let Err(error) = parse_file(&format!("queue = \"q\"\n{key} = {value}\n")) {
            proptest::prop_assert_eq!(error.exit_code(), 2);
            proptest::prop_assert!(!format!("{error:#}").contains("hunter2"), "{:#}", error);
        }
    }
}
