//! What stands in the way of replay, gathered so that a person can put all of it right at once.
//!
//! Every check of setup adds to one [`Findings`]; nothing is changed on either end before [`Findings::into_result`]
//! says that the list is empty. One finding becomes the error's sentence and hint; several become its detail, one line
//! each.

use crate::error::{Error, Result};

/// The list.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<(String, String)>);

impl Findings {
    /// Adds one: a sentence that names the object, and what to do about it.
    pub(super) fn add(&mut self, sentence: impl Into<String>, remedy: impl Into<String>) {
        self.0.push((sentence.into(), remedy.into()));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// An error unless the list is empty.
    pub(super) fn into_result(mut self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => {
                let (sentence, remedy) = self.0.remove(0);
                Err(Error::failure(sentence).hint(remedy))
            }
            n => {
                let lines: Vec<String> = self
                    .0
                    .into_iter()
                    .map(|(sentence, remedy)| format!("- {sentence}: {remedy}"))
                    .collect();
                Err(Error::failure(format!("{n} things stand in the way of replay"))
                    .detail(lines.join("\n"))
                    .hint("Nothing was changed; put them right and start again."))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn one_is_a_sentence_and_more_are_a_list() {
        assert!(Findings::default().into_result().is_ok());
        let mut findings = Findings::default();
        findings.add("table a is missing", "make it");
        let error = findings.into_result().unwrap_err();
        assert_eq!(format!("{error:#}"), "table a is missing\nHINT: make it");
        let mut findings = Findings::default();
        findings.add("table a is missing", "make it");
        findings.add("table b is a view", "leave it out");
        let error = findings.into_result().unwrap_err();
        assert_eq!(
            error.get_detail(),
            Some("- table a is missing: make it\n- table b is a view: leave it out")
        );
    }
}
