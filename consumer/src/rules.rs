//! docs/rules.md says which test holds each rule; this holds docs/rules.md: every test it names exists, and no rule is without.
//! And docs/compatibility.md: no function of PgQ's interface is left out, and each is at least the same.
//! The same for docs/replay-torture.md, whose lines are types and shapes of tables, and what is promised of replay.

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
        assert!(!names.is_empty(), "no test: {line}");
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

/// The functions of PgQ's schemas that a page's tables name, `schema.name`, and what is said of each.
fn compared(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let Some((names, verdict)) = line.trim_matches('|').split_once(" | ") else {
            continue;
        };
        // A name without schema is of the schema of the name before it; a row about each schema says so.
        let mut schemas = vec!["pgq"];
        if names.contains("of each schema") {
            schemas = vec!["pgq_coop", "pgq_ext", "pgq_node"];
        }
        for name in names.split('`').skip(1).step_by(2) {
            let name = name.split('(').next().unwrap_or(name);
            let name = match name.split_once('.') {
                Some((schema, name)) => {
                    schemas = vec![schema];
                    name
                }
                None => name,
            };
            let all = schemas
                .iter()
                .map(|schema| (format!("{schema}.{name}"), verdict.trim().to_owned()));
            found.extend(all);
        }
    }
    found
}

#[test]
fn every_function_of_pgq_is_compared_and_none_is_missing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/compatibility.md")).unwrap();
    let interface = std::fs::read_to_string(root.join("regress/expected/signatures.out")).unwrap();
    let compared = compared(&page);
    let mut functions = 0;
    for line in interface
        .lines()
        .filter(|line| line.starts_with("pgq") && line.contains(") returns "))
    {
        let function = line.split('(').next().unwrap();
        functions += 1;
        let verdicts: Vec<&str> = compared
            .iter()
            .filter(|(name, _)| name == function)
            .map(|(_, verdict)| verdict.as_str())
            .collect();
        assert!(
            !verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.starts_with("same")),
            "docs/compatibility.md says of {function}: {verdicts:?}"
        );
    }
    assert!(functions > 100, "{functions} functions are not PgQ's interface");
}

#[test]
fn every_torture_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("docs/replay-torture.md")).unwrap();
    let row = |line: &&str| line.starts_with("| ") && !line.ends_with("| test |");
    let lines: Vec<&str> = text.lines().filter(row).collect();
    assert!(lines.len() > 10, "{lines:?}");
    for line in lines {
        let name = line.rsplit('`').nth(1).unwrap_or_default();
        assert!(
            exists(&root, name),
            "docs/replay-torture.md names a test that does not exist: {line}"
        );
    }
}
