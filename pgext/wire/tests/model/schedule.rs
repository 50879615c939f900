//! Schedules: what sessions do, in which order. They are drawn from random numbers, so that they shrink, and have a text, so that one
//! that found something can be kept: moves between semicolons, `session act argument`, `/n` when the session is stopped after n steps.

use std::fmt;
use std::str::FromStr;

use proptest::prelude::*;

/// Sessions of a schedule. Those with an odd number have `synchronous_commit` off.
pub(crate) const SESSIONS: usize = 5;
/// Consumers. The first is registered from the beginning.
pub(crate) const CONSUMERS: usize = 3;
/// Rows of the table whose changes are captured.
pub(crate) const ROWS: usize = 3;

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Begins a READ COMMITTED transaction.
    Begin,
    /// Begins a REPEATABLE READ transaction and takes its snapshot.
    BeginOld,
    Savepoint,
    RollbackTo,
    Release,
    Commit,
    Rollback,
    Prepare,
    /// Commits the prepared transaction of that number, counted round those there are.
    CommitPrepared(u8),
    RollbackPrepared(u8),
    /// Changes a row, which stores an event.
    Write(u8),
    /// Stores an event that belongs to no row.
    Event,
    Tick,
    Step1,
    Step2,
    /// Opens a consumer's next batch.
    Next(u8),
    /// Reads the batch that this session opened.
    Read(u8),
    /// Finishes the batch that this session read.
    Finish(u8),
    /// Has the first event of the batch that this session read delivered again.
    Retry(u8),
    /// Puts retried events into the queue.
    Reinsert,
    /// Registers a consumer so many ticks before the last one.
    Register(u8, u8),
    Unregister(u8),
    /// The log writer writes out what it has.
    Flush,
    /// The server is killed and started again.
    Crash,
}

/// One entry of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) session: usize,
    /// A session that is still busy goes on with what it does instead.
    pub(crate) act: Act,
    /// How many steps it goes; `None`: to the end, or until it has to wait.
    pub(crate) steps: Option<u8>,
}

/// What is run.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Whether the ticker ticks when nothing is new, as it does after the idle period.
    pub(crate) idle_ticks: bool,
    pub(crate) moves: Vec<Move>,
}

/// How often which act is drawn: one column a kind of schedule.
const WEIGHTS: [(Act, [u32; 4]); 24] = [
    // act, everything, rotation, ticks, crashes
    (Act::Write(0), [10, 6, 10, 8]),
    (Act::Event, [4, 8, 8, 4]),
    (Act::Commit, [10, 12, 12, 10]),
    (Act::Begin, [6, 5, 8, 6]),
    (Act::Tick, [8, 6, 14, 8]),
    (Act::Next(0), [6, 5, 4, 6]),
    (Act::Read(0), [6, 5, 4, 6]),
    (Act::Finish(0), [6, 5, 4, 6]),
    (Act::Step1, [5, 10, 1, 3]),
    (Act::Step2, [5, 10, 1, 3]),
    (Act::BeginOld, [3, 5, 2, 1]),
    (Act::Rollback, [2, 1, 1, 1]),
    (Act::Savepoint, [4, 1, 2, 1]),
    (Act::RollbackTo, [3, 1, 1, 1]),
    (Act::Release, [1, 0, 1, 0]),
    (Act::Prepare, [2, 1, 1, 2]),
    (Act::CommitPrepared(0), [2, 1, 1, 2]),
    (Act::RollbackPrepared(0), [1, 0, 0, 1]),
    (Act::Register(0, 0), [3, 3, 1, 2]),
    (Act::Unregister(0), [1, 1, 0, 1]),
    (Act::Retry(0), [2, 1, 1, 1]),
    (Act::Reinsert, [2, 1, 1, 1]),
    (Act::Flush, [0, 0, 0, 2]),
    (Act::Crash, [0, 0, 0, 2]),
];

/// How many of 256 draws are one of the usual rows of acts instead of a single one, by kind of schedule.
const ROWS_OF_ACTS: [u8; 4] = [48, 120, 48, 80];

/// Rows of acts without which chance would hardly ever get a queue as far as a second rotation.
fn usual_row(kind: usize, argument: u8) -> &'static [Act] {
    const C: u8 = 0;
    const CONSUME: &[Act] = &[Act::Tick, Act::Next(C), Act::Read(C), Act::Finish(C)];
    const ROTATE: &[Act] = &[Act::Step1, Act::Step2];
    const ROTATE_AT_ONCE: &[Act] = &[
        Act::Tick,
        Act::Next(C),
        Act::Read(C),
        Act::Finish(C),
        Act::Step1,
        Act::Step2,
    ];
    const RETRY: &[Act] = &[Act::Next(C), Act::Read(C), Act::Retry(C), Act::Finish(C)];
    const REINSERT: &[Act] = &[Act::Begin, Act::Reinsert];
    match (kind, argument % 8) {
        (_, 0..=1) => CONSUME,
        (1, 2..=6) | (_, 2..=3) => ROTATE_AT_ONCE,
        (_, 4..=5) => ROTATE,
        (1, _) => CONSUME,
        (_, 6) => RETRY,
        _ => REINSERT,
    }
}

