//! How much of a COPY is in memory.
//!
//! tokio-postgres reads ahead: while one message is looked at, it takes up to three more from the socket, however large they are. So
//! whoever keeps a large message says so, by a [`Hold`], and while too much is held the connection is not driven
//! ([`Valve`], see connect.rs): nothing of it is read or written, and the server waits. A message that was on its way already may
//! still arrive. What goes into a COPY is cut into pieces ([`send`]), of which there are few on their way at once.
//!
//! A connection that is not driven answers nobody: whoever has a hold must not ask anything of the same session before it
//! is dropped, and must not wait there for the next message while it keeps more than [`Reading::begin`] was told.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::{CopyInSink, CopyOutStream};

use super::Session;
use crate::error::{Doing, Result};

/// What the library says of what it was asked to do; whoever asked knows what that was.
type Asked<T> = std::result::Result<T, tokio_postgres::Error>;

/// Messages from this size on are large.
pub(crate) const LARGE: usize = 256 * 1024;

/// What goes into a COPY goes in pieces of at most about this size.
pub(crate) const PIECE: usize = 64 * 1024;

/// Of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Valve(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes of large messages that somebody keeps.
    held: AtomicUsize,
    /// Closed from so many on; 0 while nobody reads.
    limit: AtomicUsize,
    /// The task that drives the connection.
    driver: AtomicWaker,
}

impl State {
    fn is_open(&self) -> bool {
        let held = self.held.load(Ordering::Acquire);
        held == 0 || held < self.limit.load(Ordering::Acquire)
    }
}

impl Valve {
    /// Ready while the connection may be driven.
    pub(super) fn poll_open(&self, context: &Context<'_>) -> Poll<()> {
        if self.0.is_open() {
            return Poll::Ready(());
        }
        self.0.driver.register(context.waker());
        // It may have been opened since it was looked at.
        if self.0.is_open() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn hold(&self, bytes: usize) -> Hold {
        self.0.held.fetch_add(bytes, Ordering::AcqRel);
        Hold {
            valve: self.clone(),
            bytes,
        }
    }
}

/// Says that a large message is kept, until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    valve: Valve,
    pub(crate) bytes: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.valve.0.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.valve.0.driver.wake();
    }
}

/// The answer to a COPY TO STDOUT.
pub(crate) struct Reading {
    source: Pin<Box<CopyOutStream>>,
    valve: Valve,
}

/// A part of it; the server sends one row in each.
pub(crate) struct Message {
    pub(crate) bytes: Bytes,
    /// Of a large one; to be kept as long as its bytes are.
    pub(crate) hold: Option<Hold>,
}

impl Reading {
    /// Begins to read. While large messages of `most` bytes or more are kept, no further ones are read.
    pub(crate) async fn begin(session: &Session, sql: &str, most: usize) -> Asked<Self> {
        let source = session.client.copy_out(sql).await?;
        session.valve.0.limit.store(most, Ordering::Release);
        Ok(Self {
            source: Box::pin(source),
            valve: session.valve.clone(),
        })
    }

    /// The next message. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Asked<Message>> {
        let bytes = match self.source.next().await? {
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(error)),
        };
        let hold = (bytes.len() >= LARGE).then(|| self.valve.hold(bytes.len()));
        Some(Ok(Message { bytes, hold }))
    }
}

/// Sends bytes into a COPY FROM STDIN, in pieces.
pub(crate) async fn send(mut sink: Pin<&mut CopyInSink<Bytes>>, mut bytes: Bytes) -> Asked<()> {
    while bytes.len() > PIECE {
        sink.send(bytes.split_to(PIECE)).await?;
    }
    sink.send(bytes).await
}

/// Ends a COPY FROM STDIN. Where something could not be sent, the answer to the end says why.
pub(crate) async fn end(sink: Pin<&mut CopyInSink<Bytes>>, sent: Asked<()>) -> Asked<()> {
    match (sent, sink.finish().await) {
        (Err(sent), ended) => Err(ended.err().unwrap_or(sent)),
        (Ok(()), ended) => ended.map(drop),
    }
}

/// Passes on what one server says to another, as it is, and ends both. `read` and `write` say what was being done, for the errors of the
/// one and of the other.
pub(crate) async fn relay(
    source: &mut Reading,
    mut sink: Pin<&mut CopyInSink<Bytes>>,
    read: impl Fn() -> String,
    write: impl Fn() -> String,
) -> Result<()> {
    while let Some(message) = source.next().await {
        let Message { bytes, hold } = message.doing(&read)?;
        let sent = send(sink.as_mut(), bytes).await;
        if sent.is_err() {
            return end(sink, sent).await.doing(write);
        }
        drop(hold);
    }
    end(sink, Ok(())).await.doing(write)
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    #[test]
    fn closed_while_too_much_is_held() {
        let valve = Valve::default();
        let open = || valve.poll_open(&Context::from_waker(noop_waker_ref())).is_ready();
        valve.0.limit.store(100, Ordering::Release);
        let one = valve.hold(60);
        assert!(open());
        let two = valve.hold(60);
        assert!(!open());
        drop(one);
        assert!(open());
        // One that is too large by itself comes alone.
        let three = valve.hold(1_000);
        drop(two);
        assert!(!open());
        drop(three);
        assert!(open());
    }
}
