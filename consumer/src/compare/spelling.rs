//! Keys that are equal and written differently: 1.0 and 1.00, 0 and -0, a and a with blanks after it. Used by shape.rs, which has them
//! brought to one form before they are compared.

use crate::replay::table::Column;

/// How the texts of a type relate to its `=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Equal means the same text.
    One,
    /// Zeros at the end of the fraction do not matter.
    Numeric,
    /// Minus zero is zero.
    Float,
    /// Blanks at the end do not matter.
    Padded,
    /// Anybody's guess.
    Unknown,
}

impl Spelling {
    pub(super) fn of(column: &Column) -> Self {
        let builtin_collation = column
            .collation
            .as_deref()
            .is_none_or(|name| name.starts_with("pg_catalog."));
        match column.bare_type.as_str() {
            "smallint"
            | "integer"
            | "bigint"
            | "oid"
            | "xid8"
            | "uuid"
            | "bytea"
            | "boolean"
            | "date"
            | "timestamp without time zone"
            | "timestamp with time zone"
            | "time without time zone"
            | "inet"
            | "cidr"
            | "macaddr"
            | "macaddr8"
            | "pg_lsn"
            | "\"char\"" => Self::One,
            "numeric" => Self::Numeric,
            "real" | "double precision" => Self::Float,
            // Those in pg_catalog are all deterministic.
            "text" | "character varying" | "name" if builtin_collation => Self::One,
            "character" if builtin_collation => Self::Padded,
            _ => Self::Unknown,
        }
    }

    pub(super) fn sorts_by_collation(column: &Column) -> bool {
        matches!(
            column.bare_type.as_str(),
            "text" | "character varying" | "character" | "name"
        )
    }

    pub(super) fn bring_to_form(self, mut text: String) -> String {
        match self {
            Self::Numeric if text.contains('.') => {
                text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
                text
            }
            Self::Float if text == "-0" => "0".to_owned(),
            Self::Padded => {
                text.truncate(text.trim_end_matches(' ').len());
                text
            }
            _ => text,
        }
    }
}
