//! What a device can do.

use std::io;
use std::mem::MaybeUninit;

use super::cm::{check, CmId};
use super::ffi;

/// siw, the software iWARP of Linux. It hands the pages of a work request that does not tell its
/// completion to TCP without a copy (`siw_qp_prepare_tx` in siw_qp_tx.c), and completes a later one
/// as soon as TCP has that: the peer then gets what the pages contain when they leave.
const SIW_VENDOR_ID: u32 = 0x0062_6d74;
/// `SENDPAGE_THRESH` of siw.h, PAGE_SIZE.
const SIW_SHARES_FROM: usize = 4096;

/// rxe, the software RoCE of Linux. When it has to send something again, it goes back to that work
/// request and carries out again all that came after, binds of memory windows too (`req_retry` and
/// `rxe_requester` in rxe_req.c, Linux 6.12). A window that is bound cannot be bound once more
/// (`rxe_check_bind_mw`), so the queue pair goes to error.
const RXE_VENDOR_ID: u32 = 0x00ff_ffff;

/// The transports whose ports and rules differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fabric::verbs) enum Transport {
    /// InfiniBand and RoCE.
    Infiniband,
    /// iWARP.
    Iwarp,
}

/// Limits of a device, and the speed of its port.
#[derive(Debug, Clone)]
pub(in crate::fabric::verbs) struct Device {
    pub(in crate::fabric::verbs) name: String,
    pub(in crate::fabric::verbs) transport: Transport,
    pub(in crate::fabric::verbs) max_qp_wr: u32,
    pub(in crate::fabric::verbs) max_cqe: u32,
    pub(in crate::fabric::verbs) max_sge: u32,
    /// Pieces of memory that one RDMA READ may fill.
    pub(in crate::fabric::verbs) max_sge_rd: u32,
    /// RDMA READs served at once.
    pub(in crate::fabric::verbs) max_ird: u8,
    /// RDMA READs outstanding at once.
    pub(in crate::fabric::verbs) max_ord: u8,
    /// Sends can invalidate a token of the peer.
    pub(in crate::fabric::verbs) send_with_invalidate: bool,
    /// Has memory windows of type 2, which the peer can invalidate.
    pub(in crate::fabric::verbs) has_windows: bool,
    /// The memory of a send or write of this many bytes or more is free only when it has told its own
    /// completion; that of a shorter one also when a later one has.
    pub(in crate::fabric::verbs) tells_from: Option<usize>,
    /// Whether a Send with Invalidate may have its bytes in the work request.
    pub(in crate::fabric::verbs) inlines_invalidate: bool,
    /// A bind is carried out again when something before it has to be sent again, and then fails: it
    /// is not posted before all of that is done.
    pub(in crate::fabric::verbs) repeats_binds: bool,
    /// Bits per second.
    pub(in crate::fabric::verbs) link_speed: Option<u64>,
}

impl Device {
    /// The device that an identifier is bound to. `None`: to none yet.
    pub(in crate::fabric::verbs) fn of(id: &CmId) -> Option<io::Result<Self>> {
        let verbs = id.0.verbs()?;
        let name = id.device_name()?;
        // SAFETY: context and device live as long as the identifier.
        let transport = unsafe { (*verbs.as_ref().device).transport_type };
        let transport = match transport {
            ffi::IBV_TRANSPORT_IB => Transport::Infiniband,
            ffi::IBV_TRANSPORT_IWARP => Transport::Iwarp,
            other => {
                let text = format!("{name} has transport type {other}, not InfiniBand or iWARP");
                return Some(Err(io::Error::other(text)));
            }
        };
        let functions = id.0.functions();
        let mut attr = MaybeUninit::<ffi::ibv_device_attr>::zeroed();
        // SAFETY: context and out pointer are valid; the structure is the library's.
        let result = unsafe { (functions.ibv_query_device)(verbs.as_ptr(), attr.as_mut_ptr()) };
        if result != 0 {
            return Some(Err(io::Error::from_raw_os_error(result.abs())));
        }
        // SAFETY: zeroed before, so initialised whatever was written.
        let attr = unsafe { attr.assume_init() };
        let mut port = MaybeUninit::<ffi::ibv_port_attr>::zeroed();
        // SAFETY: as above; the structure is larger than the library's.
        let result = unsafe {
            (functions.ibv_query_port)(verbs.as_ptr(), id.device_port(), port.as_mut_ptr())
        };
        // SAFETY: zeroed before.
        let port = unsafe { port.assume_init() };
        let link_speed = check(result)
            .ok()
            .and_then(|()| speed(port.active_width, port.active_speed));
        let limit = |value: i32| u32::try_from(value).unwrap_or(0);
        let depth = |value: i32| limit(value).min(255) as u8;
        Some(Ok(Self {
            name,
            transport,
            max_qp_wr: limit(attr.max_qp_wr),
            max_cqe: limit(attr.max_cqe),
            max_sge: limit(attr.max_sge),
            max_sge_rd: match (transport, limit(attr.max_sge_rd)) {
                // Some drivers leave it out; iWARP has one sink.
                (Transport::Infiniband, 0) => limit(attr.max_sge),
                (_, count) => count.max(1),
            },
            max_ird: depth(attr.max_qp_rd_atom),
            max_ord: depth(attr.max_qp_init_rd_atom),
            send_with_invalidate: attr.device_cap_flags & ffi::IBV_DEVICE_MEM_MGT_EXTENSIONS != 0,
            has_windows: attr.device_cap_flags
                & (ffi::IBV_DEVICE_MEM_WINDOW_TYPE_2A | ffi::IBV_DEVICE_MEM_WINDOW_TYPE_2B)
                != 0,
            tells_from: (attr.vendor_id == SIW_VENDOR_ID).then_some(SIW_SHARES_FROM),
            // siw takes SEND and WRITE only (`siw_activate_tx_from_sq` in siw_qp.c, Linux 6.12).
            inlines_invalidate: attr.vendor_id != SIW_VENDOR_ID,
            repeats_binds: attr.vendor_id == RXE_VENDOR_ID,
            link_speed,
        }))
    }
}

/// Bits per second of a link: lanes times the rate of one (InfiniBand Architecture, PortInfo).
fn speed(width: u8, speed: u8) -> Option<u64> {
    let lanes: u64 = match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => return None,
    };
    // Hundreds of Mb/s.
    let lane: u64 = match speed {
        1 => 25,
        2 => 50,
        4 | 8 => 100,
        16 => 140,
        32 => 250,
        64 => 500,
        128 => 1000,
        _ => return None,
    };
    Some(lanes * lane * 100_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_as_sysfs_tells_them() {
        assert_eq!(speed(2, 32), Some(100_000_000_000), "4X EDR");
        assert_eq!(speed(2, 64), Some(200_000_000_000), "4X HDR");
        assert_eq!(speed(1, 32), Some(25_000_000_000), "1X EDR");
        assert_eq!(speed(2, 1), Some(10_000_000_000), "4X SDR");
        assert_eq!(speed(0, 32), None);
        assert_eq!(speed(2, 3), None);
    }
}