impl Act {
    /// The act that a random number stands for; 0 is the simplest.
    fn draw(kind: usize, number: u16, argument: u8) -> Self {
        let total: u32 = WEIGHTS.iter().map(|(_, weights)| weights[kind]).sum();
        let mut at = u32::from(number) * total / 65536;
        let mut drawn = Self::Event;
        for (act, weights) in WEIGHTS {
            drawn = act;
            if at < weights[kind] {
                break;
            }
            at -= weights[kind];
        }
        // Most of what consumers do is the first one's, or they would not get far.
        let consumer = [0, 0, 0, 1, 1, 2][usize::from(argument) % 6];
        let row = argument % 3;
        match drawn {
            Self::Write(_) => Self::Write(row),
            Self::Next(_) => Self::Next(consumer),
            Self::Read(_) => Self::Read(consumer),
            Self::Finish(_) => Self::Finish(consumer),
            Self::Retry(_) => Self::Retry(consumer),
            Self::CommitPrepared(_) => Self::CommitPrepared(row),
            Self::RollbackPrepared(_) => Self::RollbackPrepared(row),
            Self::Register(..) => Self::Register(1 + argument % 2, argument / 2 % 4),
            // The first stays: without consumers a queue is rotated whatever its last tick shows.
            Self::Unregister(_) => Self::Unregister(1 + argument % 2),
            other => other,
        }
    }

    fn name(self) -> (&'static str, Option<u8>, Option<u8>) {
        match self {
            Self::Begin => ("begin", None, None),
            Self::BeginOld => ("begin_old", None, None),
            Self::Savepoint => ("savepoint", None, None),
            Self::RollbackTo => ("rollback_to", None, None),
            Self::Release => ("release", None, None),
            Self::Commit => ("commit", None, None),
            Self::Rollback => ("rollback", None, None),
            Self::Prepare => ("prepare", None, None),
            Self::CommitPrepared(n) => ("commit_prepared", Some(n), None),
            Self::RollbackPrepared(n) => ("rollback_prepared", Some(n), None),
            Self::Write(row) => ("write", Some(row), None),
            Self::Event => ("event", None, None),
            Self::Tick => ("tick", None, None),
            Self::Step1 => ("step1", None, None),
            Self::Step2 => ("step2", None, None),
            Self::Next(c) => ("next", Some(c), None),
            Self::Read(c) => ("read", Some(c), None),
            Self::Finish(c) => ("finish", Some(c), None),
            Self::Retry(c) => ("retry", Some(c), None),
            Self::Reinsert => ("reinsert", None, None),
            Self::Register(c, back) => ("register", Some(c), Some(back)),
            Self::Unregister(c) => ("unregister", Some(c), None),
            Self::Flush => ("flush", None, None),
            Self::Crash => ("crash", None, None),
        }
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, first, second) = self.act.name();
        write!(f, "{} {name}", self.session)?;
        for argument in [first, second].into_iter().flatten() {
            write!(f, " {argument}")?;
        }
        self.steps.map_or(Ok(()), |steps| write!(f, " /{steps}"))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", if self.idle_ticks { "idle" } else { "quiet" })?;
        self.moves.iter().try_for_each(|one| write!(f, "; {one}"))
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Move {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("not a move: {text}");
        let (text, steps) = match text.split_once('/') {
            Some((text, steps)) => (text, Some(steps.trim().parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let mut words = text.split_whitespace();
        let session = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
        let name = words.next().ok_or_else(wrong)?;
        let arguments: Vec<u8> = words.map(|word| word.parse().unwrap_or(0)).collect();
        let first = arguments.first().copied().unwrap_or(0);
        let act = WEIGHTS
            .iter()
            .map(|(act, _)| *act)
            .find(|act| act.name().0 == name)
            .ok_or_else(wrong)?;
        let act = match act {
            Act::Write(_) => Act::Write(first),
            Act::Next(_) => Act::Next(first),
            Act::Read(_) => Act::Read(first),
            Act::Finish(_) => Act::Finish(first),
            Act::Retry(_) => Act::Retry(first),
            Act::CommitPrepared(_) => Act::CommitPrepared(first),
            Act::RollbackPrepared(_) => Act::RollbackPrepared(first),
            Act::Register(..) => Act::Register(first, arguments.get(1).copied().unwrap_or(0)),
            Act::Unregister(_) => Act::Unregister(first),
            other => other,
        };
        Ok(Self { session, act, steps })
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(';');
        let idle_ticks = match parts.next().map(str::trim) {
            Some("idle") => true,
            Some("quiet") => false,
            other => return Err(format!("neither idle nor quiet: {other:?}")),
        };
        Ok(Self {
            idle_ticks,
            moves: parts.map(str::parse).collect::<Result<_, _>>()?,
        })
    }
}

/// How a schedule is drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw {
    /// At most so many moves.
    pub(crate) moves: usize,
    /// Whether sessions are stopped inside their statements.
    pub(crate) inside: bool,
    /// Whether the server is killed.
    pub(crate) crashes: bool,
}

/// Random schedules.
pub(crate) fn schedules(draw: Draw) -> impl Strategy<Value = Schedule> {
    let kinds = if draw.crashes { 0..4usize } else { 0..3usize };
    (
        any::<bool>(),
        kinds,
        prop::collection::vec(any::<u64>(), 1..=draw.moves),
    )
        .prop_map(move |(idle_ticks, kind, numbers)| {
            let mut moves = Vec::with_capacity(numbers.len());
            for number in numbers {
                // Small numbers are simple moves, so that shrinking finds those.
                let [row, steps, session, argument, low, high, ..] = number.to_be_bytes();
                let session = usize::from(session) * SESSIONS / 256;
                let steps = (draw.inside && steps >= 128).then_some(1 + steps % 4);
                if row >= 255 - ROWS_OF_ACTS[kind] {
                    let acts = usual_row(kind, argument).iter();
                    moves.extend(acts.map(|&act| Move {
                        session,
                        act,
                        steps: None,
                    }));
                } else {
                    let act = Act::draw(kind, u16::from_be_bytes([low, high]), argument);
                    moves.push(Move { session, act, steps });
                }
            }
            Schedule { idle_ticks, moves }
        })
}
