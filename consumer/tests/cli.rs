//! The command line of the real program, as far as it goes without a server: help, wrong usage, wrong configuration,
//! and what of it is kept out of messages.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops at the first surprise")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

fn consumer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(arguments)
        .env_remove("PGHOST")
        .env_remove("PGPORT")
        .env_remove("PGCASCADE_FAILPOINTS")
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const WHOLE: [&str; 9] = [
    "replay",
    "--provider",
    "host=127.0.0.1 port=1",
    "--subscriber",
    "host=127.0.0.1 port=1",
    "--queue",
    "q",
    "--table",
    "t",
];

#[test]
fn help_names_commands_exit_codes_and_every_flag() {
    let output = consumer(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["replay", "status", "tail", "Exit codes:", "--log-format"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    let output = consumer(&["replay", "--help"]);
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for flag in [
        "provider",
        "subscriber",
        "queue",
        "table",
        "consumer",
        "create",
        "no-copy",
        "truncate",
        "until-caught-up",
        "config",
    ] {
        assert!(help.contains(&format!("--{flag}")), "{flag}: {help}");
    }
    assert_eq!(consumer(&["--version"]).status.code(), Some(0));
}

#[test]
fn wrong_usage_exits_with_2_and_one_sentence() {
    for (arguments, sentence) in [
        (&["replay"][..], "--provider is missing"),
        (&["replay", "--provider", "host=h"], "--subscriber is missing"),
        (
            &["replay", "--provider", "nonsense", "--subscriber", "host=h"],
            "--provider: word 1",
        ),
        (&["status", "--provider", "host=h"], "--subscriber is missing"),
        (&["tail", "q"], "--provider is missing"),
        (
            &["tail", "q", "--provider", "host=h sslmode=full"],
            "--provider: sslmode",
        ),
        (&["replay", "--config", "/nowhere/at/all.toml"], "/nowhere/at/all.toml"),
        (&["replay", "--no-such-flag"], "--no-such-flag"),
        (&[], "Usage:"),
    ] {
        let output = consumer(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(sentence), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(WHOLE)
        .env("RUST_LOG", "=,=")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("RUST_LOG"), "{}", stderr(&output));
    let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(WHOLE)
        .env("PGCASCADE_FAILPOINTS", "x=y")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn a_wrong_file_is_named_with_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replay.toml");
    let name = file.to_str().unwrap();
    for (text, sentence) in [
        ("queue = \"q\"\nqueu = \"q\"\n", "line 2: queu: unknown field"),
        ("queue = 5\n", "line 1: queue: invalid type: integer, expected a string"),
        ("\nqueue = \"q\"\nqueue = \"q\"\n", "line 3: queue: duplicate key"),
        ("provider = \"host=h password=hunter2\n", "line 1: provider"),
    ] {
        fs::write(&file, text).unwrap();
        let output = consumer(&["replay", "--config", name]);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(&format!("{name}: {sentence}")), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    fs::write(&file, "provider = \"host=h password=hunter2\"\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    for command in [
        &["replay", "--config", name][..],
        &["status", "--config", name],
        &["tail", "q", "--config", name],
    ] {
        let output = consumer(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("chmod 600") && !stderr(&output).contains("hunter2"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_server_that_is_not_there_exits_with_1_and_says_where() {
    let output = consumer(&[
        "tail",
        "q",
        "--provider",
        "host=127.0.0.1 port=1 user=u password=hunter2 dbname=d",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    let (warning, error) = message.split_once('\n').unwrap();
    assert!(
        warning.contains("WARN") && warning.contains("password on the command line"),
        "{warning}"
    );
    assert_eq!(
        error.lines().next().unwrap(),
        "consumer: error: could not connect to the provider at 127.0.0.1 port 1 (database d): \
         error connecting to server: Connection refused (os error 111)"
    );
    assert!(!stderr(&output).contains("hunter2"));
    let output = consumer(&[
        "status",
        "--json",
        "--provider",
        "host=127.0.0.1 port=1",
        "--subscriber",
        "host=127.0.0.1 port=1",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["provider"]["reachable"], false);
    assert_eq!(status["subscriber"]["reachable"], false);
    assert_eq!(status["consumers"], serde_json::json!([]));
}
