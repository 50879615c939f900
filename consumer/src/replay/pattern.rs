//! The patterns of `--table` and `consumer table`: their grammar, and the tables that they mean.
//!
//! `schema.table` or `table`, either part with `*` and `?`; unquoted letters are folded to lower case as in SQL, and
//! what is in double quotes stands for itself. A pattern without a schema means schema public. Only ordinary tables are
//! meant: another kind of relation is an error if it is named in full, and is passed over by a wildcard.

use std::fmt;

use tokio_postgres::Client;

use super::findings::{Findings, Kind};
use super::table::{Name, kind_name};
use crate::connect::End;
use crate::error::{Doing, Error, Result};

/// The tables that the patterns mean on the provider, in the order of their names. A pattern that means
/// none, or that names something which is not an ordinary table, is a finding.
pub(super) async fn resolve(provider: &Client, patterns: &[Pattern], findings: &mut Findings) -> Result<Vec<Name>> {
    let relations = relations(provider).await?;
    let mut names = Vec::new();
    for pattern in patterns {
        let before = findings.len();
        let mut found = false;
        for (name, relkind) in relations.iter().filter(|(name, _)| pattern.matches(name)) {
            if relkind == "r" {
                found = true;
                names.push(name.clone());
            } else if pattern.is_literal() {
                findings.add(
                    Kind::NotATable,
                    (End::Provider, name),
                    format!("{name} on the provider is a {}", kind_name(relkind)),
                    "leave it out: only ordinary tables can be replayed",
                );
            } else {
                tracing::debug!(table = %name, "skipped: a {}", kind_name(relkind));
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
    names.sort();
    names.dedup();
    Ok(names)
}

/// Everything that a pattern can mean on the provider, and its kind.
pub(super) async fn relations(provider: &Client) -> Result<Vec<(Name, String)>> {
    let rows = provider
        .query(include_str!("sql/relations.sql"), &[])
        .await
        .doing(|| "list the tables of the provider".to_owned())?;
    Ok(rows
        .iter()
        .map(|row| (Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1)), row.get(2)))
        .collect())
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
