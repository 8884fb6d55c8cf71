//! Limits and times of the software iWARP fabric.

use std::time::Duration;

use super::mpa::Rtr;

/// Inbound and outbound RDMA READs per connection when a caller has no reason for another value.
pub const DEFAULT_READ_DEPTH: u32 = 32;

/// How large the frames that we send are. Whatever we choose, we take frames of every size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentSize {
    /// A frame fits one TCP segment (RFC 5044 section 4.5): what NICs and Linux siw do, and what
    /// every peer can take.
    TcpSegment,
    /// DDP segments of at most this many bytes with their header, whatever TCP does: fewer, larger
    /// frames between two software peers. 128 to 65,532.
    Bytes(u16),
}

/// How the fabric behaves. `Default` is right for a server.
#[derive(Debug, Clone)]
pub struct IwarpConfig {
    /// Accepted TCP connections that are not established yet, over all listeners. More stay in the
    /// kernel's accept queue until one of these is done or timed out.
    pub max_half_open: usize,
    /// How long a peer may take to send its MPA Request after TCP has connected.
    pub request_timeout: Duration,
    /// How long the caller may take to accept or reject a connect request, and the Reply to leave.
    pub accept_timeout: Duration,
    /// How long a connection that we have ended may take to carry its last bytes (a Terminate, a
    /// Reply that rejects) and to be closed by the peer. The caller does not wait for this.
    pub close_timeout: Duration,
    /// Size of the frames that we send.
    pub segment: SegmentSize,
    /// The most inbound RDMA READs that a connection may negotiate, 0 to 16,382.
    pub max_ird: u32,
    /// The most outbound RDMA READs that a connection may negotiate, 0 to 16,382.
    pub max_ord: u32,
    /// The most registrations that one connection may hold.
    pub max_registrations: usize,
    /// Which ready-to-receive messages we offer as initiator; none: no peer-to-peer mode (RFC 6581
    /// section 9). As responder we take all.
    pub rtr: Rtr,
    /// A peer that drops a revision 2 Request without an answer is tried once more with revision 1
    /// (RFC 6581 section 10: that is how a peer that knows only revision 1 behaves). Logged.
    pub revision_fallback: bool,
    /// TCP_NODELAY. Off only for experiments: it delays every message.
    pub nodelay: bool,
    /// SO_SNDBUF in bytes; `None` lets the kernel tune it.
    pub send_buffer: Option<usize>,
    /// SO_RCVBUF in bytes; `None` lets the kernel tune it.
    pub receive_buffer: Option<usize>,
    /// Length of the kernel's accept queue per listener.
    pub backlog: i32,
}

impl Default for IwarpConfig {
    fn default() -> Self {
        Self {
            max_half_open: 64,
            request_timeout: Duration::from_secs(5),
            accept_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(2),
            segment: SegmentSize::TcpSegment,
            max_ird: 128,
            max_ord: 128,
            max_registrations: 16_384,
            rtr: Rtr {
                zero_fpdu: false,
                write: true,
                read: true,
            },
            revision_fallback: true,
            nodelay: true,
            send_buffer: None,
            receive_buffer: None,
            backlog: 512,
        }
    }
}

impl IwarpConfig {
    /// Names the first value that is out of range, and the cure.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.max_half_open == 0 {
            return Err("max_half_open is 0: no connection could come in; use 1 or more".into());
        }
        for (name, value) in [("max_ird", self.max_ird), ("max_ord", self.max_ord)] {
            if value > u32::from(super::mpa::MAX_DEPTH) {
                return Err(format!("{name} is {value}; MPA carries at most 16382"));
            }
        }
        if let SegmentSize::Bytes(bytes) = self.segment {
            if !(MIN_ULPDU..=MAX_ULPDU).contains(&usize::from(bytes)) {
                return Err(format!("segment is {bytes} bytes; use 128 to 65532"));
            }
        }
        Ok(())
    }

    /// The largest ULPDU that we send on a connection with this TCP segment size.
    pub(super) fn max_ulpdu(&self, tcp_segment: usize) -> usize {
        match self.segment {
            // RFC 5044 section 4.5: MULPDU = EMSS - (6 + EMSS mod 4), without markers.
            SegmentSize::TcpSegment => tcp_segment
                .saturating_sub(6 + tcp_segment % 4)
                .clamp(MIN_ULPDU, MAX_ULPDU),
            SegmentSize::Bytes(bytes) => usize::from(bytes).clamp(MIN_ULPDU, MAX_ULPDU),
        }
    }
}

/// A ULPDU holds at least every control message (a Terminate has at most 70 bytes).
const MIN_ULPDU: usize = 128;
/// The length field has 16 bits; a multiple of 4 below that.
const MAX_ULPDU: usize = 65_532;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes() {
        let mut config = IwarpConfig::default();
        assert_eq!(config.max_ulpdu(1460), 1454);
        assert_eq!(config.max_ulpdu(1448), 1442);
        assert_eq!(config.max_ulpdu(65_483), 65_474);
        assert_eq!(config.max_ulpdu(0), 128);
        assert_eq!(config.max_ulpdu(1 << 20), 65_532);
        config.segment = SegmentSize::Bytes(9000);
        assert_eq!(config.max_ulpdu(1460), 9000);
        assert!(config.check().is_ok());
        config.segment = SegmentSize::Bytes(100);
        assert!(config.check().unwrap_err().contains("100"));
    }

    #[test]
    fn bad_limits_are_named() {
        let config = IwarpConfig {
            max_ord: 20_000,
            ..IwarpConfig::default()
        };
        assert!(config.check().unwrap_err().contains("max_ord is 20000"));
        let config = IwarpConfig {
            max_half_open: 0,
            ..IwarpConfig::default()
        };
        assert!(config.check().is_err());
    }
}
