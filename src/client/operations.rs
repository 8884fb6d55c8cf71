#![forbid(unsafe_code)]
//! Sends and RDMA operations from the submission to their event.

use slab::Slab;

use super::send_area::Run;
use crate::ring::SqOp;

/// One operation.
#[derive(Debug)]
pub(super) struct Operation {
    /// What was asked for.
    pub(super) op: SqOp,
    /// The connection.
    pub(super) connection: u64,
    /// The user's name for it.
    pub(super) cookie: u64,
    /// Whether success is told.
    pub(super) has_event: bool,
    /// Its pages of the send area, until the engine has completed it.
    pub(super) run: Option<Run>,
    /// How it ended, once it has.
    pub(super) outcome: Option<Outcome>,
    generation: u32,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// 0 or a negative errno.
    pub(super) status: i32,
    /// Bytes moved.
    pub(super) length: u32,
}

/// All operations whose event was not taken yet. Their number is bounded, so that the submission
/// ring, the completion ring and the queue of events are.
#[derive(Debug)]
pub(super) struct Operations {
    slab: Slab<Operation>,
    max: usize,
    generation: u32,
}

impl Operations {
    pub(super) fn new(max: u32) -> Self {
        Self {
            slab: Slab::new(),
            max: max as usize,
            generation: 0,
        }
    }

    /// Whether another one may begin.
    pub(super) fn has_room(&self) -> bool {
        self.slab.len() < self.max
    }

    /// Begins one and returns the cookie for the ring.
    pub(super) fn begin(
        &mut self,
        op: SqOp,
        connection: u64,
        cookie: u64,
        has_event: bool,
        run: Run,
    ) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let key = self.slab.insert(Operation {
            op,
            connection,
            cookie,
            has_event,
            run: Some(run),
            outcome: None,
            generation: self.generation,
        });
        // Keys are below `max`, which is far below 2^32.
        u64::from(self.generation) << 32 | key as u64
    }

    /// The operation of a ring's cookie.
    pub(super) fn get_mut(&mut self, ring_cookie: u64) -> Option<&mut Operation> {
        let operation = self.slab.get_mut(ring_cookie as u32 as usize)?;
        (operation.generation == (ring_cookie >> 32) as u32).then_some(operation)
    }

    /// Forgets an operation.
    pub(super) fn end(&mut self, ring_cookie: u64) -> Option<Operation> {
        self.get_mut(ring_cookie)?;
        self.slab.try_remove(ring_cookie as u32 as usize)
    }

    /// The ring's cookies of operations that are not completed, those of one connection or all.
    pub(super) fn outstanding(&self, connection: Option<u64>) -> Vec<u64> {
        let mut all: Vec<_> = self
            .slab
            .iter()
            .filter(|(_, operation)| {
                operation.outcome.is_none()
                    && connection.is_none_or(|id| id == operation.connection)
            })
            .map(|(key, operation)| u64::from(operation.generation) << 32 | key as u64)
            .collect();
        // In the order in which they were begun, as far as the generation has not wrapped.
        all.sort_unstable();
        all
    }
}
