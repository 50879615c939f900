//! The rules, each of which can be left out: what the model then does is what a simpler implementation would do. A harness that
//! does not notice would prove nothing, so a test has it notice each of them.

/// The rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naive {
    /// R1: writers see the control row through their snapshot; batches are read from the tables that the control row names.
    ControlOfSnapshot,
    /// Writers do; all tables are read, but a table is truncated without a look at its newest transaction.
    ControlOfSnapshotNoLook,
    /// The cached control row is good until the session ends.
    CacheForEver,
    /// The control row is read before there is a transaction id and a lock.
    ControlBeforeXid,
    /// Step 2 waits for a row instead of for the table.
    Step2WithoutTableLock,
    /// Step 2 in a transaction that has an id already.
    Step2OfOldTransaction,
    /// Step 2 in the transaction of step 1.
    OneStep,
    /// Rotation does not ask how far consumers are.
    RotationIgnoresConsumers,
    /// Writers do; a table is truncated while others write to it.
    TruncateWithoutLock,
    /// Ticks whose events are truncated stay.
    TicksStay,
    /// R3: the tick's snapshot is taken before its lock.
    TickBeforeLock,
    /// The tick is made in any isolation level.
    TickOfSnapshot,
    /// A tick shows the transaction that makes it.
    TickShowsItself,
    /// A tick stands where the sequence stands, whoever is writing.
    TickNotLowered,
    /// Only others are looked for when a tick is lowered.
    TickNotLoweredForItself,
    /// The snapshot of a tick is taken before writers are looked for.
    SnapshotBeforeWriters,
    /// R13: a tick is committed as its session likes.
    TickNotFlushed,
    /// A batch is a range of transaction ids; those left out by the tick before are forgotten.
    NoLateList,
    /// A batch is a range of transaction ids, in progress or not.
    NoRunningList,
    /// A range from the oldest open transaction on.
    WholeRange,
    /// R4: a batch is opened without a lock.
    OpenWithoutLock,
    /// `next_batch` takes a tick that is gone for a corrupt queue without a second look under the lock.
    NoSecondLook,
    /// Finishing a batch does not look which one is open.
    FinishAnything,
    /// A consumer is registered while a rotation takes its tick away.
    RegisterWithoutLock,
    /// Events have the id of the subtransaction.
    SubtransactionId,
    /// R5: the event id is drawn before the row is locked.
    IdBeforeRow,
    /// R6: each session has its own supply of event ids.
    CachedIds,
    /// Two sessions put retried events back at once.
    ReinsertWithoutLock,
    /// A retried event is delivered to everybody.
    RetryForAll,
}

impl Naive {
    pub(crate) const ALL: [Self; 29] = [
        Self::ControlOfSnapshot,
        Self::ControlOfSnapshotNoLook,
        Self::CacheForEver,
        Self::ControlBeforeXid,
        Self::Step2WithoutTableLock,
        Self::Step2OfOldTransaction,
        Self::OneStep,
        Self::RotationIgnoresConsumers,
        Self::TruncateWithoutLock,
        Self::TicksStay,
        Self::TickBeforeLock,
        Self::TickOfSnapshot,
        Self::TickShowsItself,
        Self::TickNotLowered,
        Self::TickNotLoweredForItself,
        Self::SnapshotBeforeWriters,
        Self::TickNotFlushed,
        Self::NoLateList,
        Self::NoRunningList,
        Self::WholeRange,
        Self::OpenWithoutLock,
        Self::NoSecondLook,
        Self::FinishAnything,
        Self::RegisterWithoutLock,
        Self::SubtransactionId,
        Self::IdBeforeRow,
        Self::CachedIds,
        Self::ReinsertWithoutLock,
        Self::RetryForAll,
    ];
}
