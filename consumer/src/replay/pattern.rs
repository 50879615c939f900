//! The patterns of `--table` and `consumer table`: their grammar, and the tables that they mean.
//!
//! `schema.table` or `table`, either part with `*` and `?`; unquoted letters are folded to lower case as in SQL, and
//! what is in double quotes stands for itself. A pattern without a schema means schema public. Only tables are meant:
//! another kind of relation is an error if it is named in full, and is passed over by a wildcard. A partition is part of its
//! table if that is meant, too, and a table of its own if not.

use std::collections::HashSet;
use std::fmt;

use tokio_postgres::{Client, Row};

use super::findings::{Findings, Kind};
use super::table::{Name, kind_name};
use crate::connect::End;
use crate::error::{Doing, Error, Result};

/// Something that a pattern could mean.
#[derive(Debug)]
pub(super) struct Relation {
    pub(super) name: Name,
    /// `pg_class.relkind`.
    kind: String,
    /// Of a partition: the tables that it is part of.
    pub(super) above: Vec<Name>,
}

impl Relation {
    /// Whether it has rows that can be replayed.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.kind.as_str(), "r" | "p")
    }
}

/// Everything that a pattern can mean on the provider.
pub(super) async fn relations(provider: &Client) -> Result<Vec<Relation>> {
    let rows = provider
        .query(include_str!("sql/relations.sql"), &[])
        .await
        .doing(|| "list the tables of the provider".to_owned())?;
    let relation = |row: &Row| {
        let schemas: Vec<&str> = row.get(3);
        let names: Vec<&str> = row.get(4);
        let above = schemas.into_iter().zip(names);
        Relation {
            name: Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
            kind: row.get(2),
            above: above.map(|(schema, name)| Name::new(schema, name)).collect(),
        }
    };
    Ok(rows.iter().map(relation).collect())
}

/// The tables of which these are partitions.
pub(super) fn above(relations: &[Relation], is_one: impl Fn(&Name) -> bool) -> HashSet<&Name> {
    let ones = relations.iter().filter(|relation| is_one(&relation.name));
    ones.flat_map(|relation| &relation.above).collect()
}

/// The tables that the patterns mean, in the order of their names. A pattern that means none, or that names something which
/// is not a table, is a finding. `in_parts` are tables of which some partitions are replayed by themselves: a wildcard means
/// their other partitions.
pub(super) fn resolve<'a>(
    relations: &'a [Relation],
    in_parts: &HashSet<&Name>,
    patterns: &[Pattern],
    findings: &mut Findings,
) -> Vec<&'a Relation> {
    let mut meant: Vec<&Relation> = Vec::new();
    for pattern in patterns {
        let before = findings.len();
        let mut found = false;
        for relation in relations.iter().filter(|relation| pattern.matches(&relation.name)) {
            let Relation { name, kind, .. } = relation;
            if relation.is_table() {
                found = true;
                if pattern.is_literal() || !in_parts.contains(name) {
                    meant.push(relation);
                }
            } else if pattern.is_literal() {
                findings.add(
                    Kind::NotATable,
                    (End::Provider, name),
                    format!("{name} on the provider is a {}", kind_name(kind)),
                    "leave it out: only tables can be replayed",
                );
            } else {
                tracing::debug!(table = %name, "skipped: a {}", kind_name(kind));
            }
        }
        if !found && findings.len() == before {
            let place = if pattern.without_schema {
                " (a pattern without a schema means schema public)"
            } else {
                ""
            };
            findings.add(
                Kind::NoTable,
                (End::Provider, &pattern.text),
                format!("no table on the provider matches \"{}\"{place}", pattern.text),
                "correct the pattern",
            );
        }
    }
    meant.sort_by(|a, b| a.name.cmp(&b.name));
    meant.dedup_by(|a, b| a.name == b.name);
    let names: HashSet<&Name> = meant.iter().map(|relation| &relation.name).collect();
    meant
        .iter()
        .copied()
        .filter(|relation| !relation.above.iter().any(|table| names.contains(table)))
        .collect()
}

/// One pattern.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: String,
    without_schema: bool,
    schema: Vec<Glob>,
    table: Vec<Glob>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Glob {
    /// `*`
    Any,
    /// `?`
    One,
    Char(char),
}

