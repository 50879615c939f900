//! Copying with escapes. Most bytes of most values stay as they are, so the encoders copy them run by run and look only at the bytes
//! between. Each encoder brings its own table of the bytes that need no escape. Called by urlenc, literal and json.

/// For each byte: does it stay as it is?
pub(crate) type Plain = [bool; 256];

/// The table that says `listed` for the bytes in the list, and the opposite for all others.
pub(crate) const fn table(list: &[u8], listed: bool) -> Plain {
    let mut plain = [!listed; 256];
    let mut i = 0;
    while i < list.len() {
        plain[list[i] as usize] = listed;
        i += 1;
    }
    plain
}

/// Appends `value`, handing every byte that is not plain to `escape`.
#[inline]
pub(crate) fn push(out: &mut Vec<u8>, value: &[u8], plain: &Plain, mut escape: impl FnMut(&mut Vec<u8>, u8)) {
    out.reserve(value.len());
    let mut rest = value;
    while let Some(end) = rest.iter().position(|&byte| !plain[usize::from(byte)]) {
        let (run, from) = rest.split_at(end);
        out.extend_from_slice(run);
        escape(out, from[0]);
        rest = &from[1..];
    }
    out.extend_from_slice(rest);
}
