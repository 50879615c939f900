//! A run of inserts into one table: a COPY, which may stretch over several chunks.
//!
//! What is sent is cut from the values piece by piece, so a value of any size is not held a second time.

use std::pin::Pin;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::{Client, CopyInSink};

use super::super::chunk::{Chunk, Row, Shape, Value};
use super::super::statement;
use super::{Applier, Failure, SWALLOWED};
use crate::connect::flow::PIECE;
use crate::error::{Doing, Error};

/// One that is open.
pub(super) struct Run {
    pub(super) shape: Arc<Shape>,
    sink: Pin<Box<CopyInSink<Bytes>>>,
    rows: u64,
    first_event: i64,
}

impl Applier {
    pub(super) async fn copy(&mut self, client: &Client, chunk: &Chunk, rows: &[Row]) -> Result<(), Failure> {
        let Some(first) = rows.first() else { return Ok(()) };
        let shape = chunk.shape(first);
        if self.open.is_none() {
            let statement = match self.copies.get(&shape.id) {
                Some(statement) => statement.clone(),
                None => {
                    let sql = statement::copy_sql(shape, &self.tables[shape.table]);
                    let statement = client
                        .prepare(&sql)
                        .await
                        .map_err(|error| self.copy_failure(shape, first.ev_id, error))?;
                    self.copies.insert(shape.id, statement.clone());
                    statement
                }
            };
            let sink = client
                .copy_in::<_, Bytes>(&statement)
                .await
                .map_err(|error| self.copy_failure(shape, first.ev_id, error))?;
            self.open = Some(Run {
                shape: Arc::clone(shape),
                sink: Box::pin(sink),
                rows: 0,
                first_event: first.ev_id,
            });
        }
        let mut piece = BytesMut::with_capacity(PIECE + PIECE / 4);
        for row in rows {
            for column in 0..shape.columns.len() {
                if column > 0 {
                    piece.put_u8(b'\t');
                }
                match chunk.value(row, column) {
                    None => piece.put_slice(b"\\N"),
                    Some(Value::Here(value)) => statement::push_copy_value(&mut piece, value),
                    Some(Value::Large(value)) => {
                        let (mut next, mut part) = (value.pieces(PIECE), Vec::with_capacity(PIECE));
                        while next(&mut part) {
                            statement::push_copy_value(&mut piece, &part);
                            self.send_full(&mut piece).await?;
                        }
                    }
                }
            }
            piece.put_u8(b'\n');
            self.send_full(&mut piece).await?;
        }
        if let Some(open) = &mut self.open {
            open.rows += rows.len() as u64;
        }
        if !piece.is_empty() {
            self.send(piece.freeze()).await?;
        }
        Ok(())
    }

    /// Sends what has come together, if it is enough.
    async fn send_full(&mut self, piece: &mut BytesMut) -> Result<(), Failure> {
        if piece.len() >= PIECE {
            self.send(piece.split().freeze()).await?;
            piece.reserve(PIECE + PIECE / 4);
        }
        Ok(())
    }

    async fn send(&mut self, piece: Bytes) -> Result<(), Failure> {
        let Some(open) = &mut self.open else { return Ok(()) };
        match open.sink.send(piece).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let (shape, first_event) = (Arc::clone(&open.shape), open.first_event);
                // The reason comes with the answer to the end of the COPY; what the sink says is that there was one.
                let reason = match self.open.take() {
                    Some(mut open) => open.sink.as_mut().finish().await.err(),
                    None => None,
                };
                Err(self.copy_failure(&shape, first_event, reason.unwrap_or(error)))
            }
        }
    }

    pub(super) async fn close_copy(&mut self) -> Result<(), Failure> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let stored = open
            .sink
            .as_mut()
            .finish()
            .await
            .map_err(|error| self.copy_failure(&open.shape, open.first_event, error))?;
        if stored == open.rows {
            return Ok(());
        }
        let table = &self.tables[open.shape.table].name;
        let error = Error::failure(format!(
            "{} rows were sent to table {table} of the subscriber, and {stored} were stored",
            open.rows
        ))
        .of_one_table()
        .hint(SWALLOWED);
        Err(Failure::of_row(error, &open.shape))
    }

    fn copy_failure(&self, shape: &Shape, first_event: i64, error: tokio_postgres::Error) -> Failure {
        let table = &self.tables[shape.table].name;
        let what = || format!("insert the rows of event {first_event} and following into table {table}");
        match Err::<(), _>(error).doing(what) {
            Err(error) => Failure::of_some_row(error, shape),
            Ok(()) => Error::failure("unknown").into(),
        }
    }
}
