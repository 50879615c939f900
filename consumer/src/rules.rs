//! docs/rules.md says which test holds each rule; this holds docs/rules.md: every test it names exists, and no rule is without.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::path::Path;

/// What a test is called in the table: a file, and for a test in Rust the function in it.
fn exists(root: &Path, test: &str) -> bool {
    let (file, function) = test.split_once("::").unwrap_or((test, ""));
    let Ok(text) = std::fs::read_to_string(root.join(file)) else {
        return false;
    };
    let golden = || {
        let name = Path::new(file).file_stem().unwrap().to_str().unwrap();
        root.join("regress/expected").join(format!("{name}.out")).exists()
    };
    match Path::new(file).extension().and_then(|extension| extension.to_str()) {
        Some("spec" | "sql") => function.is_empty() && golden(),
        Some("rs") => !function.is_empty() && text.contains(&format!("fn {function}(")),
        _ => false,
    }
}

#[test]
fn every_rule_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("docs/rules.md")).unwrap();
    let mut rules = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [rule, tests, _] = cells[..] else {
            panic!("three cells, please: {line}")
        };
        if rule == "rule or case" {
            continue;
        }
        rules.push(rule.split([' ', ':']).next().unwrap());
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        // The two that belong to takeover, which does not exist yet.
        assert!(!names.is_empty() || tests == "none yet", "no test: {line}");
        for name in names {
            assert!(exists(&root, name), "docs/rules.md names {name}, which does not exist");
        }
    }
    for number in 1..=13 {
        let rule = format!("R{number}");
        assert!(rules.contains(&rule.as_str()), "docs/rules.md has no line for {rule}");
    }
    for (name, known) in [
        ("regress/specs/no_such.spec", false),
        ("regress/specs/rotation_steps.spec", true),
    ] {
        assert_eq!(exists(&root, name), known);
    }
}
