//! The steps of a takeover. The same list is in the database (`pgcascade.takeover_steps()`, which refuses any other order), in
//! the model (model.rs, which takes it from here), and in docs/takeover.md; tests compare them.

use crate::error::{Error, Result};

/// Why the root moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// The old root is there and hands over.
    Planned,
    /// It is not.
    Dead,
    /// It is not, and a standby of it was promoted, which is to be the root.
    Standby,
}

/// What has been reached, as the journal has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// The journal's row is written, the epoch reserved.
    Prepared,
    /// The old root is closed and has made its last tick.
    Fenced,
    /// The new root has that tick.
    Drained,
    /// The nodes that are left take no more ticks, and have said where they are.
    Promised,
    /// It is known who is furthest.
    Elected,
    /// The new root has all that the furthest has.
    CaughtUp,
    /// It is root of the new epoch, closed.
    Promoted,
    /// The other nodes read from it.
    Repointed,
    /// It takes writes.
    Opened,
    /// The old root reads from it.
    Demoted,
    /// Nothing is left to do.
    Done,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Planned, Self::Dead, Self::Standby];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Dead => "dead",
            Self::Standby => "standby",
        }
    }

    pub(super) fn parse(word: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.word() == word);
        found.ok_or_else(|| Error::failure(format!("the journal has a takeover of an unknown kind: {word}")))
    }

    /// Its steps in order. Nothing can be aborted from [`Step::Promoted`] on.
    pub(super) fn steps(self) -> &'static [Step] {
        use Step::{
            CaughtUp, Demoted, Done, Drained, Elected, Fenced, Opened, Prepared, Promised, Promoted, Repointed,
        };
        match self {
            Self::Planned => &[Prepared, Fenced, Drained, Promoted, Opened, Demoted, Repointed, Done],
            Self::Dead | Self::Standby => &[Prepared, Promised, Elected, CaughtUp, Promoted, Repointed, Opened, Done],
        }
    }

    /// What comes after a step.
    pub(super) fn after(self, step: Step) -> Option<Step> {
        let steps = self.steps();
        let at = steps.iter().position(|other| *other == step)?;
        steps.get(at + 1).copied()
    }

    /// Whether `step` comes before `other`.
    pub(super) fn before(self, step: Step, other: Step) -> bool {
        let place = |wanted| self.steps().iter().position(|step| *step == wanted);
        place(step) < place(other)
    }
}

impl Step {
    const ALL: [(Self, &'static str); 11] = [
        (Self::Prepared, "prepared"),
        (Self::Fenced, "fenced"),
        (Self::Drained, "drained"),
        (Self::Promised, "promised"),
        (Self::Elected, "elected"),
        (Self::CaughtUp, "caught-up"),
        (Self::Promoted, "promoted"),
        (Self::Repointed, "repointed"),
        (Self::Opened, "opened"),
        (Self::Demoted, "demoted"),
        (Self::Done, "done"),
    ];

    pub(super) fn word(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(step, _)| *step == self)
            .map_or("", |(_, word)| word)
    }

    /// What has happened then.
    pub(super) fn means(self) -> &'static str {
        match self {
            Self::Prepared => "the takeover is in the journal of the new root, its epoch is reserved",
            Self::Fenced => "the old root is closed for writers and has made its last tick",
            Self::Drained => "the new root has applied that tick",
            Self::Promised => "the nodes that are left take no more ticks, and have said where they are",
            Self::Elected => "it is known who is furthest",
            Self::CaughtUp => "the new root has all that the furthest has",
            Self::Promoted => "it is root of the new epoch, still closed; from here on there is no way back",
            Self::Repointed => "the other nodes read from it",
            Self::Opened => "the new epoch is confirmed elsewhere, sequences are set, applications can write",
            Self::Demoted => "the old root reads from it",
            Self::Done => "nothing is left to do",
        }
    }

    pub(super) fn parse(word: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, known)| *known == word);
        found
            .map(|(step, _)| *step)
            .ok_or_else(|| Error::failure(format!("the journal has an unknown step: {word}")))
    }
}
