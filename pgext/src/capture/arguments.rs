//! The arguments of a capture trigger, `EXECUTE FUNCTION pgq.logutriga('queue' [, argument ...])`.
//!
//! Keywords are exact: case matters, and there are no spaces around `=`. Where an argument is given twice, the last one
//! counts. Pure code: [`super::trigger`] reads the strings from the catalog and reports the errors.

/// What a trigger was told to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// The first argument.
    pub(crate) queue: Vec<u8>,
    /// `SKIP`: a BEFORE trigger that keeps the row out of the table.
    pub(crate) skip: bool,
    /// `backup`: an update's old row goes into `ev_extra2`.
    pub(crate) backup: bool,
    /// `deny`: an error instead of an event.
    pub(crate) deny: bool,
    /// `place`: where an insert has put its row goes into `ev_extra4`.
    pub(crate) place: bool,
    /// `ignore=`: columns that are left out.
    pub(crate) ignore: Option<Vec<Vec<u8>>>,
    /// `pkey=`: the key, in place of the primary key.
    pub(crate) pkey: Option<Vec<Vec<u8>>>,
    /// `when=`: the condition.
    pub(crate) when: Option<Vec<u8>>,
    /// `ev_type=`, `ev_data=`, `ev_extra1=` to `ev_extra4=`: expressions that replace a field.
    pub(crate) fields: [Option<Vec<u8>>; 6],
}

/// The names of [`Arguments::fields`], in the order of the event's columns.
pub(crate) const FIELDS: [&[u8]; 6] = [
    b"ev_type",
    b"ev_data",
    b"ev_extra1",
    b"ev_extra2",
    b"ev_extra3",
    b"ev_extra4",
];

/// Why arguments cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// There is none at all.
    NoQueue,
    /// This one means nothing.
    Unknown(Vec<u8>),
}

/// Reads the arguments in the order they were given.
pub(crate) fn parse<'a>(arguments: impl IntoIterator<Item = &'a [u8]>) -> Result<Arguments, Wrong> {
    let mut given = arguments.into_iter();
    let mut parsed = Arguments {
        queue: given.next().ok_or(Wrong::NoQueue)?.to_vec(),
        ..Arguments::default()
    };
    for argument in given {
        match argument {
            b"SKIP" => parsed.skip = true,
            b"backup" => parsed.backup = true,
            b"deny" => parsed.deny = true,
            b"place" => parsed.place = true,
            _ => {
                let (name, value) = split_at_equals(argument).ok_or_else(|| Wrong::Unknown(argument.to_vec()))?;
                match name {
                    b"ignore" => parsed.ignore = Some(columns(value)),
                    b"pkey" => parsed.pkey = Some(columns(value)),
                    b"when" => parsed.when = Some(value.to_vec()),
                    _ => {
                        let field = FIELDS.iter().position(|field| *field == name);
                        let field = field.ok_or_else(|| Wrong::Unknown(argument.to_vec()))?;
                        parsed.fields[field] = Some(value.to_vec());
                    }
                }
            }
        }
    }
    Ok(parsed)
}

fn split_at_equals(argument: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = argument.iter().position(|byte| *byte == b'=')?;
    Some((&argument[..at], &argument[at + 1..]))
}

/// Column names between commas. Names with a comma or a quote in them are quoted as in event types; a list that does not
/// read as such (`q"q`) is split at its commas and taken literally.
fn columns(list: &[u8]) -> Vec<Vec<u8>> {
    match wire::name::split(list, b',') {
        Ok(names) => names.into_iter().map(|name| name.into_owned()).collect(),
        Err(_) => list.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Arguments, Wrong> {
        parse(arguments.iter().map(|argument| argument.as_bytes()))
    }

    #[test]
    fn a_queue_is_needed() {
        assert_eq!(read(&[]), Err(Wrong::NoQueue));
        assert_eq!(
            read(&["q"]),
            Ok(Arguments {
                queue: b"q".to_vec(),
                ..Arguments::default()
            })
        );
    }

    #[test]
    fn the_last_of_two_counts() {
        let parsed = read(&["q", "ignore=a", "ignore=b,c"]);
        assert_eq!(
            parsed.map(|parsed| parsed.ignore),
            Ok(Some(vec![b"b".to_vec(), b"c".to_vec()]))
        );
    }

    #[test]
    fn expressions_may_hold_an_equals_sign() {
        let parsed = read(&["q", "when=a = 'x=y'", "ev_extra4=b"]);
        let parsed = parsed.map(|parsed| (parsed.when, parsed.fields[5].clone()));
        assert_eq!(parsed, Ok((Some(b"a = 'x=y'".to_vec()), Some(b"b".to_vec()))));
    }

    #[test]
    fn keywords_are_exact() {
        for wrong in [
            "",
            "skip",
            "Backup",
            "bogus=1",
            "ev_id=1",
            "ev_extra5=x",
            " ev_extra4=a",
            "EV_EXTRA4=a",
            "when = x",
        ] {
            assert_eq!(
                read(&["q", wrong]),
                Err(Wrong::Unknown(wrong.as_bytes().to_vec())),
                "{wrong}"
            );
        }
    }

    #[test]
    fn odd_names_are_quoted_or_literal() {
        let parsed = read(&["q", "pkey=\"x,y\",Id"]).map(|parsed| parsed.pkey);
        assert_eq!(parsed, Ok(Some(vec![b"x,y".to_vec(), b"Id".to_vec()])));
        let parsed = read(&["q", "pkey=q\"q"]).map(|parsed| parsed.pkey);
        assert_eq!(parsed, Ok(Some(vec![b"q\"q".to_vec()])));
        assert_eq!(read(&["q", "pkey="]).map(|parsed| parsed.pkey), Ok(Some(vec![])));
    }
}