/// As it was written.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::usage(format!("the table pattern \"{text}\" {why}"))
                .hint("Write schema.table, with * and ? as wildcards.")
        };
        let mut parts = parts(text, '.').map_err(wrong)?;
        let table = parts.pop().unwrap_or_default();
        let schema = parts.pop();
        if !parts.is_empty() {
            return Err(wrong("has more than two parts"));
        }
        Ok(Self {
            text: text.to_owned(),
            without_schema: schema.is_none(),
            schema: schema.unwrap_or_else(|| "public".chars().map(Glob::Char).collect()),
            table,
        })
    }

    /// Schema and table, where they have no wildcards.
    pub(super) fn literals(&self) -> (Option<String>, Option<String>) {
        (literal(&self.schema), literal(&self.table))
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_literal(&self) -> bool {
        self.schema
            .iter()
            .chain(&self.table)
            .all(|glob| matches!(glob, Glob::Char(_)))
    }

    pub(crate) fn matches(&self, name: &Name) -> bool {
        glob(&self.schema, &name.schema) && glob(&self.table, &name.table)
    }
}

/// A list of columns, with commas between them.
pub(super) fn columns(text: &str) -> Result<Vec<String>> {
    let wrong =
        |why: &str| Error::usage(format!("the list of columns \"{text}\" {why}")).hint("Write a,b or \"A\",\"b,c\".");
    parts(text, ',')
        .map_err(wrong)?
        .iter()
        .map(|part| literal(part).ok_or_else(|| wrong("has a wildcard")))
        .collect()
}

/// Takes a text apart at its separators; what is in double quotes stands for itself.
fn parts(text: &str, separator: char) -> Result<Vec<Vec<Glob>>, &'static str> {
    let mut parts = vec![Vec::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let Some(part) = parts.last_mut() else { break };
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                part.push(Glob::Char('"'));
            }
            '"' => quoted = !quoted,
            _ if quoted => part.push(Glob::Char(character)),
            '*' => part.push(Glob::Any),
            '?' => part.push(Glob::One),
            _ if character == separator => parts.push(Vec::new()),
            _ => part.extend(character.to_lowercase().map(Glob::Char)),
        }
    }
    if quoted {
        return Err("has a double quote without its partner");
    }
    if parts.iter().any(Vec::is_empty) {
        return Err("has an empty part");
    }
    Ok(parts)
}

/// What the part stands for, if it has no wildcards.
fn literal(part: &[Glob]) -> Option<String> {
    part.iter()
        .map(|glob| match glob {
            Glob::Char(character) => Some(character),
            Glob::Any | Glob::One => None,
        })
        .collect()
}

/// Whether `pattern` covers the whole text. Goes back only to the last `*`, so it takes at most the product of the two
/// lengths.
fn glob(pattern: &[Glob], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Glob::Any) => {
                star = Some((p, t));
                p += 1;
            }
            Some(Glob::One) => {
                p += 1;
                t += 1;
            }
            Some(Glob::Char(c)) if *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|glob| *glob == Glob::Any)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn matches(pattern: &str, schema: &str, table: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(&Name::new(schema, table))
    }

    #[test]
    fn patterns() {
        assert!(matches("orders", "public", "orders"));
        assert!(!matches("orders", "app", "orders"));
        assert!(matches("ORDERS", "public", "orders"));
        assert!(matches("app.*", "app", "anything"));
        assert!(matches("*.*", "app", "anything"));
        assert!(matches("p*.pgbench_?*", "public", "pgbench_tellers"));
        assert!(!matches("p*.pgbench_?", "public", "pgbench_tellers"));
        assert!(matches("\"Odd.Name\".*", "Odd.Name", "x"));
        assert!(matches("\"Odd.Name\".\"a\"\"*\"", "Odd.Name", "a\"*"));
        assert!(!matches("\"Odd.Name\".\"*\"", "Odd.Name", "x"));
        assert!(matches("*a*b", "public", "xaxbxb"));
        assert!(!matches("*a*b", "public", "xaxbx"));
    }

    #[test]
    fn lists_of_columns() {
        assert_eq!(columns("a,B,\"C,\"\"d\"").unwrap(), ["a", "b", "C,\"d"]);
        for text in ["", "a,", ",a", "a*", "\"a"] {
            let error = columns(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn bad_patterns_are_usage_errors() {
        for text in ["", ".", "a.", ".b", "a.b.c", "\"a"] {
            let error = Pattern::parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains(&format!("\"{text}\"")), "{error}");
        }
    }
}
