//! What all connections of a fabric use together.

use std::io;

use super::config::IwarpConfig;
use super::crc;
use super::receive::ReceiveTools;
use super::stag::TokenSource;
use super::stage::StagePool;
use super::transmit::{Finished, SendTools};
use crate::fabric::slots::Timers;
use crate::mem::PartsStorage;
use crate::sys::Registry;

/// The parts of a fabric that are not connections.
pub(super) struct Shared {
    pub(super) registry: Registry,
    pub(super) config: IwarpConfig,
    pub(super) timers: Timers,
    pub(super) tokens: TokenSource,
    pub(super) send_tools: SendTools,
    pub(super) receive_tools: ReceiveTools,
    pub(super) finished: Finished,
    /// Accepted connections that are not established.
    pub(super) half_open: usize,
}

impl Shared {
    pub(super) fn new(registry: Registry, config: IwarpConfig) -> io::Result<Self> {
        Ok(Self {
            registry,
            config,
            timers: Timers::default(),
            tokens: TokenSource::new()?,
            send_tools: SendTools {
                storage: PartsStorage::default(),
                pool: StagePool::default(),
                chunk: crc::chunk(),
            },
            receive_tools: ReceiveTools::new(),
            finished: Finished::default(),
            half_open: 0,
        })
    }
}
