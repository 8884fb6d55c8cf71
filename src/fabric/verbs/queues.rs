#![forbid(unsafe_code)]
//! The queues of a connection, sized by what its device can do.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::config::VerbsConfig;
use super::memory::{Memory, MAX_PIECES};
use super::sys::{CmId, Device, Mr, Pd, Qp, QueueOptions, Rights};
use crate::fabric::FabricError;
use crate::mem::Region;

/// Registered memory for the headers of sends, one place for each work request.
pub(super) struct Headers {
    pub(super) region: Arc<Region>,
    pub(super) mr: Mr,
    pub(super) free: Vec<u16>,
}

/// Bytes of one header.
pub(super) const HEADER: usize = 32;

impl Headers {
    fn new(pd: &Pd, count: u32) -> io::Result<Self> {
        let count = count.min(u32::from(u16::MAX)) as u16;
        let len = usize::from(count) * HEADER;
        let region = Region::anonymous(len)?;
        let mr = Mr::new(pd, &region, 0, len, Rights::default())?;
        Ok(Self {
            region,
            mr,
            free: (0..count).rev().collect(),
        })
    }
}

/// What a connection has once its device is known.
pub(super) struct Queues {
    pub(super) qp: Qp,
    pub(super) headers: Headers,
    pub(super) memory: Memory,
    pub(super) device: Rc<Device>,
}

impl Queues {
    /// Makes them, for an identifier that is bound to a device.
    pub(super) fn new(
        id: &CmId,
        key: u64,
        peer: SocketAddr,
        config: &VerbsConfig,
        expected_recvs: Option<u32>,
    ) -> Result<Self, FabricError> {
        let os = |what: &str| {
            let what = format!("{what} for the connection with {peer}");
            move |error| FabricError::Os(what, error)
        };
        let device = match Device::of(id) {
            Some(device) => device.map_err(os("query the device"))?,
            None => return Err(FabricError::WrongState("no device yet")),
        };
        let options = queue_options(&device, config, expected_recvs, key)?;
        let pd = Pd::new(id).map_err(os("ibv_alloc_pd"))?;
        let qp = make_qp(id, key, &pd, options).map_err(os("make a queue pair"))?;
        let headers = Headers::new(&pd, options.sends).map_err(|error| {
            super::limits::explain(error, "register headers", options.sends as usize * HEADER)
        })?;
        Ok(Self {
            qp,
            headers,
            memory: Memory::new(pd, config.chunk, config.register_each, device.has_windows),
            device: Rc::new(device),
        })
    }
}

/// Sizes within the limits of a device.
fn queue_options(
    device: &Device,
    config: &VerbsConfig,
    expected_recvs: Option<u32>,
    key: u64,
) -> Result<QueueOptions, FabricError> {
    let sends = config.send_depth.min(device.max_qp_wr);
    let recvs = expected_recvs
        .unwrap_or(config.recv_depth)
        .clamp(1, device.max_qp_wr.max(1));
    if device.max_sge < 2 || sends < 2 {
        return Err(FabricError::Invalid(format!(
            "{} takes {} pieces of memory in one work request and {sends} work requests: SMB \
             Direct needs 2 of each",
            device.name, device.max_sge
        )));
    }
    // A completion queue that is too small loses completions. Receives that do not fit are not
    // posted, and no credits are granted for them.
    let recvs = recvs.min(device.max_cqe.saturating_sub(1 + sends));
    if recvs == 0 {
        return Err(FabricError::Invalid(format!(
            "{} has completion queues of {} entries; {sends} sends and a receive do not fit",
            device.name, device.max_cqe
        )));
    }
    Ok(QueueOptions {
        sends,
        recvs,
        send_sges: device.max_sge.min(1 + MAX_PIECES),
        recv_sges: device.max_sge.min(2),
        inline: config.inline,
        vector: key as u32,
    })
}

/// Makes a queue pair. How much fits inline is known by trying only.
fn make_qp(id: &CmId, key: u64, pd: &Pd, options: QueueOptions) -> io::Result<Qp> {
    let mut first = None;
    for inline in [options.inline, 64, 0] {
        if inline > options.inline {
            continue;
        }
        match Qp::new(id, key, pd, QueueOptions { inline, ..options }) {
            Ok(qp) => return Ok(qp),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| io::Error::other("no size to try")))
}

#[cfg(test)]
mod tests {
    use super::super::sys::Transport;
    use super::*;

    fn device() -> Device {
        Device {
            name: "test0".into(),
            transport: Transport::Infiniband,
            max_qp_wr: 128,
            max_cqe: 1024,
            max_sge: 3,
            max_sge_rd: 3,
            max_ird: 16,
            max_ord: 16,
            send_with_invalidate: true,
            has_windows: true,
            tells_from: None,
            inlines_invalidate: true,
            repeats_binds: false,
            link_speed: None,
        }
    }

    #[test]
    fn queues_fit_the_device() {
        let config = VerbsConfig::default();
        let options = queue_options(&device(), &config, Some(255), 7).unwrap();
        assert_eq!((options.sends, options.recvs), (128, 128));
        assert_eq!((options.send_sges, options.recv_sges), (3, 2));
        let few = queue_options(&device(), &config, Some(10), 7).unwrap();
        assert_eq!(few.recvs, 10);
    }

    #[test]
    fn a_device_that_cannot_is_refused_by_name() {
        let config = VerbsConfig::default();
        let narrow = Device {
            max_sge: 1,
            ..device()
        };
        let error = queue_options(&narrow, &config, None, 0).unwrap_err();
        assert!(
            error.to_string().contains("test0 takes 1 pieces"),
            "{error}"
        );
        let few = Device {
            max_cqe: 200,
            ..device()
        };
        let options = queue_options(&few, &config, None, 0).unwrap();
        assert_eq!((options.sends, options.recvs), (128, 71));
        let short = Device {
            max_cqe: 129,
            ..device()
        };
        let error = queue_options(&short, &config, None, 0).unwrap_err();
        assert!(error.to_string().contains("129 entries"), "{error}");
    }
}
