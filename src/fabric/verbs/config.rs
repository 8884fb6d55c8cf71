#![forbid(unsafe_code)]
//! What a verbs fabric is made with.

use std::time::Duration;

/// Sizes and times of a verbs fabric. The defaults suit SMB Direct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerbsConfig {
    /// Work requests of one connection that the device has at once, sends and RDMA together,
    /// 16..=16384. More wait in the fabric; a device may have less.
    pub send_depth: u32,
    /// Receives of one connection when nobody has told their number
    /// ([`Fabric::expect_receives`](crate::fabric::Fabric::expect_receives)), 1..=16384.
    pub recv_depth: u32,
    /// Bytes of a send that are copied into the work request instead of being fetched from
    /// registered memory, 0..=512. A device may take less.
    pub inline: u32,
    /// Memory is registered in pieces of this many bytes as it comes into use: a power of two,
    /// 64 KiB..=64 MiB.
    pub chunk: usize,
    /// How long registered memory that nobody uses is kept.
    pub keep_idle: Duration,
    /// Register exactly the bytes of each send and RDMA operation, and only as long as it takes,
    /// instead of keeping chunks. Slower; nothing but receives is within reach of the device
    /// longer than it has to.
    pub register_each: bool,
    /// Ask the device for fewer events: one in so many completions of a connection, or so many
    /// microseconds after the first. Devices that cannot are used without.
    pub moderation: Option<(u16, u16)>,
    /// Tokens of one connection.
    pub max_registrations: usize,
    /// Connections in set-up; further connect requests are refused.
    pub max_half_open: usize,
    /// Connect requests that the kernel keeps for a listener.
    pub backlog: i32,
    /// How long the caller may take to accept or reject.
    pub decision_timeout: Duration,
    /// How long an accepted connection may take to be established.
    pub establish_timeout: Duration,
    /// How long an error of a queue pair waits for what tells its cause.
    pub close_timeout: Duration,
    /// How long the peer of a connection that has ended is told of it, should it not answer. The
    /// kernel repeats that every 4.1 s over InfiniBand and RoCE (`CMA_CM_RESPONSE_TIMEOUT`); only
    /// an identifier is kept for it.
    pub goodbye_timeout: Duration,
    /// Peers that are told so at a time, 1..=65536; one more, and the first is no longer.
    pub max_goodbyes: usize,
    /// How often listeners look for addresses and devices that have come or gone.
    pub rescan: Duration,
}

impl Default for VerbsConfig {
    fn default() -> Self {
        Self {
            send_depth: 512,
            recv_depth: 264,
            inline: 160,
            chunk: 1 << 20,
            keep_idle: Duration::from_secs(10),
            register_each: false,
            // The queue is looked at as long as it has something, so a busy connection has few
            // events anyway; a quiet one would wait.
            moderation: None,
            max_registrations: 4096,
            max_half_open: 256,
            backlog: 128,
            decision_timeout: Duration::from_secs(10),
            establish_timeout: Duration::from_secs(15),
            close_timeout: Duration::from_secs(2),
            goodbye_timeout: Duration::from_secs(30),
            max_goodbyes: 1024,
            rescan: Duration::from_secs(5),
        }
    }
}

impl VerbsConfig {
    /// Checks every value against its range; the error names the first that is outside.
    pub fn check(&self) -> Result<(), String> {
        let in_range = |name: &str, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(format!("{name} is {value}, it may be {min}..={max}"))
        };
        in_range("send_depth", self.send_depth as usize, 16, 16384)?;
        in_range("recv_depth", self.recv_depth as usize, 1, 16384)?;
        in_range("inline", self.inline as usize, 0, 512)?;
        in_range("chunk", self.chunk, 64 << 10, 64 << 20)?;
        if !self.chunk.is_power_of_two() {
            return Err(format!(
                "chunk is {}, it has to be a power of two",
                self.chunk
            ));
        }
        in_range("max_half_open", self.max_half_open, 1, 65536)?;
        in_range("max_goodbyes", self.max_goodbyes, 1, 65536)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_by_name() {
        assert_eq!(VerbsConfig::default().check(), Ok(()));
        let bad = VerbsConfig {
            chunk: (1 << 20) + 4096,
            ..VerbsConfig::default()
        };
        assert!(bad.check().unwrap_err().contains("chunk is 1052672"));
        let bad = VerbsConfig {
            send_depth: 8,
            ..VerbsConfig::default()
        };
        assert!(bad.check().unwrap_err().contains("send_depth is 8"));
    }
}
