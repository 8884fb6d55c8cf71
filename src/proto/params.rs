//! What the local side offers and how long it waits: `[MS-SMBD] 3.1.1.1` and 3.1.2.

use std::fmt;
use std::time::Duration;

use crate::wire::{
    MAX_FRAGMENTED_SIZE, MAX_MESSAGE_SIZE, MIN_FRAGMENTED_SIZE, MIN_MESSAGE_SIZE,
    NEGOTIATE_RECEIVE_SIZE,
};

/// Parameters of a connection, fixed for its lifetime.
///
/// [`Params::default`] suits a server, [`Params::active`] a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// ReceiveCreditMax: most receives ever posted and granted. 1 or more.
    pub receive_credit_max: u16,
    /// SendCreditTarget: credits asked of the peer in every message. 1 or more.
    pub send_credit_target: u16,
    /// MaxSendSize: longest message sent, bytes with header, 128 to 64 KiB.
    pub max_send_size: u32,
    /// MaxReceiveSize: longest message received, bytes with header, 128 to 64 KiB.
    pub max_receive_size: u32,
    /// MaxFragmentedRecvSize: longest upper-layer message received, bytes, 128 KiB to 64 MiB.
    pub max_fragmented_size: u32,
    /// MaxReadWriteSize: largest RDMA transfer for one upper-layer operation, bytes, 4 KiB or more.
    pub max_read_write_size: u32,
    /// Silence of the peer after which it is probed. 10 ms to 24 h.
    pub keepalive_interval: Duration,
    /// Silence after a probe that ends the connection. 10 ms to 24 h.
    pub keepalive_response_timeout: Duration,
    /// Longest negotiation on the active side, from before the fabric connects. 10 ms to 24 h.
    pub negotiate_timeout_active: Duration,
    /// Longest negotiation on the passive side, from the connection's arrival. 10 ms to 24 h.
    pub negotiate_timeout_passive: Duration,
    /// Sends handed out by [`poll`](super::Connection::poll) and not yet reported by
    /// [`handle_send_done`](super::Connection::handle_send_done), at most. 1 or more. The fabric's
    /// send queue has to take as many.
    pub send_window: u16,
    /// Upper-layer messages queued, at most. 1 or more.
    pub send_queue_limit: u16,
}

impl Params {
    /// Defaults for the active side: as [`Params::default`], but with a PreferredSendSize of 1364.
    ///
    /// 1364 is what Windows and Linux offer. Windows Server 2012 R2 and later refuse an offer
    /// above 8136 (`[MS-SMBD]` note 6); ksmbd derives its MaxFragmentedSize from the offer and
    /// falls below the legal minimum when the offer is below 1029.
    pub fn active() -> Self {
        Self {
            max_send_size: 1364,
            ..Self::default()
        }
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// The first value out of range, by field name.
    pub fn validate(&self) -> Result<(), ParamError> {
        let range = |field, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ParamError {
                    field,
                    value,
                    min,
                    max,
                })
            }
        };
        let time = |field, value: Duration| {
            let msec = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
            range(field, msec, MIN_TIME_MSEC, MAX_TIME_MSEC)
        };
        let count = |field, value: u16| range(field, value.into(), 1, u16::MAX.into());
        let size = |field, value: u32, min: u32, max: u32| {
            range(field, value.into(), min.into(), max.into())
        };
        count("receive_credit_max", self.receive_credit_max)?;
        count("send_credit_target", self.send_credit_target)?;
        size(
            "max_send_size",
            self.max_send_size,
            MIN_MESSAGE_SIZE,
            MAX_MESSAGE_SIZE,
        )?;
        size(
            "max_receive_size",
            self.max_receive_size,
            MIN_MESSAGE_SIZE,
            MAX_MESSAGE_SIZE,
        )?;
        let fragmented = self.max_fragmented_size;
        size(
            "max_fragmented_size",
            fragmented,
            MIN_FRAGMENTED_SIZE,
            MAX_FRAGMENTED_SIZE,
        )?;
        let read_write = self.max_read_write_size;
        size(
            "max_read_write_size",
            read_write,
            MIN_READ_WRITE_SIZE,
            u32::MAX,
        )?;
        time("keepalive_interval (msec)", self.keepalive_interval)?;
        time(
            "keepalive_response_timeout (msec)",
            self.keepalive_response_timeout,
        )?;
        time(
            "negotiate_timeout_active (msec)",
            self.negotiate_timeout_active,
        )?;
        time(
            "negotiate_timeout_passive (msec)",
            self.negotiate_timeout_passive,
        )?;
        count("send_window", self.send_window)?;
        count("send_queue_limit", self.send_queue_limit)
    }

    /// Size of the receive buffers the caller has to provide, bytes: MaxReceiveSize, but never
    /// below the 512 that the negotiation needs (`[MS-SMBD] 3.1.7.2`).
    pub fn receive_buffer_size(&self) -> u32 {
        self.max_receive_size.max(NEGOTIATE_RECEIVE_SIZE)
    }
}

