//! Whether every value of one type can be stored in another, when it travels as text.

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// All of them, as they are.
    Yes,
    /// Not all: some are refused, or rounded, or cut.
    Some,
    /// Hardly any.
    No,
}

/// From the types as format_type() gives them, with modifier, and their categories (pg_type.typcategory).
pub(super) fn fit(from: (&str, &str), to: (&str, &str)) -> Fit {
    // An extension's type may be in another schema.
    let plain = |name: &'_ str| {
        name.rsplit_once('.')
            .map_or(name.to_owned(), |(_, name)| name.to_owned())
    };
    if from.0 == to.0 || from.1 == to.1 && plain(from.0) == plain(to.0) {
        return Fit::Yes;
    }
    let (from_type, from_limits) = limits(from.0);
    let (to_type, to_limits) = limits(to.0);
    let wider = |order: &[&str]| {
        let place = |name: &str| order.iter().position(|one| *one == name);
        place(&from_type)
            .zip(place(&to_type))
            .is_some_and(|(from, to)| from <= to && to_limits.is_empty())
    };
    if wider(&["smallint", "integer", "bigint", "numeric"]) || wider(&["real", "double precision"]) {
        return Fit::Yes;
    }
    if to_limits.is_empty() && matches!(to_type.as_str(), "text" | "character varying") {
        return Fit::Yes;
    }
    let room = match (from_type.as_str(), to_type.as_str()) {
        ("numeric", "numeric") => match (&from_limits[..], &to_limits[..]) {
            (_, []) => true,
            ([digits, scale], [room, places]) => places >= scale && room - places >= digits - scale,
            _ => false,
        },
        ("character varying" | "character", "character varying") | ("bit" | "bit varying", "bit varying") => {
            match (&from_limits[..], &to_limits[..]) {
                (_, []) => true,
                ([length], [room]) => room >= length,
                _ => false,
            }
        }
        // The same but for the modifier: the number of digits of a time.
        (from, to) if from == to => to_limits.is_empty(),
        _ => false,
    };
    if room {
        Fit::Yes
    } else if from.1 == to.1 || to.1 == "S" {
        Fit::Some
    } else {
        Fit::No
    }
}

/// `numeric(10,2)`: the name, and the numbers in its parentheses, which `timestamp(3) with time zone` has in the middle.
fn limits(name: &str) -> (String, Vec<i64>) {
    if let Some((head, rest)) = name.split_once('(')
        && let Some((numbers, tail)) = rest.split_once(')')
        && let Ok(numbers) = numbers
            .split(',')
            .map(|number| number.trim().parse())
            .collect::<Result<Vec<i64>, _>>()
    {
        return (format!("{head}{tail}"), numbers);
    }
    (name.to_owned(), Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        for (from, to, wanted) in [
            (("integer", "N"), ("integer", "N"), Fit::Yes),
            (("integer", "N"), ("bigint", "N"), Fit::Yes),
            (("bigint", "N"), ("numeric", "N"), Fit::Yes),
            (("public.citext", "S"), ("ext.citext", "S"), Fit::Yes),
            (("bigint", "N"), ("integer", "N"), Fit::Some),
            (("bigint", "N"), ("numeric(5,0)", "N"), Fit::Some),
            (("numeric(10,2)", "N"), ("numeric(12,4)", "N"), Fit::Yes),
            (("numeric(10,2)", "N"), ("numeric(12,5)", "N"), Fit::Some),
            (("numeric(10,2)", "N"), ("numeric(10,1)", "N"), Fit::Some),
            (("numeric(10,2)", "N"), ("numeric", "N"), Fit::Yes),
            (("numeric", "N"), ("numeric(10,2)", "N"), Fit::Some),
            (("character varying(10)", "S"), ("character varying(20)", "S"), Fit::Yes),
            (("character varying(10)", "S"), ("character varying(9)", "S"), Fit::Some),
            (("text", "S"), ("character varying(9)", "S"), Fit::Some),
            (("character varying(9)", "S"), ("text", "S"), Fit::Yes),
            (("jsonb", "U"), ("text", "S"), Fit::Yes),
            (("integer", "N"), ("character varying(3)", "S"), Fit::Some),
            (
                ("timestamp(3) without time zone", "D"),
                ("timestamp(3) without time zone", "D"),
                Fit::Yes,
            ),
            (
                ("timestamp(3) without time zone", "D"),
                ("timestamp without time zone", "D"),
                Fit::Yes,
            ),
            (
                ("timestamp without time zone", "D"),
                ("timestamp(3) without time zone", "D"),
                Fit::Some,
            ),
            (("timestamp without time zone", "D"), ("date", "D"), Fit::Some),
            (("bit(3)", "V"), ("bit varying(4)", "V"), Fit::Yes),
            (("text", "S"), ("integer", "N"), Fit::No),
            (("integer[]", "A"), ("integer", "N"), Fit::No),
        ] {
            assert_eq!(fit(from, to), wanted, "{from:?} to {to:?}");
        }
    }
}
