//! The steps of a takeover. The same list is in the database (`pgcascade.takeover_steps()`, which refuses any other order) and in
//! docs/takeover.md; model.rs takes it from here and compares.

/// Why the root moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// The old root is there and hands over.
    Planned,
    /// It is not.
    Dead,
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
    pub(super) const ALL: [Self; 2] = [Self::Planned, Self::Dead];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Dead => "dead",
        }
    }

    /// Its steps in order. Nothing can be aborted from [`Step::Promoted`] on.
    pub(super) fn steps(self) -> &'static [Step] {
        use Step::{
            CaughtUp, Demoted, Done, Drained, Elected, Fenced, Opened, Prepared, Promised, Promoted, Repointed,
        };
        match self {
            Self::Planned => &[Prepared, Fenced, Drained, Promoted, Opened, Demoted, Repointed, Done],
            Self::Dead => &[Prepared, Promised, Elected, CaughtUp, Promoted, Repointed, Opened, Done],
        }
    }

    /// What comes after a step.
    pub(super) fn after(self, step: Step) -> Option<Step> {
        let steps = self.steps();
        let at = steps.iter().position(|other| *other == step)?;
        steps.get(at + 1).copied()
    }
}

impl Step {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Fenced => "fenced",
            Self::Drained => "drained",
            Self::Promised => "promised",
            Self::Elected => "elected",
            Self::CaughtUp => "caught-up",
            Self::Promoted => "promoted",
            Self::Repointed => "repointed",
            Self::Opened => "opened",
            Self::Demoted => "demoted",
            Self::Done => "done",
        }
    }
}