impl Default for Params {
    /// Windows Server's values, except for MaxSendSize: 8136 is the largest size that every known
    /// peer takes, and six times fewer messages than with 1364. A passive side is bound by the
    /// peer's MaxReceiveSize anyway.
    fn default() -> Self {
        Self {
            receive_credit_max: 255,
            send_credit_target: 255,
            max_send_size: 8136,
            max_receive_size: 8192,
            max_fragmented_size: 1 << 20,
            max_read_write_size: 8 << 20,
            keepalive_interval: Duration::from_secs(120),
            keepalive_response_timeout: Duration::from_secs(5),
            negotiate_timeout_active: Duration::from_secs(120),
            negotiate_timeout_passive: Duration::from_secs(5),
            send_window: 256,
            send_queue_limit: 4096,
        }
    }
}

/// A parameter out of its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamError {
    /// Which one.
    pub field: &'static str,
    /// What it was.
    pub value: u64,
    /// Smallest legal value.
    pub min: u64,
    /// Largest legal value.
    pub max: u64,
}

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            value,
            min,
            max,
        } = self;
        write!(f, "{field} {value} is out of range, use {min} to {max}")
    }
}

impl std::error::Error for ParamError {}

/// Ours: the Linux client refuses a server below its page size.
const MIN_READ_WRITE_SIZE: u32 = 4096;
const MIN_TIME_MSEC: u64 = 10;
const MAX_TIME_MSEC: u64 = 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_legal() {
        assert_eq!(Params::default().validate(), Ok(()));
        assert_eq!(Params::active().validate(), Ok(()));
    }

    #[test]
    fn every_field_is_checked() {
        let p = Params::default;
        let zero = Duration::ZERO;
        let cases = [
            Params {
                receive_credit_max: 0,
                ..p()
            },
            Params {
                send_credit_target: 0,
                ..p()
            },
            Params {
                max_send_size: 127,
                ..p()
            },
            Params {
                max_send_size: 65537,
                ..p()
            },
            Params {
                max_receive_size: 127,
                ..p()
            },
            Params {
                max_fragmented_size: 131_071,
                ..p()
            },
            Params {
                max_fragmented_size: u32::MAX,
                ..p()
            },
            Params {
                max_read_write_size: 4095,
                ..p()
            },
            Params {
                keepalive_interval: zero,
                ..p()
            },
            Params {
                keepalive_response_timeout: Duration::MAX,
                ..p()
            },
            Params {
                negotiate_timeout_active: zero,
                ..p()
            },
            Params {
                negotiate_timeout_passive: zero,
                ..p()
            },
            Params {
                send_window: 0,
                ..p()
            },
            Params {
                send_queue_limit: 0,
                ..p()
            },
        ];
        for case in cases {
            assert!(case.validate().is_err(), "{case:?}");
        }
        let error = Params {
            max_send_size: 127,
            ..p()
        }
        .validate()
        .map_err(|e| e.to_string());
        assert_eq!(
            error,
            Err("max_send_size 127 is out of range, use 128 to 65536".into())
        );
    }

    #[test]
    fn receive_buffers_hold_a_padded_negotiate_request() {
        let small = Params {
            max_receive_size: 128,
            ..Params::default()
        };
        assert_eq!(small.receive_buffer_size(), 512);
        assert_eq!(Params::default().receive_buffer_size(), 8192);
    }
}
